"""Frozen CLIP features and the trainable networks that bring them to the host's width."""
