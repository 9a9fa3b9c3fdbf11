"""Markdown laid out as rows of a terminal: every word of the source is there, and no newline within code or an address.

Prose is wrapped between words. A line of code, an address or inline code that is too long stays one row: the terminal
folds it, and what is copied is what the model wrote. Formulas are shown as they are written. Importing markdown-it and
pygments takes a while: at the first text, or before in `warm_up`.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

from mlxmtp.cli.terminal.rows import Row
from mlxmtp.units import text_width

Piece = tuple[str, str, bool]
"""Style, text, and whether the text is one word even where it has blanks."""

_BOLD, _ITALIC, _STRUCK, _QUOTED, _DIM, _CODE = "1", "3", "9", "3", "2", "1;36"
_FORMULA = re.compile(
    r"\$\$.+?\$\$|\\\[.+?\\\]|\\\(.+?\\\)|\$(?![\s$])(?:[^$\n\\]|\\.)*?(?<![\s\\])\$(?!\d)", re.DOTALL
)
_ENDS_FORMULA = {"$$": "$$", "\\[": "\\]"}
_BLANK = re.compile(r"([ \t]+)")
_MARKS = re.compile(r"(?:\s|>|(?:[-*+]|\d{1,9}[.)])\s)*")  # of the quotations and items that a row stands in
_MARKED = {"strong": _BOLD, "em": _ITALIC, "s": _STRUCK}
_NARROWEST_CELL = 12  # columns of a cell of prose: narrower ones cannot be read, and the rows of the source are shown
_COLOURS = {
    "Comment": "2", "Keyword": "94", "Literal.String": "32", "Literal.Number": "36", "Name.Builtin": "36",
    "Name.Function": "1", "Name.Class": "1", "Name.Decorator": "35", "Name.Tag": "94", "Generic.Deleted": "31",
    "Generic.Inserted": "32", "Generic.Heading": "1",
}  # fmt: skip


def warm_up() -> None:
    """Import what drawing needs, which takes a while."""
    from pygments import lexers

    del lexers
    parser()


def lay_out(text: str, columns: int, *, color: bool = True) -> tuple[list[Row], int]:
    """Return the rows of a text, and how many of them nothing can change that is added to the text."""
    from markdown_it.tree import SyntaxTreeNode

    page = _Page(text.split("\n"), color)
    return page.blocks(SyntaxTreeNode(parser().parse(text)).children, max(columns, 1), top=True)


class _Page:
    """Lays out the blocks of one text, whose `lines` tell what the parser has left out."""

    def __init__(self, lines: Sequence[str], color: bool) -> None:
        self._lines, self._code = lines, _CODE if color else _BOLD
        self._color = color

    def blocks(self, nodes: Sequence[Any], columns: int, *, top: bool = False) -> tuple[list[Row], int]:
        """Return rows with an empty one between two blocks, within a list or quote only where the source has one."""
        rows: list[Row] = []
        firm = 0
        for before, node in pairwise([None, *nodes]):
            if before is not None and (top or self._is_blank(node.map[0] - 1)):
                rows.append([])
            laid_out, settled = self._block(node, columns)
            firm = len(rows) + settled
            rows += laid_out
        return rows, firm

    def _is_blank(self, line: int) -> bool:
        return not self._lines[line].strip(" \t>")

    def _block(self, node: Any, columns: int) -> tuple[list[Row], int]:
        if node.type in ("fence", "code_block"):
            return self._code_block(node)
        if node.type in ("bullet_list", "ordered_list"):
            return self._list(node, columns)
        firm = 0
        if node.type == "blockquote":
            inner, firm = self.blocks(node.children, max(columns - 2, 1))
            rows = [[("35" if self._color else "", "▌ "), *row] for row in inner]
        elif node.type == "hr":
            rows = [[(_DIM, "─" * columns)]]
        elif node.type == "formula":
            rows = [[("", line)] for line in node.content.split("\n")]
        elif node.type == "table":
            rows = self._table(node, columns)
        else:
            style = {"paragraph": "", "h1": f"{_BOLD};4"}.get(node.tag if node.tag == "h1" else node.type, _BOLD)
            rows = _wrapped(self._inline(node.children, style), columns)
        return rows, firm

    def _code_block(self, node: Any) -> tuple[list[Row], int]:
        lines = node.content.removesuffix("\n").split("\n") if node.content else []
        language, _, more = node.info.strip().partition(" ")
        rows: list[Row] = [[(_DIM, more)]] if more else []
        rows += _coloured(lines, language) if self._color and language else [[("", line)] for line in lines]
        return rows, max(0, len(rows) - 1)  # the last line may be the beginning of the closing fence

    def _list(self, node: Any, columns: int) -> tuple[list[Row], int]:
        rows: list[Row] = []
        firm = 0
        for before, item in pairwise([None, *node.children]):
            if before is not None and self._is_blank(item.map[0] - 1):
                rows.append([])
            mark = f" {item.info}{item.markup} " if node.type == "ordered_list" else " • "
            inner, settled = self.blocks(item.children, max(columns - len(mark), 1))
            firm = len(rows) + settled
            rows += [[("", mark if at == 0 else " " * len(mark)), *row] for at, row in enumerate(inner or [[]])]
        return rows, firm

    def _table(self, node: Any, columns: int) -> list[Row]:
        """Return aligned columns; lines where words would be broken, the source where cells would be lost."""
        lines = (row for part in node.children for row in part.children)
        cells = [[self._inline(cell.children) for cell in row.children] for row in lines]
        by_column = list(zip(*cells, strict=True))
        source = [_MARKS.sub("", line, count=1) for line in self._lines[node.map[0] : node.map[1]]]
        most = max(len(re.findall(r"(?<!\\)\|", line.strip().strip("|"))) + 1 for line in source)
        natural = [max(map(_width_of, column)) for column in by_column]
        widths = [
            max(_NARROWEST_CELL if full > 2 * _NARROWEST_CELL else 0, *map(_longest, column))
            for full, column in zip(natural, by_column, strict=True)
        ]
        room = columns - 2 * (len(widths) - 1)
        if most > len(widths):
            return [[("", line)] for line in source]
        if sum(widths) > room:
            return [[("", "| "), *_joined(row), ("", " |")] for row in cells]
        while short := [at for at, full in enumerate(natural) if widths[at] < full][: max(0, room - sum(widths))]:
            for at in short:
                widths[at] += 1
        rows: list[Row] = []
        for number, row in enumerate(cells):
            wrapped = [_wrapped(cell, width) or [[]] for cell, width in zip(row, widths, strict=True)]
            for line in range(max(map(len, wrapped))):
                rows.append([])
                for at, (cell, width) in enumerate(zip(wrapped, widths, strict=True), 1):
                    parts = cell[line] if line < len(cell) else []
                    rows[-1] += [(_BOLD, text) for _, text in parts] if number == 0 else parts
                    if at < len(widths):  # behind the last one they would fold a row as wide as the window
                        rows[-1].append(("", " " * (width - _width(parts) + 2)))
            if number == 0:
                rows.append([(_DIM, "─" * (sum(widths) + 2 * (len(widths) - 1)))])
        return rows

    def _inline(self, nodes: Iterable[Any], style: str = "") -> list[Piece]:
        found: list[Piece] = []
        for node in nodes:
            if node.type == "text":
                found.append((style, node.content, False))
            elif node.type in ("softbreak", "hardbreak"):
                found.append(("", "\n", True))
            elif node.type == "code_inline":
                found.append((_with(style, self._code), node.content, True))
            elif node.type == "link":
                inner = self._inline(node.children, style)
                shown = "".join(text for _, text, _ in inner)
                address = node.attrs.get("href", "")
                found += inner
                if shown not in (address, address.removeprefix("mailto:")):
                    found += self._address(address, node.attrs.get("title"), style, after=bool(shown))
            elif node.type == "image":
                inner = self._inline(node.children, style) or [(style, "image", False)]
                found += [*inner, *self._address(node.attrs.get("src", ""), node.attrs.get("title"), style)]
            elif node.children:
                found += self._inline(node.children, _with(style, _MARKED.get(node.type, "")))
            else:  # a formula
                found += [(style, part, True) for part in re.split(r"(\n)", node.content) if part]
        return found

    @staticmethod
    def _address(address: str, title: str | None, style: str, *, after: bool = True) -> list[Piece]:
        if not after and not title:
            return [(style, address, True)]
        named: list[Piece] = [(style, f' "{title}"', False)] if title else []
        return [(style, " ", False), (style, "(", True), (_with(style, "4"), address, True), *named, (style, ")", True)]


def _with(style: str, more: str) -> str:
    return ";".join(one for one in (style, more) if one)


def _words(pieces: Iterable[Piece]) -> Iterator[tuple[Row, Row]]:
    """Yield the blank before a word and the word, which may change its style; a word `\\n` is a line break."""
    blank: Row = []
    word: Row = []
    for style, text, whole in pieces:
        for at, part in enumerate([text] if whole else _BLANK.split(text)):
            if part == "\n" or at % 2:
                if word:
                    yield blank, word
                    blank, word = [], []
                if part == "\n":
                    yield [], [("", "\n")]
                    blank = []
                else:
                    blank = [(style, part.replace("\t", " "))]
            elif part:
                word.append((style, part))
    if word:
        yield blank, word


def _width(row: Row) -> int:
    return sum(text_width(text) for _, text in row)


def _wrapped(pieces: Iterable[Piece], columns: int) -> list[Row]:
    """Break between words; a word that is longer than a row stays where it is, for the terminal to fold."""
    rows: list[Row] = [[]]
    used = 0
    for blank, word in _words(pieces):
        if word[0][1] == "\n":
            rows.append([])
            used = 0
            continue
        width, gap = _width(word), _width(blank)
        if rows[-1] and used + gap + width > columns >= width:
            rows.append([])
            used = 0
        if rows[-1]:
            rows[-1] += blank
            used += gap
        rows[-1] += word
        used += width
        if used > columns:
            used = used % columns or columns
    return rows


def _joined(cells: Iterable[Sequence[Piece]]) -> Row:
    return [piece for at, cell in enumerate(cells) for piece in [("", " | ")] * bool(at) + [one[:2] for one in cell]]


def _width_of(pieces: Sequence[Piece]) -> int:
    return sum(text_width(text) for _, text, _ in pieces)


def _longest(pieces: Sequence[Piece]) -> int:
    return max((_width(word) for _, word in _words(pieces)), default=0)


def _coloured(lines: Sequence[str], language: str) -> list[Row]:
    from pygments.lexers import get_lexer_by_name
    from pygments.util import ClassNotFound

    try:
        lexer = get_lexer_by_name(language, stripnl=False, ensurenl=False)
    except ClassNotFound:
        return [[("", line)] for line in lines]
    rows: list[Row] = [[]]
    for kind, text in lexer.get_tokens("\n".join(lines)):
        style = _colour_of(kind)
        first, *others = text.split("\n")
        rows[-1].append((style, first))
        rows += [[(style, line)] for line in others]
    return rows


@cache
def _colour_of(kind: Any) -> str:
    name = str(kind).removeprefix("Token.")
    return next((style for start, style in _COLOURS.items() if name.startswith(start)), "")


@cache
def parser() -> Any:
    """Return a parser to which HTML, entities, formulas and definitions of links are text, as they are."""
    from markdown_it import MarkdownIt

    found = MarkdownIt("commonmark", {"html": False}).enable("strikethrough").enable("table")
    found.disable(["reference", "entity"])
    for name, meant in (("normalizeLink", str), ("normalizeLinkText", str), ("validateLink", bool)):
        setattr(found, name, meant)  # addresses stay as they are
    found.inline.ruler.before("escape", "formula", _formula_in_line)
    found.block.ruler.before("fence", "formula", _formula_block, {"alt": ["paragraph", "blockquote", "list"]})
    return found


def _formula_in_line(state: Any, silent: bool) -> bool:
    match = _FORMULA.match(state.src, state.pos) if state.src[state.pos] in "$\\" else None
    if match is None:
        return False
    if not silent:
        state.push("formula", "", 0).content = match[0]
    state.pos = match.end()
    return True


def _formula_block(state: Any, begin: int, end: int, silent: bool) -> bool:
    """Take lines from `$$` or `\\[` to their end, or to a blank line while that has not come."""

    def line(number: int) -> str:
        return str(state.src[state.bMarks[number] + state.tShift[number] : state.eMarks[number]]).rstrip()

    if state.is_code_block(begin) or (closing := _ENDS_FORMULA.get(line(begin)[:2])) is None:
        return False
    last = begin
    if closing in line(begin)[2:]:
        if not line(begin).endswith(closing):  # prose goes on behind it
            return False
    else:
        while last + 1 < end and line(last + 1) and state.sCount[last + 1] >= state.blkIndent:
            last += 1
            if line(last).endswith(closing):
                break
    if not silent:
        token = state.push("formula", "", 0)
        token.content = state.getLines(begin, last + 1, state.blkIndent, False)
        token.map = [begin, last + 1]
        state.line = last + 1
    return True
