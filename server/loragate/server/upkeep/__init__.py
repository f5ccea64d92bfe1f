"""What a server does for its registry: holds its lock, deletes what is old, removes what is orphaned."""
