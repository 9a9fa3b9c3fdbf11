"""Why as much is drafted as is, in words: the controller below knows numbers only."""

from __future__ import annotations

from typing import Protocol


class Drafting(Protocol):
    """What is asked of the draft length's controller (`mlxmtp.decode.depth.Depth`)."""

    limit: int
    fixed: int | None

    def best(self) -> int:
        """The draft length that is expected to be fastest now."""

    def gain(self) -> float | None:
        """Its speed, or that of the best length tried, in units of the plain speed; None until measured."""


def explain(depth: Drafting) -> str:
    """One phrase for the statistics."""
    if depth.limit == 0:
        return "no drafter"
    if depth.fixed is not None:
        return f"drafting {depth.fixed}, as asked" if depth.fixed else "not drafting, as asked"
    gain = depth.gain()
    if gain is None:
        return f"drafting {depth.best()} so far"
    if depth.best() == 0:
        return f"drafting is off: here it would give {gain:.2f} times the plain speed"
    return f"drafting {depth.best()} gives {gain:.2f} times the plain speed"
