"""Drivers, flags, statistics and tables that the programs share; the standard library alone."""
