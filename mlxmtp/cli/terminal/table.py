"""Columns: aligned for people, separated by tabs for programs."""

from __future__ import annotations

import re
from collections.abc import Sequence

from mlxmtp.cli.terminal.output import Output

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")  # line ends and tabs, too: they would end a cell


def show_table(out: Output, header: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> None:
    """Write rows under a header; columns numbered in `right` are aligned to the right on a terminal."""
    clean = [[_CONTROL.sub(" ", cell) for cell in row] for row in [header, *rows]]
    if not out.terminal:
        out.write("".join("\t".join(row) + "\n" for row in clean))
        return
    widths = [max(len(row[at]) for row in clean) for at in range(len(header))]
    for number, row in enumerate(clean):
        cells = [
            cell.rjust(width) if at in right else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        line = "  ".join(cells).rstrip()
        bold = number == 0 and out.look.color and not out.look.dumb
        out.write(f"\x1b[1m{line}\x1b[0m\n" if bold else f"{line}\n")
