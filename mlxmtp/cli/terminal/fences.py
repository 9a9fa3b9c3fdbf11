"""The first fenced code block of an answer, found while the answer is being written."""

from __future__ import annotations

import re

_OPENING = re.compile(r"(?P<indent> {0,3}|\s*(?:[-*+]|\d+[.)])?\s+)(?P<fence>`{3,}|~{3,})(?P<info>[^`]*)$")


class FirstFence:
    """Feed text; `block` is the content of the first fenced block once it is closed."""

    def __init__(self) -> None:
        self.block: str | None = None
        self.opening = ""  # the line that opened the block, once there is one
        self._partial = ""
        self._fence = ""
        self._indent = 0
        self._lines: list[str] | None = None

    def feed(self, text: str) -> None:
        """Take in a piece of any size."""
        if self.block is not None:
            return
        *lines, self._partial = (self._partial + text).split("\n")
        for line in lines:
            if self._line(line):
                return

    def finish(self) -> None:
        """Nothing more will come: a block that was not closed counts as it is."""
        if self.block is None and not self._line(self._partial) and self._lines is not None:
            self._close()

    def _line(self, line: str) -> bool:
        """Whether this line closed the block."""
        if self._lines is None:
            opening = _OPENING.match(line)
            if opening:
                self.opening = line
                self._fence = opening["fence"]
                self._indent = len(opening["indent"])
                self._lines = []
            return False
        mark = line.strip()
        if mark.startswith(self._fence) and not mark.strip(self._fence[0]):
            self._close()
            return True
        blanks = len(line) - len(line.lstrip(" "))
        self._lines.append(line[min(blanks, self._indent) :])
        return False

    def _close(self) -> None:
        lines = self._lines or []
        while lines and not lines[-1].strip():
            lines.pop()
        self.block = "".join(f"{line}\n" for line in lines)


def all_fences(text: str) -> list[str]:
    """The content of every fenced block of a whole answer."""
    blocks: list[str] = []
    fence = FirstFence()
    for line in text.split("\n"):
        fence.feed(f"{line}\n")
        if fence.block is not None:
            blocks.append(fence.block)
            fence = FirstFence()
    fence.finish()
    return blocks if fence.block is None else [*blocks, fence.block]


def open_fence(text: str) -> str:
    """The line that opens the block in which `text` ends; empty if it ends outside of one."""
    fence = FirstFence()
    for line in text.split("\n"):
        fence.feed(f"{line}\n")
        if fence.block is not None:
            fence = FirstFence()
    return fence.opening
