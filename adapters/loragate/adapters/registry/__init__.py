"""What is recorded: tenants, versions, aliases, trials, usage, audit."""
