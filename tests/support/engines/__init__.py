"""Engines that echo, and what is known of the real one."""
