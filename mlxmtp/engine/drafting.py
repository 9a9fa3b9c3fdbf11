"""Why as much is drafted as is, in words: the controller below knows numbers only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class Drafting(Protocol):
    """What is asked of the draft length's controller (`mlxmtp.decode.depth.Depth`)."""

    limit: int
    fixed: int | None

    def best(self) -> int:
        """The draft length that is expected to be fastest now."""

    def gain(self) -> float | None:
        """Its speed, or that of the best length tried, in units of the plain speed; None until measured."""

    def accepted(self) -> float | None:
        """Expected share of first draft tokens that are accepted; None before anything was drafted."""

    def price(self) -> float | None:
        """Time of one more draft token in units of a plain round; None until measured."""

    def learned(self) -> dict[str, Any]:
        """What another process can begin with, as JSON takes it; empty until there is something to know."""

    def start_from(self, learned: Mapping[str, Any]) -> None:
        """Begins with what `learned` gave; raises ValueError for anything else."""


def explain(depth: Drafting) -> str:
    """One phrase for the statistics: the length, what it gains, and the two numbers that decide."""
    if depth.limit == 0:
        return "no drafter"
    if depth.fixed is not None:
        return f"drafting {depth.fixed}, as asked" if depth.fixed else "not drafting, as asked"
    best, gain = depth.best(), depth.gain()
    if gain is None:
        said = f"drafting {best} so far"
    elif best == 0:
        said = f"drafting is off, at best it would give {gain:.2f} times the plain speed"
    else:
        said = f"drafting {best} gives {gain:.2f} times the plain speed"
    why = _why(depth)
    return f"{said} ({why})" if why else said


def _why(depth: Drafting) -> str:
    accepted, price = depth.accepted(), depth.price()
    parts = [] if accepted is None else [f"{100 * accepted:.0f} % of first drafts accepted"]
    if price is not None:
        parts.append(f"a draft token costs {price:.2f} of a plain pass")
    return ", ".join(parts)
