"""What both transports say in the same words: statuses of failures, names of headers."""
