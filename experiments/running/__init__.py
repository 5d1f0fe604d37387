"""Running experiments: one run, or many at once; what is kept to go on from."""
