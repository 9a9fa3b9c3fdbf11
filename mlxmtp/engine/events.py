"""The events of an answer: any number of `Text` and `Thinking`, with tools of `Calling` and `Call`, then one `End`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mlxmtp.engine.stats import Stats

FinishReason = Literal["stop", "length", "tool", "cancelled"]  # "tool": it waits for a tool's result

OPEN, CLOSE = _MARKS = ("<|channel>", "<channel|>")
_MARK = re.compile("|".join(map(re.escape, _MARKS)))
_NAME = "thought"  # of the channel: its first line


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """The natural logarithm of a token's probability, its bytes, and the likeliest tokens of its place."""

    token: int
    bytes: bytes
    logprob: float
    top: tuple["TokenLogprob", ...] = ()


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of the answer, whole characters only; `logprobs`, if asked for, of the tokens that end with it."""

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Thinking:
    """A piece of the model's reasoning, which is no part of the answer; the first may be empty: it has begun."""

    text: str


@dataclass(frozen=True, slots=True)
class Calling:
    """A tool call is being written. It may turn out to be none: only a `Call` may be acted upon."""


@dataclass(frozen=True, slots=True)
class Call:
    """A complete call; `tokens` are the ids that wrote it, marks included; `id`: by which a server knows it."""

    name: str
    arguments: dict[str, Any]
    tokens: tuple[int, ...] = ()
    id: str = ""


@dataclass(frozen=True, slots=True)
class Waiting:
    """Nothing has come yet of an answer that shares the model with others (`engine/streams.py`); it stays there."""


@dataclass(frozen=True, slots=True)
class End:
    """The end of an answer, with its numbers; `stop` is the stop string that ended it."""

    finish_reason: FinishReason
    stats: Stats
    stop: str | None = None


Event = Text | Thinking | Calling | Call | Waiting | End


class Splitter:
    """Feed text in pieces of any size, with the marks in it; get `Text` and `Thinking` as soon as they are certain.

    An empty `Thinking` says that a thought has begun. `inside` starts in a thought whose name line has been read. A
    thought never comes out as Text, nor the channel's name at all. The marks may be tokens or spelled as plain text.
    """

    def __init__(self, *, inside: bool = False) -> None:
        self._inside = self._began = inside
        self._naming = False
        self._pending = ""

    @property
    def inside(self) -> bool:
        """True while a thought is being written."""
        return self._inside

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
        certain = len(self._pending) - _start_of(_MARKS, self._pending)
        rest = self._emit(self._pending[:certain], events, closing=False)
        self._pending = rest + self._pending[certain:]
        return events

    def feed_plain(self, piece: str) -> list[Text | Thinking]:
        """Return the events that are certain now, after text in which nothing is a mark."""
        events: list[Text | Thinking] = [Thinking("")] if self._began else []
        self._began = False
        self._pending = self._emit(self._pending + piece, events, closing=False)
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


class StopStrings:
    """Feed text in pieces of any size; get what is certain to come before the first of some strings, `stop`."""

    def __init__(self, strings: Sequence[str]) -> None:
        self._strings, self._pending = strings, ""
        self.stop: str | None = None

    @property
    def found(self) -> bool:
        """True when no more text counts."""
        return self.stop is not None

    def feed(self, piece: str) -> str:
        """Return the text that is certain now; nothing more after a string was found."""
        text = self._pending + piece
        places = [(place + len(one), place, one) for one in self._strings if (place := text.find(one)) >= 0]
        if places:  # the first to be complete, however the text comes in pieces; of those the longest
            _, end, self.stop = min(places)
        else:
            end = len(text) - _start_of(self._strings, text)
        self._pending = text[end:]
        return text[:end]

    def finish(self) -> str:
        """Return what had to wait, when no more of this text will come."""
        text, self._pending = self._pending, ""
        return "" if self.found else text


def _start_of(marks: Sequence[str], text: str) -> int:
    """Return the length of the longest end of `text` that one of `marks` begins with."""
    longest = min(len(text), max(map(len, marks), default=1) - 1)
    return next((n for n in range(longest, 0, -1) if any(mark.startswith(text[-n:]) for mark in marks)), 0)
