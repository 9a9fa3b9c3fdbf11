"""Kernels that MLX's Metal backend attends with, as a table; imports no MLX.

Read in the macOS wheel of MLX 0.32.4: names of kernels, and the code that chooses. Nothing of it was run.
"""

from typing import Literal

ROWS, QUERIES, HEADS = 8, 32, frozenset({64, 96, 128, 192, 256})
"""Limits of the kernel for few rows: rows, rows times query heads of a K/V head, and head sizes."""

FULL_HEAD, FULL_GROUP, FULL_KEYS = 512, 8, 1024
"""Its limits for Gemma's full layers: one row, eight query heads of a K/V head, no mask, and at least so many keys."""

BLOCKED_ROWS = 1024
"""Rows from which a kernel attends causally without writing scores down, for heads of 512."""

_BLOCKED_ROWS_OF_256 = {False: 2048, True: 1024}

Route = Literal["few rows", "blocked", "products"]
Mask = Literal["array", "causal", "none"]


def route(rows: int, heads: int, kv_heads: int, dim: int, mask: Mask, keys: int, *, m5: bool = False) -> Route:
    """Return how ``rows`` queries of 16 bits attend to ``keys``; "products" are several kernels, with the scores in
    memory. ``m5``: a chip with matrix units in its GPU, on macOS 26.2 or later."""
    group = heads // kv_heads
    if rows <= ROWS:
        if dim in HEADS and rows * group <= QUERIES:
            return "few rows"
        whole = rows == 1 and group == FULL_GROUP and mask == "none" and keys >= FULL_KEYS
        return "few rows" if dim == FULL_HEAD and whole else "products"
    if mask == "causal" and dim == FULL_HEAD and rows >= BLOCKED_ROWS:
        return "blocked"
    if mask == "causal" and dim in (192, 256) and rows >= _BLOCKED_ROWS_OF_256[m5] and (m5 or rows == keys):
        return "blocked"
    return "products"


def has_kernel(rows: int, group: int, dim: int) -> bool:
    """Return True if a few rows attend under a mask in one kernel; ``group``: query heads of a K/V head."""
    return rows <= ROWS and route(rows, group, 1, dim, "array", 0) == "few rows"
