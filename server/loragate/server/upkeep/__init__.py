"""What a server does for its registry: holds its lock, and deletes what is old or orphaned."""
