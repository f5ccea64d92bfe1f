"""vLLM as the engine: in this process, and what runs in its worker on any device."""
