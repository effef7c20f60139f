"""Training: optimizer, engine, checkpoints, the loop, and the story of one run."""
