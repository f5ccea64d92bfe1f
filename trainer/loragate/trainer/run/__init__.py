"""A training run: its file, its folder, and `Run`, which every step takes."""
