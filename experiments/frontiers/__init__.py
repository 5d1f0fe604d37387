"""Frontiers: how sparse each method makes a network, at how much accuracy."""
