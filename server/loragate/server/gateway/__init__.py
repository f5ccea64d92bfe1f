"""One request, from its key to its answer."""
