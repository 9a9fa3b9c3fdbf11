"""A line that tells a conversation from others."""

from __future__ import annotations

import unicodedata

COLUMNS = 60


def title_of(text: str, columns: int = COLUMNS) -> str:
    """The first words of `text` on one line of at most that many terminal columns, without control characters."""
    words = "".join(" " if unicodedata.category(one) in ("Cc", "Zl", "Zp") else one for one in text[: 8 * COLUMNS])
    line = " ".join(words.split())
    if _width(line) <= columns:
        return line
    while _width(line) > columns - 1:
        line = line[:-1]
    return line.rstrip() + "…"


def _width(text: str) -> int:
    """Columns on a terminal: wide characters take two, marks that combine none."""
    wide = sum(unicodedata.east_asian_width(one) in "WF" for one in text)
    return len(text) + wide - sum(unicodedata.combining(one) != 0 for one in text)
