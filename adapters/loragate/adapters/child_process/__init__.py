"""A process for work on what strangers sent: bounded in time and memory, killed with its parent."""
