"""What generates: the interface that the gateway asks, its supervision, and memory."""
