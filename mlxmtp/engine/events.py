"""The events of an answer: any number of `Text` and `Thinking`, then one `End`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from mlxmtp.engine.stats import Stats

FinishReason = Literal["stop", "length", "tool", "cancelled"]
"""The model stopped, the length ran out, it waits for a tool, or it was cancelled."""


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of the answer, whole characters only."""

    text: str


@dataclass(frozen=True, slots=True)
class Thinking:
    """A piece of the model's reasoning, which is no part of the answer; the first may be empty: it has begun."""

    text: str


@dataclass(frozen=True, slots=True)
class End:
    """The end of an answer, with its numbers."""

    finish_reason: FinishReason
    stats: Stats


Event = Text | Thinking | End
