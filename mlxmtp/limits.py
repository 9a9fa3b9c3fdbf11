"""Numbers that rings share. Imports nothing, so that settings and predictions cost no MLX."""

from __future__ import annotations

MAX_DRAFT = 8
"""Draft tokens of a round at most: longer ones are slower on every machine that was measured."""

SLACK = 64
"""Ring rows beyond the window: what two rounds in flight write (2 * 9) and what a small rewind may take back."""

STEP = 256
"""Smallest step by which a KV cache grows, in rows. A new capacity costs a new trace of the round."""

SNAPSHOTS, SNAPSHOT_BYTES = 8, 768 * 2**20
"""Most snapshots, in number and in bytes all together; the newest always stays."""

QUANTIZED_DRAFTER_FROM = 200_000_000
"""Parameters from which a drafter is quantized when nobody says otherwise. Large ones (12B, 26B, 31B: 0.42 to 0.47
billion) keep their acceptance at 4 bits, and their head is what a draft step reads most of; the small ones with a
centroid head keep 16 bits."""
