"""The events of an answer: any number of `Text` and `Thinking`, with tools of `Calling` and `Call`, then one `End`."""

import re
from dataclasses import dataclass
from typing import Any, Literal

from mlxmtp.engine.stats import Stats

FinishReason = Literal["stop", "length", "tool", "cancelled"]  # "tool": it waits for a tool's result

OPEN, CLOSE = _MARKS = ("<|channel>", "<channel|>")
_MARK = re.compile("|".join(map(re.escape, _MARKS)))
_NAME = "thought"  # of the channel: its first line


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of the answer, whole characters only."""

    text: str


@dataclass(frozen=True, slots=True)
class Thinking:
    """A piece of the model's reasoning, which is no part of the answer; the first may be empty: it has begun."""

    text: str


@dataclass(frozen=True, slots=True)
class Calling:
    """A tool call is being written. It may turn out to be none: only a `Call` may be acted upon."""


@dataclass(frozen=True, slots=True)
class Call:
    """A complete call; `tokens` are the ids that wrote it, marks included."""

    name: str
    arguments: dict[str, Any]
    tokens: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class End:
    """The end of an answer, with its numbers."""

    finish_reason: FinishReason
    stats: Stats


Event = Text | Thinking | Calling | Call | End


class Splitter:
    """Feed text in pieces of any size, with the marks in it; get `Text` and `Thinking` as soon as they are certain.

    An empty `Thinking` says that a thought has begun. `inside` starts in a thought whose name line has been read. A
    thought never comes out as Text, nor the channel's name at all. The marks may be tokens or spelled as plain text.
    """

    def __init__(self, *, inside: bool = False) -> None:
        self._inside = self._began = inside
        self._naming = False
        self._pending = ""

    def feed(self, piece: str) -> list[Text | Thinking]:
        """Return the events that are certain now; text that may be the start of a mark has to wait."""
        self._pending += piece
        events: list[Text | Thinking] = [Thinking("")] if self._began else []
        self._began = False
        while mark := _MARK.search(self._pending):
            self._emit(self._pending[: mark.start()], events, closing=True)
            self._pending = self._pending[mark.end() :]
            self._inside = self._naming = mark[0] == OPEN
            if self._inside:
                events.append(Thinking(""))
        starts = range(max(0, len(self._pending) - max(map(len, _MARKS)) + 1), len(self._pending))
        begun = (at for at in starts if any(mark.startswith(self._pending[at:]) for mark in _MARKS))
        certain = next(begun, len(self._pending))
        rest = self._emit(self._pending[:certain], events, closing=False)
        self._pending = rest + self._pending[certain:]
        return events

    def finish(self) -> list[Text | Thinking]:
        """Return what had to wait, when nothing more will come."""
        events: list[Text | Thinking] = []
        self._emit(self._pending, events, closing=True)
        self._pending = ""
        return events

    def _emit(self, text: str, events: list[Text | Thinking], *, closing: bool) -> str:
        """Append `text` as the right event; return what must wait for more because it may be the channel's name."""
        if self._naming:
            line, newline, rest = text.partition("\n")
            if not newline and not closing and _NAME.startswith(line.strip()):
                return text
            self._naming = False
            text = rest if line.strip() == _NAME else text
        if text:
            events.append(Thinking(text) if self._inside else Text(text))
        return ""
