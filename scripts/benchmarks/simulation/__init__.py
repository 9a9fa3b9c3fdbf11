"""Replays of recorded texts on machines with known round times."""
