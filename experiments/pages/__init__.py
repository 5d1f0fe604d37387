"""The pages of results in docs/results, generated from what is stored."""
