"""Administration of tenants, keys and adapters, over HTTP and from the command line."""
