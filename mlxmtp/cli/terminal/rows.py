"""Rows of a terminal: free of control characters, measured in columns, wrapped, aligned, redrawn in place."""

import re
from collections.abc import Callable, Sequence

from mlxmtp.cli.terminal.keyboard import modes
from mlxmtp.units import text_width

Row = list[tuple[str, str]]
"""Pieces of one row: the parameters of the escape code that sets its style (`1;36`), and text."""

_TAB = 8  # columns between two stops of every terminal
# The last two ranges turn the order of characters around: text would not be what it looks like (CVE-2021-42574).
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_BREAKS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_WORD = re.compile(r"\S+\s*|\s+")
_NARROWEST = 20  # columns in which words can still be read beside a name
_PARTS = re.compile(r"\n|[^\S\n]+|\S+")
_LONGEST_WORD = 40  # characters that wait for their end


def without_controls(text: str) -> str:
    """Return text that cannot move the cursor or change the terminal; newlines and tabs stay.

    What would turn the order of characters around is shown as a mark, `<U+202E>`.
    """
    return _CONTROLS.sub(lambda found: f"<U+{ord(found[0]):04X}>" if found[0] > "\u2000" else "", text)


def dim(text: str) -> str:
    """Return text without control characters between the codes that dim it."""
    return f"\x1b[2m{without_controls(text)}\x1b[0m" if text else ""


def bold(text: str) -> str:
    """Return text without control characters between the codes that embolden it."""
    return f"\x1b[1m{without_controls(text)}\x1b[0m"


def one_line(text: str) -> str:
    """Return text without control characters and line ends: blanks stand for them."""
    return _BREAKS.sub(" ", text)


def cropped(text: str, columns: int) -> str:
    """Return the start of `text` that fits into one row."""
    row, columns = one_line(text), max(columns, 0)
    while text_width(row) > columns:
        row = row[: columns if len(row) > columns else -1]
    return row


def wrapped(text: str, columns: int) -> list[str]:
    """Return rows of at most `columns` columns, broken between words where that is possible."""
    columns = max(columns, 2)  # a wide character needs two
    rows: list[str] = []
    for line in _lines(text):
        row = ""
        for word in _WORD.findall(line):
            if text_width((row + word).rstrip()) <= columns:
                row += word
                continue
            if row.strip():
                rows.append(row.rstrip())
            *full, row = _chopped(word, columns)
            rows += full
        rows.append(row.rstrip())
    return rows


class Flow:
    """Text that comes in pieces, broken between words: a word waits until it has ended."""

    def __init__(self, columns: Callable[[], int]) -> None:
        self._columns = columns
        self._word = ""
        self._used = 0  # columns of the row

    def feed(self, text: str) -> str:
        """Return what can be shown after this piece."""
        parts = _PARTS.findall(self._word + without_controls(text).replace("\t", "    "))
        self._word = parts.pop() if parts and _may_go_on(parts[-1]) else ""
        return "".join(map(self._placed, parts))

    def rest(self) -> str:
        """Return the word that was waiting: no more comes, and what comes after that begins a row."""
        word, self._word = self._placed(self._word), ""
        self._used = 0
        return word

    def _placed(self, part: str) -> str:
        columns, width = max(self._columns(), 2), text_width(part)
        if part == "\n":
            self._used = 0
        elif self._used + width <= columns:
            self._used += width
        elif part.isspace():  # the row ends here
            self._used, part = columns, ""
        else:
            rows = _chopped(part, columns)
            part = "\n" * bool(self._used) + "\n".join(rows)
            self._used = text_width(rows[-1])
        return part


def _may_go_on(part: str) -> bool:
    """Return whether this is the beginning of a word; those of wide characters are broken anywhere."""
    return not part.isspace() and len(part) == text_width(part) <= _LONGEST_WORD


def folded(text: str, columns: int) -> list[str]:
    """Return rows of at most `columns` columns, broken wherever they are full; blanks may stand over."""
    return [row for line in _lines(text) for row in _chopped(line, max(columns, 2))]


def joined(parts: list[str], separator: str, columns: int) -> list[str]:
    """Return `parts` with `separator` between two of a row, as few rows as possible; no part is broken."""
    rows: list[str] = []
    for part in parts:
        if rows and text_width(rows[-1] + separator + part) <= columns:
            rows[-1] += separator + part
        else:
            rows.append(part)
    return rows


