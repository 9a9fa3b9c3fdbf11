"""Which part of an answer is thought: `<|channel>thought\\n … <channel|>` out of the stream, everything else is text.

The marks are tokens of their own; a conversion with another tokenizer, or a quotation, may spell them
as plain text, and then they mean the same. Contracts: a thought never comes out as Text, the channel's name
never comes out at all, and a thought that is not closed stays a thought to the end.
"""

from __future__ import annotations

from mlxmtp.engine.events import Text, Thinking

OPEN = "<|channel>"
CLOSE = "<channel|>"
_NAME = "thought"


class Splitter:
    """Feed text in pieces of any size, with the marks in it; get `Text` and `Thinking` as soon as they are certain.

    An empty `Thinking` says that a thought has begun, of which nothing is there yet.

    `inside` starts in a thought whose name line has been read, as when the prompt itself opened it.
    """

    def __init__(self, *, inside: bool = False) -> None:
        self._inside = self._began = inside
        self._naming = False
        self._held = ""

    def feed(self, piece: str) -> list[Text | Thinking]:
        """Events that are certain now. Text that may be the start of a mark is held back."""
        self._held += piece
        events: list[Text | Thinking] = [Thinking("")] if self._began else []
        self._began = False
        while True:
            mark, at = _first_mark(self._held)
            if mark is None:
                break
            self._emit(self._held[:at], events, closing=True)
            self._held = self._held[at + len(mark) :]
            self._inside = self._naming = mark == OPEN
            if mark == OPEN:
                events.append(Thinking(""))
        keep = _start_of_mark(self._held)
        certain, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        rest = self._emit(certain, events, closing=False)
        self._held = rest + self._held
        return events

    def finish(self) -> list[Text | Thinking]:
        """What was held back, when nothing more will come."""
        events: list[Text | Thinking] = []
        self._emit(self._held, events, closing=True)
        self._held = ""
        return events

    def _emit(self, text: str, events: list[Text | Thinking], *, closing: bool) -> str:
        """Append `text` as the right event; returns what must wait for more because it may be the channel's name."""
        if self._naming:
            line, newline, rest = text.partition("\n")
            if not newline and not closing and _NAME.startswith(line.strip()):
                return text
            self._naming = False
            text = rest if line.strip() == _NAME else text
        if text:
            events.append(Thinking(text) if self._inside else Text(text))
        return ""


def _first_mark(text: str) -> tuple[str | None, int]:
    found = [(at, mark) for mark in (OPEN, CLOSE) if (at := text.find(mark)) >= 0]
    if not found:
        return None, -1
    at, mark = min(found)
    return mark, at


def _start_of_mark(text: str) -> int:
    """Length of the longest end of `text` that a mark begins with."""
    longest = min(len(text), len(OPEN) - 1)
    return next((n for n in range(longest, 0, -1) if OPEN.startswith(text[-n:]) or CLOSE.startswith(text[-n:])), 0)
