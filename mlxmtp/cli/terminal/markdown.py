"""Markdown on a terminal while it is written: what is certain is printed once and for good, the rest is redrawn."""

import re
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from mlxmtp.cli.terminal.layout import lay_out, parser, warm_up
from mlxmtp.cli.terminal.rows import RedrawnRows, Row, coded, split, without_controls

__all__ = ["FRAME_SECONDS", "MarkdownStream", "finished_length", "warm_up"]

FRAME_SECONDS = 0.05
_FENCE = re.compile(r" {0,3}(```+|~~~+)")
_CLOSED_BY_BLANK = frozenset({"paragraph_open", "table_open", "blockquote_open"})
_CLOSED_BY_NEWLINE = frozenset({"heading_open", "hr", "formula"})
_CONTEXT = 12  # lines of code that are printed already and still laid out, for the colours of those that follow


class MarkdownStream:
    """Feed text as it comes; `draw` gets one string a frame, `size()` gives columns and rows of the terminal now."""

    def __init__(
        self,
        draw: Callable[[str], None],
        size: Callable[[], tuple[int, int]],
        *,
        color: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.undrawn = False  # or text waits for the next frame: `refresh` draws it
        self._send, self._size, self._color, self._clock = draw, size, color, clock
        self._open = ""
        self._firm = 0  # rows at the beginning of the open text that were printed for good
        self._columns = 0  # that those were laid out for: the rest of the block is, too
        self._follows = False  # the open text goes on with a list, without a blank row
        self._printed = False
        self._checked = 0  # characters of the open text that were searched for finished blocks
        self._end = RedrawnRows(size)
        self._drawn_at = float("-inf")

    def feed(self, text: str) -> None:
        self._open += without_controls(text)
        if not self._printed:
            self._open = self._open.lstrip("\n")
        length = self._finished()
        now = self._clock()
        self.undrawn = True
        if length or now - self._drawn_at >= FRAME_SECONDS:
            self._draw(length)
            self._drawn_at = now

    def refresh(self) -> None:
        if self.undrawn and self._clock() - self._drawn_at >= FRAME_SECONDS:
            self._draw(0)
            self._drawn_at = self._clock()

    def settle(self) -> None:
        """Print what is open for good, because something else is written below; more text begins a new block."""
        self._draw(len(self._open), last=True)

    def finish(self) -> None:
        """Print what is still open; the cursor is at the start of a line afterwards."""
        self.settle()
        if not self._printed:
            self._send("\n")

    def _draw(self, length: int, *, last: bool = False) -> None:
        """Print the first `length` characters of the open text for good, and of the rest what nothing can change."""
        # Ctrl-C may come while it is laid out: the state changes afterwards.
        firm, printed, columns = self._firm, self._printed, self._size()[0]
        follows, rest = self._follows, self._open[length:]
        done: list[Row] = []
        for block, joins in _blocks(self._open[:length], follows):
            rows, _ = self._lay_out(block, firm)
            done += [[]] if printed and rows and not firm and not joins else []
            done += rows[firm:]
            firm, printed = 0, printed or bool(rows)
        if length:
            follows = not last and _goes_on(self._open, length)
        laid_out_for = self._columns if firm else columns
        tail: list[Row] = []
        for number, (block, joins) in enumerate(_blocks(rest, follows)):
            rows, certain = self._lay_out(block, firm)
            gap: list[Row] = [[]] if (printed or tail) and rows and not joins and not (firm and number == 0) else []
            if number == 0 and certain > firm:
                done += gap + rows[firm:certain]
                firm, gap, printed = certain, [], True
            tail += gap + (rows[firm:] if number == 0 else rows)
        rest, firm = _shortened(rest, firm)
        shown = [coded(piece) for row in tail for piece in split(row, columns)][-self._end.limit :]
        frame = self._end.replace(shown, printed="".join(f"{coded(row)}\n" for row in done))
        self._open, self._firm, self._columns = rest, firm, laid_out_for
        self._follows, self._printed = follows, printed
        self._checked = 0 if length else min(self._checked, len(rest))
        self.undrawn = False
        if frame:
            self._send(frame)

    def _lay_out(self, block: str, firm: int) -> tuple[list[Row], int]:
        """Return the rows of a block, as wide as those of it that are printed, and how many of them are certain."""
        return lay_out(block, self._columns if firm else self._size()[0], color=self._color)

    def _finished(self) -> int:
        """Return how many characters of the open text are finished blocks."""
        end = self._open.rfind("\n") + 1
        fresh = self._open[max(0, self._open.rfind("\n", 0, self._checked)) : end].split("\n")[:-1]
        # Only such lines end a block or begin an item: parsing at every other line would be in vain.
        if end <= self._checked or not any(_ENDS_BLOCK.match(line) for line in fresh):
            return 0
        self._checked = end
        return finished_length(self._open[:end])


_ENDS_BLOCK = re.compile(r"\s*(?:$|#|```|~~~|[-*+]\s|\d+[.)]\s|.*(?:\$\$|\\\])\s*$)")


def finished_length(text: str) -> int:
    """Return how many characters at the start of `text` (whole lines) are blocks that nothing can change any more.

    The items of a list at the top are blocks of their own.
    """
    lines = text.split("\n")
    blocks = _top_level(text)
    if not blocks:
        return 0
    start, end = blocks[-1].map
    if _is_closed(blocks[-1], lines):
        start = end
    return len("\n".join(lines[:start])) + (1 if start else 0)


def _top_level(text: str) -> list[Any]:
    """Return the opening token of every block, and of every item instead of their list."""
    lists = ("bullet_list_open", "ordered_list_open")
    found, in_list = [], False
    for token in parser().parse(text):
        if token.level == 0:
            in_list = token.type in lists
        if token.map and token.nesting >= 0 and ((token.level == 0 and not in_list) or _is_item(token)):
            found.append(token)
    return found


def _is_item(token: Any) -> bool:
    return bool(token.type == "list_item_open" and token.level == 1)


def _blocks(text: str, follows: bool) -> list[tuple[str, bool]]:
    """Return the source of every block at the top, and whether it stands close to the one before, in one list."""
    lines = text.split("\n")
    tokens = _top_level(text)
    found = []
    for before, token, after in zip([None, *tokens], tokens, [*tokens[1:], None], strict=False):
        begin, end = token.map[0], len(lines) if after is None else after.map[0]
        joins = follows if before is None else _joins(before, token, lines)
        found.append(("\n".join(lines[begin:end]), joins))
    return found


def _joins(before: Any, token: Any, lines: list[str]) -> bool:
    same = _is_item(before) and _is_item(token) and before.markup == token.markup
    return bool(same and lines[token.map[0] - 1].strip())


def _goes_on(text: str, length: int) -> bool:
    """Return whether what follows the first `length` characters is the next item of their last list, close to it."""
    tokens = _top_level(text)
    line = text.count("\n", 0, length)
    return any(_joins(one, other, text.split("\n")) for one, other in pairwise(tokens) if other.map[0] == line)


def _shortened(text: str, firm: int) -> tuple[str, int]:
    """Return an open block of code without lines that are printed, but for some; laying out all would cost too much."""
    if firm <= 2 * _CONTEXT or not _FENCE.match(text):
        return text, firm
    opening, *lines = text.split("\n")
    more = firm - (1 if " " in opening.strip(" `~") else 0) - _CONTEXT
    return "\n".join([opening, *lines[more:]]), firm - more


def _is_closed(block: Any, lines: list[str]) -> bool:
    start, end = block.map
    if block.type == "fence":
        return bool(block.content.count("\n") < end - start - 1)  # the last line is none of the code
    if block.type == "formula" and end >= len(lines) - 1:
        last = lines[end - 1].rstrip()
        return bool(last.endswith("$$" if lines[start].lstrip().startswith("$$") else "\\]") and last.strip() != "$$")
    followed_by_blank = end < len(lines) - 1 and not lines[end].strip()
    return block.type in _CLOSED_BY_NEWLINE or (block.type in _CLOSED_BY_BLANK and followed_by_blank)
