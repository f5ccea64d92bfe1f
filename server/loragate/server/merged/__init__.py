"""Engines of merged models."""
