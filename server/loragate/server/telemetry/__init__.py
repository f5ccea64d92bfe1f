"""What is known of the server: metrics, usage, health, background tasks."""
