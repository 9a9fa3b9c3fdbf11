"""Traced graphs of rounds, and the kernels that they launch."""
