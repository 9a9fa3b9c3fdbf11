"""Will a model fit this machine's memory?"""

from __future__ import annotations

import os

USABLE = 0.75
"""Share of the memory a model may take: what Metal recommends as a working set on most machines."""

OVERHEAD = 1_000_000_000
"""Bytes beside the weights: the program, its buffers and the K/V of a few thousand tokens."""


def machine_memory() -> int:
    """Bytes of physical memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def fits(weights: int, memory: int) -> bool:
    """Whether `weights` bytes of target and drafter can be used on a machine with `memory` bytes."""
    return weights + OVERHEAD <= USABLE * memory


def shown(size: int) -> str:
    """Bytes as people read them: `6.7 GB`."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.0f} MB"
