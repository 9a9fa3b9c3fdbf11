"""A port for a program that has to be told one: nobody else gets it between this look and its start."""

from __future__ import annotations

import random
import socket


def free_port() -> int:
    """Return one below those that systems hand out (Linux from 32768, macOS from 49152)."""
    for port in random.SystemRandom().sample(range(20_000, 30_000), 100):
        with socket.socket() as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                tried.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no port is free")
