"""Speculative decoding over token ids: knows nothing of text, files or the device's name."""
