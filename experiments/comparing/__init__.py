"""Comparisons of ways to sparse networks: the relevance study, and other methods."""
