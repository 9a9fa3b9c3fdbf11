"""Plain text as terminal rows, by columns rather than characters."""

from __future__ import annotations

import re
from collections.abc import Sequence

_ESCAPE = re.compile(r"\x1b\[[0-9;]*m")
_WORD = re.compile(r"\S+\s*|\s+")
_NARROWEST = 20  # columns in which words can still be read beside a name


def width(row: str) -> int:
    """Columns of one row; colours take none. Only wide characters need rich."""
    plain = _ESCAPE.sub("", row)
    if plain.isascii():
        return len(plain)
    from rich.cells import cell_len

    return cell_len(plain)


def wrapped(text: str, columns: int) -> list[str]:
    """Rows of at most `columns` columns, broken between words where that is possible."""
    columns = max(columns, 2)  # a wide character needs two
    rows: list[str] = []
    for line in text.expandtabs(4).split("\n"):
        row = ""
        for word in _WORD.findall(line):
            if width((row + word).rstrip()) <= columns:
                row += word
                continue
            if row.strip():
                rows.append(row.rstrip())
            *full, row = chopped(word, columns)
            rows += full
        rows.append(row.rstrip())
    return rows


def joined(parts: list[str], separator: str, columns: int) -> list[str]:
    """`parts` with `separator` between two of a row, as few rows as possible; no part is broken."""
    rows: list[str] = []
    for part in parts:
        if rows and width(rows[-1] + separator + part) <= columns:
            rows[-1] += separator + part
        else:
            rows.append(part)
    return rows


def listed(rows: Sequence[tuple[str, str]], columns: int) -> list[str]:
    """Names and what belongs to each in a second column; below the name where the window is too narrow for two."""
    indent = max((width(name) for name, _ in rows), default=0) + 2
    narrow = columns - indent < _NARROWEST
    if narrow:
        indent = 2
    found: list[str] = []
    for name, text in rows:
        first, *rest = wrapped(text, columns - indent)
        found += [name, " " * indent + first] if narrow else [name + " " * (indent - width(name)) + first]
        found += [" " * indent + row for row in rest]
    return found


def chopped(word: str, columns: int) -> list[str]:
    """Text in pieces that fit, wherever they end; blanks at the end of one may stand over."""
    if word.isascii():  # the same, and a pasted megabyte without a wait
        return re.findall(rf"[\s\S]{{1,{columns}}}\s*", word) or [""]
    pieces = [""]
    for character in word:
        if width(pieces[-1] + character) > columns and not character.isspace():
            pieces.append("")
        pieces[-1] += character
    return pieces
