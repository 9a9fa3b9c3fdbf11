"""Measurements and predictions behind docs/benchmarks.md: a module is a program, `all` runs those that write tables."""
