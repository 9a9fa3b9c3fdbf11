#!/usr/bin/env python3
"""Draw real conversations with the built-in model as assets/chat.svg and assets/agent.svg, for the README.

    python scripts/render_chat.py [chat|agent] [-o FILE] [--columns 100] [--rows 48] [-m MODEL]
    python scripts/render_chat.py -o assets/chat-80.svg --columns 80      and -120, for docs/usage.md

Starts `mlxmtp chat` in a pseudo-terminal, types the lines of a scene below, and writes what the terminal shows in the
end, in its colours. Needs the dev extras (pexpect, pyte). The figures are those of this machine at this moment.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any
from unicodedata import east_asian_width
from xml.sax.saxutils import escape

import pexpect
import pyte

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, slots=True)
class Scene:
    """What is typed, with which options of `chat`, in a folder with which files."""

    lines: tuple[str, ...]
    options: tuple[str, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)


SCENES = {
    "chat": Scene(
        ("How do I pipe a file into mlxmtp?", "And what is a drafter?", "/draft off", "/regen", "/undo", "/redo")
    ),
    "agent": Scene(
        ("Which files are here?", "Read plan.txt", "What is 12 * 39?"),
        ("--tools", "files=.,calculator"),
        {"plan.txt": "The rocket leaves on Friday with 12 boxes.\n", "crew.txt": "Ada, Grace and Linus.\n"},
    ),
}

CELL, LINE, MARGIN, SIZE = 8.4, 19, 18, 14
PAPER, INK, FAINT = "#0d1117", "#e6edf3", "#7d8590"
COLOURS = {
    "black": "#484f58", "red": "#ff7b72", "green": "#3fb950", "brown": "#d29922", "blue": "#58a6ff",
    "magenta": "#bc8cff",
    "cyan": "#39c5cf", "white": "#b1bac4", "brightblack": "#6e7681", "brightred": "#ffa198", "brightgreen": "#56d364",
    "brightbrown": "#e3b341", "brightblue": "#79c0ff", "brightmagenta": "#d2a8ff", "brightcyan": "#56d4dd",
    "brightwhite": "#ffffff", "default": INK,
}  # fmt: skip
FIGURES = re.compile(r"\d tok/s · ")


class Session:
    """`mlxmtp chat` in a terminal of its own."""

    def __init__(self, home: str, scene: Scene, model: str, columns: int, rows: int) -> None:
        folder = Path(home, "work")
        folder.mkdir()
        for name, text in scene.files.items():
            (folder / name).write_text(text, encoding="utf-8")
        self.screen = pyte.Screen(columns, rows)
        self._stream = pyte.ByteStream(self.screen)
        own = {"HOME": home, "MLXMTP_HOME": home, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color"}
        self._child = pexpect.spawn(
            sys.executable,
            ["-m", "mlxmtp", "chat", "-m", model, "--temp", "0", "--seed", "1", *scene.options],
            env={**os.environ, **own},
            cwd=folder,
            dimensions=(rows, columns),
        )
        self.wait(lambda: self._at_prompt)
        self._answers = 0

    def type(self, line: str) -> None:
        """One line, and what comes of it."""
        before = self._answers
        self._child.send(f"{line}\r")
        if line.startswith("/") and line != "/regen":
            self.wait(lambda: self._at_prompt and any(line in row for row in self.screen.display))
        else:
            self.wait(lambda: self._at_prompt and self._answers > before)

    def leave(self) -> None:
        """Ctrl+D, and the words that come after it."""
        self._child.send("\x04")
        with suppress(pexpect.EOF):
            self.wait(lambda: False)
        self._child.close()

    def wait(self, condition: Any) -> None:
        """Read until `condition()`; a minute of silence is an error."""
        while not condition():
            data = self._child.read_nonblocking(4096, timeout=60)
            self._answers = getattr(self, "_answers", 0) + len(FIGURES.findall(data.decode("utf-8", "replace")))
            # pyte knows no faint text: it becomes a colour.
            self._stream.feed(re.sub(rb"\x1b\[2m", b"\x1b[38;2;125;133;144m", data))

    @property
    def _at_prompt(self) -> bool:
        rows = [row.rstrip() for row in self.screen.display if row.strip()]
        return bool(rows) and rows[-1] == ">"


def main() -> None:
    """Run the conversation twice: the first time builds kernels, the second time is drawn."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("scene", nargs="?", choices=SCENES, default="chat")
    parser.add_argument("-o", "--output", type=Path, help="default: assets/SCENE.svg")
    parser.add_argument("-m", "--model", default="pocket")
    parser.add_argument("--columns", type=int, default=100)
    parser.add_argument("--rows", type=int, default=48)
    options = parser.parse_args()
    model = str(Path(options.model).resolve()) if Path(options.model).is_dir() else options.model
    for _ in range(2):
        with tempfile.TemporaryDirectory() as home:
            session = Session(home, SCENES[options.scene], model, options.columns, options.rows)
            for line in SCENES[options.scene].lines:
                session.type(line)
            session.leave()
            picture = svg(session.screen)
    output = options.output or ROOT / "assets" / f"{options.scene}.svg"
    output.write_text(picture, encoding="utf-8")
    print(f"{output}: {len(picture):,} bytes")


def svg(screen: pyte.Screen) -> str:
    """The screen down to its last row with text."""
    used = max((number for number, row in enumerate(screen.display) if row.strip()), default=0) + 1
    width, height = 2 * MARGIN + screen.columns * CELL, 2 * MARGIN + used * LINE
    body = "\n".join(text for row in range(used) for text in _row(screen, row))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
        f'height="{height:g}" font-family="ui-monospace, SFMono-Regular, Menlo, Consolas, monospace" '
        f'font-size="{SIZE}" xml:space="preserve">\n'
        f'<rect width="100%" height="100%" rx="8" fill="{PAPER}"/>\n{body}\n</svg>\n'
    )


def _row(screen: pyte.Screen, number: int) -> Iterator[str]:
    """One text element for each run of one look; its length is given, whatever font the reader has."""
    cells = [(column, screen.buffer[number][column]) for column in range(screen.columns)]
    y = MARGIN + number * LINE + SIZE
    for look, run in groupby(cells, key=lambda cell: _look(cell[1])):
        part = list(run)
        text = "".join(char.data for _, char in part)
        shown = text.strip()
        if not shown:
            continue
        start = part[0][0] + len(text) - len(text.lstrip())
        columns = sum(2 if east_asian_width(one) in "WF" else 1 for one in shown)
        yield (
            f'<text x="{MARGIN + start * CELL:.1f}" y="{y}" textLength="{columns * CELL:.1f}" '
            f'lengthAdjust="spacingAndGlyphs"{look}>{escape(shown)}</text>'
        )


def _look(char: Any) -> str:
    colour = COLOURS.get(char.fg, f"#{char.fg}")
    return (
        f' fill="{FAINT if colour == "#7d8590" else colour}"'
        + (' font-weight="bold"' if char.bold else "")
        + (' font-style="italic"' if char.italics else "")
        + (' text-decoration="underline"' if char.underscore else "")
    )


if __name__ == "__main__":
    main()
