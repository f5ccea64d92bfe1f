"""A training run: its file, its folder, its phases."""
