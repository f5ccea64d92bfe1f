"""What replaces parts of vLLM inside its worker on a CPU."""
