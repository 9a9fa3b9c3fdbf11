"""Markdown on a terminal while it is written: finished blocks are printed once, of the open one the last rows redrawn.

Model text never passes through rich's markup. Importing rich takes a while: at the first text, or before in `warm_up`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from io import StringIO
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

from mlxmtp.cli.terminal.rows import MAX_REDRAWN, RedrawnRows, without_controls
from mlxmtp.units import text_width

if TYPE_CHECKING:
    from markdown_it.token import Token
    from rich.markdown import Markdown, TableElement

FRAME_SECONDS = 0.05
_LONG_BLOCK = 4000  # characters; of a longer list only the end is laid out while it is open
_LONG_BLOCK_LINES = 40
_FENCE = re.compile(r" {0,3}(```+|~~~+)")
_CLOSED_BY_BLANK = frozenset({"paragraph_open", "table_open", "blockquote_open"})
_CLOSED_BY_NEWLINE = frozenset({"heading_open", "hr"})
_NARROWEST_CELL = 3  # columns of a table's column: words and wide characters in fewer cannot be read any more
_TRAILING_BLANKS = re.compile(r"(?: |\x1b\[[0-9;]*m)+$")


def warm_up() -> None:
    """Import what drawing needs, which takes a while."""
    _renderer()
    _parser()


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
        self._checked = 0  # characters of the open text that were searched for finished blocks
        self._end = RedrawnRows(size)
        self._printed = False
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

    def finish(self) -> None:
        """Print what is still open; the cursor is at the start of a line afterwards."""
        self._draw(len(self._open))
        if not self._printed:
            self._send("\n")

    def _draw(self, length: int) -> None:
        """Print the first `length` characters of the open text for good and show the end of the rest."""
        # Ctrl-C may come while it is laid out: the state changes afterwards.
        done, rest = self._open[:length], self._open[length:]
        rows = self._lay_out(done, for_good=True)
        printed = self._printed or bool(rows)
        end = self._lay_out(_end_of(rest))
        if end:
            end = ([""] * printed + end)[-self._end.limit :]
        gap = [""] if self._printed and rows else []
        frame = self._end.replace(end, printed="".join(f"{row}\n" for row in gap + rows))
        self._open, self._printed = rest, printed
        self._checked = max(0, self._checked - length)
        self.undrawn = False
        if frame:
            self._send(frame)

    def _lay_out(self, text: str, *, for_good: bool = False) -> list[str]:
        """Return the rows of every block, with one blank row between two.

        A line of code that is printed `for_good` stays one line: the terminal folds it, and a copy has no break in it.
        """
        rows: list[str] = []
        for block in _blocks(text):
            columns = self._size()[0]
            if for_good and _FENCE.match(block):
                columns = max(columns, *(text_width(line.expandtabs(8)) for line in block.split("\n")))
            laid_out = _renderer()(block, columns, self._color)
            rows += [""] * bool(rows and laid_out) + laid_out
        return rows

    def _finished(self) -> int:
        """Return how many characters of the open text are finished blocks."""
        end = self._open.rfind("\n") + 1
        fresh = self._open[max(0, self._open.rfind("\n", 0, self._checked)) : end].split("\n")[:-1]
        # Only a blank line, a fence or a heading ends a block: parsing at every other line would be in vain.
        if end <= self._checked or not any(
            not line.strip() or line.lstrip().startswith(("#", "```", "~~~")) for line in fresh
        ):
            return 0
        self._checked = end
        return finished_length(self._open[:end])


def finished_length(text: str) -> int:
    """Return how many characters at the start of `text` (whole lines) are blocks that nothing can change any more."""
    lines = text.split("\n")
    blocks = _top_level(text)
    if not blocks:
        return 0
    start, end = blocks[-1].map
    if _is_closed(blocks[-1], lines):
        start = end
    return len("\n".join(lines[:start])) + (1 if start else 0)


def _top_level(text: str) -> list[Any]:
    return [token for token in _parser().parse(text) if token.level == 0 and token.map and token.nesting >= 0]


def _blocks(text: str) -> list[str]:
    """Return the source of every top-level block."""
    lines = text.split("\n")
    starts = [token.map[0] for token in _top_level(text)]
    return ["\n".join(lines[a:b]) for a, b in pairwise([*starts, len(lines)])]


def _is_closed(block: Any, lines: list[str]) -> bool:
    start, end = block.map
    if block.type == "fence":
        last = lines[end - 1].strip()
        return end - start > 1 and last.startswith(block.markup) and not last.strip(block.markup[0])
    followed_by_blank = end < len(lines) - 1 and not lines[end].strip()
    return block.type in _CLOSED_BY_NEWLINE or (block.type in _CLOSED_BY_BLANK and followed_by_blank)


def _end_of(text: str) -> str:
    """Return the part of an open block that can be shown: laying out all of it for every frame would cost too much."""
    lines = text.split("\n")
    if _FENCE.match(lines[0]):
        return "\n".join([lines[0], *lines[1:][-MAX_REDRAWN - 1 :]])
    return text if len(text) <= _LONG_BLOCK else "\n".join(lines[-_LONG_BLOCK_LINES:])


@cache
def _parser() -> Any:
    """Return a parser to which HTML and definitions of links are text: they often are what was asked for."""
    from markdown_it import MarkdownIt

    return MarkdownIt("commonmark", {"html": False}).enable("strikethrough").enable("table").disable("reference")


@cache
def _renderer() -> Callable[[str, int, bool], list[str]]:
    """Return the function that lays out text: (markdown, columns, colour) -> terminal rows without line ends."""
    from rich.console import Console
    from rich.theme import Theme

    theme = Theme({"markdown.code": "bold cyan"})  # rich's own is a black box on a light terminal

    plain_text: dict[str, Any] = {"highlight": False, "markup": False, "emoji": False}
    console, plain = (
        Console(file=StringIO(), force_terminal=True, theme=theme, no_color=no_color, **plain_text)
        for no_color in (None, True)
    )
    document = _document_class()

    def lay_out(text: str, columns: int, color: bool) -> list[str]:
        target = console if color else plain
        target.width = max(columns, 1)
        with target.capture() as captured:
            target.print(document(text))
        rows = [_without_padding(row) for row in captured.get().split("\n")]
        filled = [number for number, row in enumerate(rows) if row]
        # Some versions put blank rows around lists and tables; the gaps between blocks are ours.
        return rows[filled[0] : filled[-1] + 1] if filled else []

    return lay_out


def _without_padding(row: str) -> str:
    """Return a row without rich's filling up with spaces, which ends up in what people copy."""
    stripped = _TRAILING_BLANKS.sub("", row)
    return stripped + "\x1b[0m" if "\x1b[" in stripped else stripped


