"""Tiny Gemma 4 pairs and what the reference implementation computes from them."""
