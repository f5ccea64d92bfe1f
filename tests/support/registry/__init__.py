"""Registries: filled, promoted, killed, looked into, on SQLite and PostgreSQL."""
