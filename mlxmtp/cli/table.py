"""Columns: aligned for people, separated by tabs for programs."""

from __future__ import annotations

import re
from collections.abc import Sequence

from mlxmtp.cli.output import Output

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


def ago(then: float, now: float) -> str:
    """`3 days ago`."""
    seconds = max(0, int(now - then))
    for size, unit in ((86400 * 365, "year"), (86400 * 30, "month"), (86400, "day"), (3600, "hour"), (60, "minute")):
        count = seconds // size
        if count:
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "just now"


def count_of(parameters: int) -> str:
    """`4.6B`, `20M`, `43k`, `66`."""
    if parameters >= 1e9:
        return f"{parameters / 1e9:.1f}B"
    if parameters >= 1e6:
        return f"{parameters / 1e6:.1f}M" if parameters < 1e7 else f"{parameters / 1e6:.0f}M"
    return f"{parameters / 1e3:.0f}k" if parameters >= 1e3 else str(parameters)
