"""Running tasks: one run with checkpoints, or many at once."""
