"""Running experiments: one run, or many at once, and the tuning of their settings.

Here is what a run is resumed from, and what is written down of where it was made.
"""