@cache
def _table_class() -> type[TableElement]:
    """Return rich's table without its cutting of long words; a window too narrow for it gets its rows as lines."""
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.markdown import TableElement
    from rich.table import Table
    from rich.text import Text

    class WholeTable(TableElement):
        def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
            for table in super().__rich_console__(console, options):
                assert isinstance(table, Table)
                # rich puts two columns between two cells, and one at either end
                if options.max_width < len(table.columns) * (_NARROWEST_CELL + 2):
                    yield from self._lines()
                    return
                for column in table.columns:
                    column.overflow = "fold"
                yield table

        def _lines(self) -> Iterator[Text]:
            header = [self.header.row] if self.header is not None and self.header.row is not None else []
            for row in header + (self.body.rows if self.body is not None else []):
                cells = Text(" | ").join(cell.content for cell in row.cells)
                yield Text.assemble("| ", cells, " |", overflow="fold")

    return WholeTable


@cache
def _document_class() -> type[Markdown]:
    """Return rich's Markdown with headings on the left, code in the terminal's own colours, line breaks as they are."""
    from rich.cells import chop_cells
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.markdown import CodeBlock, Heading, Markdown
    from rich.syntax import Syntax

    class LeftHeading(Heading):
        LEVEL_ALIGN = dict.fromkeys(Heading.LEVEL_ALIGN, "left")

    class TerminalCode(CodeBlock):
        def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
            """Folded where the window ends: rich breaks between words, which reads as two lines of code."""
            code = str(self.text).rstrip().expandtabs(4)
            syntax = Syntax(code, self.lexer_name, theme="ansi_dark", background_color="default")
            for line in syntax.highlight(code).split("\n"):
                pieces = chop_cells(line.plain, options.max_width) if line.cell_len > options.max_width else []
                yield from line.divide(list(accumulate(map(len, pieces[:-1]))))

    class Document(Markdown):
        elements = {  # noqa: RUF012  (as rich declares it)
            **Markdown.elements,
            "heading_open": LeftHeading,
            "fence": TerminalCode,
            "code_block": TerminalCode,
            "table_open": _table_class(),
        }

        def __init__(self, markup: str) -> None:
            super().__init__("", hyperlinks=False)
            self.markup = markup
            self.parsed = _parser().parse(markup)
            for token in self.parsed:
                if token.children:
                    token.children = list(_readable(token.children))

    return Document


def _readable(tokens: Iterable[Token]) -> Iterator[Token]:
    """Return a line's tokens with line breaks and with images as links: rich puts images before their block."""
    from markdown_it.token import Token

    for token in tokens:
        if token.type == "softbreak":
            token.type = "hardbreak"
        if token.type != "image":
            yield token
            continue
        source = str(token.attrs.get("src", ""))
        yield Token("link_open", "a", 1, attrs={"href": source})
        yield from _readable(token.children or [Token("text", "", 0, content="image")])
        yield Token("link_close", "a", -1)
