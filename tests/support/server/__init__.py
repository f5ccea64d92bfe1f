"""Servers: in this process, in one of their own, and what drives them."""
