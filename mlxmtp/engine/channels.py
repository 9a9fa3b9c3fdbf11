"""The channels of an answer told apart: `<|channel>thought\\n … <channel|>` is thought, everything else is text.

The marks are tokens of their own; a conversion with another tokenizer, or a quotation, may spell them
as plain text, and then they mean the same. Contracts: a thought never comes out as Text, the channel's name
never comes out at all, and a thought that is not closed stays a thought to the end.
"""

from __future__ import annotations

import re

from mlxmtp.engine.events import Text, Thinking

OPEN = "<|channel>"
CLOSE = "<channel|>"
_MARKS = (OPEN, CLOSE)
_MARK = re.compile("|".join(map(re.escape, _MARKS)))
_NAME = "thought"


class Splitter:
    """Feed text in pieces of any size, with the marks in it; get `Text` and `Thinking` as soon as they are certain.

    An empty `Thinking` says that a thought has begun, of which nothing is there yet.

    `inside` starts in a thought whose name line has been read, as when the prompt itself opened it.
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
        certain = len(self._pending) - _start_of_mark(self._pending)
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


def _start_of_mark(text: str) -> int:
    """Return the length of the longest end of `text` that a mark begins with."""
    longest = min(len(text), max(map(len, _MARKS)) - 1)
    return next((n for n in range(longest, 0, -1) if any(mark.startswith(text[-n:]) for mark in _MARKS)), 0)
