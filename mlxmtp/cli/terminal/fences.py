"""Fenced blocks of code in an answer, found while it comes."""

import re

_QUOTE = r" {0,3}> ?"
_OPENING = re.compile(
    rf"(?P<quotes>(?:{_QUOTE})*)(?P<indent> {{0,3}}|\s*(?:[-*+]|\d+[.)])?\s+)(?P<fence>`{{3,}}|~{{3,}})(?P<info>[^`]*)$"
)


class FirstFence:
    """Feed text; `block` is the content of the first fenced code block once it is closed.

    A fence with a language within the block opens one inside it: models write documents with code like that, where the
    block of CommonMark would end at the inner end. If no more ends follow, it does.
    """

    def __init__(self) -> None:
        self.block: str | None = None
        self.opening = ""  # the line that opened the block
        self._partial = self._fence = ""
        self._quote = re.compile("")  # marks of the quotation it stands in, before each line
        self._lines: list[str] = []
        self._indent = self._columns = 0  # blanks before the block, and how wide they are
        self._depth = 0  # blocks inside it that are open
        self._first_end: int | None = None  # lines before the first end of one inside

    def feed(self, text: str) -> None:
        *lines, self._partial = (self._partial + text).split("\n")
        for line in lines:
            self._take(line)

    def finish(self) -> None:
        """End the text: a block that was not closed counts as it is."""
        self._take(self._partial)
        if self._fence and self.block is None:
            if self._first_end is not None:
                del self._lines[self._first_end :]
            self._close()

    def _take(self, line: str) -> None:
        if self.block is not None:
            return
        opening = _OPENING.match(line)
        if not self._fence:
            if opening:
                self.opening, self._fence, self._indent = line, opening["fence"], len(opening["indent"])
                self._columns = len(opening["indent"].expandtabs(4))
                self._quote = re.compile(_QUOTE * opening["quotes"].count(">"))
            return
        quote = self._quote.match(line)
        if quote is None:  # the quotation has ended, and the block with it
            self._close()
            return
        line = line[quote.end() :]
        mark, within = line.strip(), self._is_within(line)
        if within and mark.startswith(self._fence) and not mark.strip(self._fence[0]):
            if not self._depth:
                self._close()
                return
            self._depth -= 1
            self._first_end = len(self._lines) if self._first_end is None else self._first_end
        elif within and opening and opening["fence"].startswith(self._fence) and opening["info"].strip():
            self._depth += 1
        blanks = len(line) - len(line.lstrip(" "))
        self._lines.append(line[min(blanks, self._indent) :])

    def _is_within(self, line: str) -> bool:
        """Return whether a fence in this line may be one: indented by 4 columns more, as in a docstring, it is code."""
        columns = line.expandtabs(4)
        return len(columns) - len(columns.lstrip(" ")) < self._columns + 4

    def _close(self) -> None:
        while self._lines and not self._lines[-1].strip():
            self._lines.pop()
        self.block = "".join(f"{line}\n" for line in self._lines)


def all_fences(text: str) -> list[str]:
    """Return the content of every fenced block of a whole answer."""
    fences = _fences(text)
    fences[-1].finish()
    return [fence.block for fence in fences if fence.block is not None]


def open_fence(text: str) -> str:
    """Return the line that opens the block in which `text` ends; empty if it ends outside of one."""
    return _fences(text)[-1].opening


def _fences(text: str) -> list[FirstFence]:
    """Return the closed blocks of `text`, then the one that is open, or a last one that never began."""
    fences = [FirstFence()]
    for line in text.split("\n"):
        fences[-1].feed(f"{line}\n")
        if fences[-1].block is not None:
            fences.append(FirstFence())
    return fences
