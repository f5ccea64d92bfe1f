"""The command line: a file a noun, `main` puts them together."""
