"""Messages to token ids, alike in training and serving."""
