"""Pages about runs and sweeps: self-contained HTML, from the files that they left. Nothing below needs this room."""
