"""The experiments: `python -m experiments --help` lists them."""
