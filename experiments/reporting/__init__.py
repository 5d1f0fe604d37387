"""Reporting: what runs came to, in the terminal, in figures and in the README."""
