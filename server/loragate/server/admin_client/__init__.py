"""The registry as the command line asks it: here, or of a server."""
