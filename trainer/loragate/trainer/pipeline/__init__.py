"""A run from end to end, and the evaluation of a run that has ended."""
