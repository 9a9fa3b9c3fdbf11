"""The share of the model's context that a conversation fills, and what must go when it is full."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

WARN_AT = 0.8
RESERVE = 1024
"""Tokens an answer needs if nobody set a limit of its own; a small context reserves at most an eighth of itself."""


@dataclass(frozen=True, slots=True)
class Fit:
    """A prompt beside the context. Counts are tokens; `used` includes the next question, not the answer's reserve.

    `full`: the answer would not have its reserve. Then `droppable` says how many of the oldest exchanges must go;
    None means that the question alone is too long.
    """

    used: int
    context: int
    reserve: int
    droppable: int | None = 0

    @property
    def full(self) -> bool:
        return self.used + self.reserve > self.context

    @property
    def warns(self) -> bool:
        """True if the user should be told that the end is near."""
        return not self.full and self.used >= WARN_AT * self.context

    @property
    def percent(self) -> int:
        return 100 * self.used // self.context


def reserve_for(context: int, max_tokens: int | None) -> int:
    """Return the tokens to leave for the answer: its limit, or RESERVE; at most an eighth of the context."""
    return min(RESERVE if max_tokens is None else max_tokens, context // 8)


def fit(used: int, exchanges: Sequence[int], context: int, reserve: int) -> Fit:
    """Judge a prompt of `used` tokens, the new question included; `exchanges` are the shares of it, oldest first.

    A share may be a lower bound (the text without the template's marks): then more is dropped than need be, never less.
    """
    if used + reserve <= context:
        return Fit(used, context, reserve)
    left = used
    for count, tokens in enumerate(exchanges, 1):
        left -= tokens
        if left + reserve <= context:
            return Fit(used, context, reserve, count)
    return Fit(used, context, reserve, None)
