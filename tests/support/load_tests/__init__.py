"""Runs of the load tests: made by hand, and whole ones."""
