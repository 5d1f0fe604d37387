"""Training: what one update does, many of them in one program, and the phases."""
