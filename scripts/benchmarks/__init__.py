"""Measurements and predictions behind docs/benchmarks.md: a module is a program, `all` runs those that write tables."""

import mlxmtp  # noqa: F401  (before any module here imports mlx: it puts OpenBLAS under it)
