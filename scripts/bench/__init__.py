"""The parts of bench_peers.py: the driver needs the standard library alone, each engine only its own environment."""
