"""The conversation in a real terminal that wraps rows when its window gets narrower: tmux, where it is installed."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.cli.conftest import PATIENCE, Program

pytestmark = pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")
ABOVE = [f"line {number}" for number in range(30)]


class Window:
    """A window of a tmux server of its own in which the program runs below some text."""

    def __init__(self, program: Program, folder: Path, columns: int, rows: int) -> None:
        self._socket = str(folder / "tmux")
        command = f"printf '{chr(10).join(ABOVE)}\\n'; exec {shlex.join(program.command('chat'))}"
        self.environ = {name: value for name, value in program.environment().items() if name != "TMUX"}
        self.tmux("-f", os.devnull, "new-session", "-d", "-x", str(columns), "-y", str(rows), command)

    def tmux(self, *words: str) -> str:
        command = ["tmux", "-S", self._socket, *words]
        return subprocess.run(
            command, env=self.environ, check=True, capture_output=True, text=True, timeout=PATIENCE
        ).stdout

    def rows(self) -> list[str]:
        """Every row with text, from the first one that scrolled away."""
        return self.tmux("capture-pane", "-p", "-S", "-").rstrip("\n").split("\n")

    def until(self, holds: Callable[[list[str]], bool]) -> list[str]:
        end = time.monotonic() + PATIENCE
        while not holds(rows := self.rows()):
            assert time.monotonic() < end, "\n".join(rows)
            time.sleep(0.05)
        return rows


@pytest.fixture
def window(program: Program) -> Iterator[Window]:
    with TemporaryDirectory(dir="/tmp") as folder:  # a socket's path is cut at 104 bytes, and a Mac's own is long
        shown = Window(program, Path(folder), 60, 14)
        yield shown
        shown.tmux("kill-server")


def test_a_window_that_gets_narrower_keeps_one_copy_of_the_line(window: Window) -> None:
    window.until(lambda rows: rows[-1] == ">")
    typed = " ".join(f"word{number:02}" for number in range(17))
    window.tmux("send-keys", "-l", typed)
    window.until(lambda rows: rows[-1].endswith("16"))
    for columns in (30, 60, 20, 44, 60):
        window.tmux("resize-window", "-x", str(columns), "-y", "14")
        line = f"> {typed[: columns - 2]}".rstrip()
        others = (typed[at : at + columns - 2] for at in range(columns - 2, len(typed), columns - 2))
        shown = [line, *(f"  {row}".rstrip() for row in others)]
        rows = window.until(lambda rows, shown=shown: rows[-len(shown) :] == shown)  # type: ignore[misc]
        assert sum("word00" in row for row in rows) == 1
        assert [row for row in rows if row.startswith("line ")] == ABOVE
    window.tmux("send-keys", "C-c")
    window.tmux("send-keys", "-l", "\x1b[200~all:\n\tcc x.c\x1b[201~")
    window.until(lambda rows: rows[-2:] == ["> all:", "      cc x.c"])
