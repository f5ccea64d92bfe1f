"""Data, runs and evaluations of the trainer."""
