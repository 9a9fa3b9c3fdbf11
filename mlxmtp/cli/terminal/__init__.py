"""What is drawn and typed: output, keys, markdown, tables."""
