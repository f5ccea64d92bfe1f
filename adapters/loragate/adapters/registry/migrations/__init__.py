"""Alembic's steps from an empty database to `tables`; run by `database`, never by hand."""