def listed(rows: Sequence[tuple[str, str]], columns: int) -> list[str]:
    """Return names with what belongs to each in a second column, or below where the window is too narrow for two."""
    indent = max((text_width(name) for name, _ in rows), default=0) + 2
    narrow = columns - indent < _NARROWEST
    if narrow:
        indent = 2
    found: list[str] = []
    for name, text in rows:
        first, *rest = wrapped(text, columns - indent)
        found += [name, " " * indent + first] if narrow else [_aligned(name, indent) + first]
        found += [" " * indent + row for row in rest]
    return found


def columns_of(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> list[str]:
    """Return rows of cells as aligned lines; columns numbered in `right` are aligned to the right."""
    widths = [max(map(text_width, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(_aligned(cell, widths[at], right=at in right) for at, cell in enumerate(row)).rstrip() for row in rows
    ]


def coded(row: Row) -> str:
    """Return a row with its escape codes; blanks at its end, which people would copy, are left out."""
    text = "".join(text for _, text in row)
    left = len(text.rstrip(" "))
    codes = []
    for style, piece in row:
        shown, left = piece[:left], max(0, left - len(piece))
        codes.append(f"\x1b[{style}m{shown}\x1b[0m" if style and shown else shown)
    return "".join(codes)


def split(row: Row, columns: int) -> list[Row]:
    """Return the rows that a terminal makes of one, with blanks for tabs."""
    found: list[Row] = [[]]
    used = 0
    for style, text in row:
        piece = ""
        for one in text if "\t" in text or used + text_width(text) > columns else [text]:
            part = " " * (_TAB - used % _TAB) if one == "\t" else one
            width = text_width(part)
            if used + width > columns and used:
                found[-1].append((style, piece))
                found.append([])
                piece, used = "", 0
            piece += part
            used += width
        found[-1].append((style, piece))
    return found


class RedrawnRows:
    """Rows below everything printed for good, replaced in place; erased at the width of now, as terminals wrap."""

    def __init__(self, size: Callable[[], tuple[int, int]], most: int | None = None) -> None:
        """`most` rows are shown at once, or as many as the window has room for."""
        self._size, self._most = size, most
        self._rows: Sequence[str] = ()
        self._drawn_after = modes.interruptions

    @property
    def limit(self) -> int:
        room = max(1, self._size()[1] - 1)
        return room if self._most is None else min(self._most, room)

    def erasure(self, same: int = 0) -> str:
        """Return the codes that erase the rows but the first `same`; none after another program had the terminal."""
        if not self._rows or self._drawn_after != modes.interruptions:
            return ""
        columns, rows = self._size()
        above = sum(-(-max(1, text_width(_COLOUR.sub("", row))) // columns) for row in self._rows[same:]) - 1
        above = min(above, rows - 1)
        # Never "clear to the end" in the first cell of a window: tmux moves what is on it into its history then.
        return f"\r\x1b[{above}A\x1b[K\x1b[B\x1b[J\x1b[A" if above > 0 else "\r\x1b[K"

    def replace(self, rows: Sequence[str], printed: str = "") -> str:
        """Return the frame that erases the old rows, prints text for good and shows the new rows below it.

        Rows that stay as they are at the beginning are not sent again.
        """
        same = 0
        if not printed and self._drawn_after == modes.interruptions and len(rows) >= len(self._rows):
            pairs = zip(self._rows[:-1], rows, strict=False)
            same = next((at for at, (old, new) in enumerate(pairs) if old != new), max(0, len(self._rows) - 1))
        frame = self.erasure(same) + printed + "\n".join(rows[same:])
        self._rows = tuple(rows)
        self._drawn_after = modes.interruptions
        return frame


def _lines(text: str) -> list[str]:
    return without_controls(text).expandtabs(4).split("\n")


def _chopped(line: str, columns: int) -> list[str]:
    if line.isascii():  # the same, and a pasted megabyte without a wait
        return re.findall(rf"[\s\S]{{1,{columns}}}\s*", line) or [""]
    pieces = [""]
    for character in line:
        if text_width(pieces[-1] + character) > columns and not character.isspace():
            pieces.append("")
        pieces[-1] += character
    return pieces


def _aligned(cell: str, columns: int, *, right: bool = False) -> str:
    blanks = " " * (columns - text_width(cell))
    return blanks + cell if right else cell + blanks
