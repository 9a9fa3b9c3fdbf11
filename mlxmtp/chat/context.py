"""Whether a conversation still fits the model's context, and what can be done when it does not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

WARN_AT = 0.8
RESERVE = 1024
"""Tokens an answer needs if nobody set a limit of its own; a small context reserves at most a quarter of itself."""


@dataclass(frozen=True, slots=True)
class Fit:
    """How full the context is with the next question in it. Counts are tokens; `used` is without the answer's reserve.

    `full`: the answer would not have its reserve. Then `droppable` says how many of the oldest exchanges must go;
    None means that the question alone is too long.
    """

    used: int
    context: int
    reserve: int
    droppable: int | None = 0

    @property
    def full(self) -> bool:
        """Whether the question cannot be asked as it is."""
        return self.used + self.reserve > self.context

    @property
    def warns(self) -> bool:
        """Whether the user should be told that the end is near."""
        return not self.full and self.used + self.reserve >= WARN_AT * self.context

    @property
    def percent(self) -> int:
        """How full the context is."""
        return 100 * self.used // self.context


def reserve_for(context: int, max_tokens: int | None) -> int:
    """Tokens to keep free for the answer: its limit, or RESERVE without one; at most a quarter of the context."""
    return min(RESERVE if max_tokens is None else max_tokens, context // 4)


def fit(system: int, exchanges: Sequence[int], question: int, context: int, reserve: int) -> Fit:
    """Add up the tokens of a prompt's parts; `exchanges` are oldest first."""
    used = system + sum(exchanges) + question
    if used + reserve <= context:
        return Fit(used, context, reserve)
    left = used
    for count, tokens in enumerate(exchanges, 1):
        left -= tokens
        if left + reserve <= context:
            return Fit(used, context, reserve, count)
    return Fit(used, context, reserve, None)
