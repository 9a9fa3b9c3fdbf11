"""Measuring: texts, runs, statistics and reports."""
