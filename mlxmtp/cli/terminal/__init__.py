"""The terminal: output, keys, markdown, rows and tables."""
