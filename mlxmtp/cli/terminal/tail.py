"""The last rows on a terminal, redrawn in place.

When a window gets narrower, terminals wrap the rows that no longer fit, and the cursor with them: what has to be taken
away is counted for the width of now.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mlxmtp.cli.terminal.wrap import width

MAX_ROWS = 12

_interruptions = 0  # how often another program had the terminal


def terminal_was_shared() -> None:
    """Another program has had the terminal: what stands above the cursor may be its own, so no tail is taken away."""
    global _interruptions  # noqa: PLW0603  (there is one terminal)
    _interruptions += 1


class Tail:
    """Rows below everything that is printed for good. The cursor stands at the end of the last one."""

    def __init__(self, size: Callable[[], tuple[int, int]]) -> None:
        self._size = size
        self._rows: tuple[str, ...] = ()
        self._drawn_after = _interruptions

    @property
    def room(self) -> int:
        """How many rows may be shown."""
        return max(1, min(MAX_ROWS, self._size()[1] - 1))

    def erasure(self) -> str:
        """What takes the rows away and leaves the cursor where they began."""
        if not self._rows or self._drawn_after != _interruptions:
            return ""
        columns, rows = self._size()
        above = sum(-(-max(1, width(row)) // columns) for row in self._rows) - 1
        above = min(above, rows - 1)
        # Never "clear to the end" in the first cell of a window: tmux moves what is on it into its history then.
        return f"\r\x1b[{above}A\x1b[K\x1b[B\x1b[J\x1b[A" if above else "\r\x1b[K"

    def replaced(self, rows: Sequence[str]) -> str:
        """What shows `rows` once the old ones are away."""
        self._rows = tuple(rows)
        self._drawn_after = _interruptions
        return "\n".join(rows)
