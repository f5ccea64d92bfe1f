"""The steps of a run in order, the evaluation of a finished run, and sweeps of runs."""
