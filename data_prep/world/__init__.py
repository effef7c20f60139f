"""The made-up world of coloured shapes: pictures, captions, questions, instructions and plain text, all seeded."""
