"""Clients of both transports, and what they send."""
