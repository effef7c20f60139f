"""Training: optimizer, engine, checkpoints, journal, the loop, and the story of one run."""
