"""A training run: its file, its folder, and `Run`, which is passed from step to step."""
