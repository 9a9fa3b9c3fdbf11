"""The program as a process: real pipes, a real terminal, a queue for a network."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pexpect
import pyte
import pytest

from tests.text_checkpoint import write_text_checkpoint

ROOT = Path(__file__).parents[2]


@dataclass
class Program:
    """Runs `mlxmtp` with a home folder of its own; `answers` is what the model will say."""

    home: Path
    model: Path
    answers: list[str] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)

    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "LC_ALL")}
        own = {"HOME": str(self.home), "MLXMTP_HOME": str(self.home), "PYTHONPATH": str(ROOT), "TERM": "xterm-256color"}
        return {**kept, **own, "FAKE_ANSWERS": json.dumps(self.answers), **self.env}

    def command(self, *args: str, model: str | None = None) -> list[str]:
        chosen = ["-m", model or str(self.model)] if {"ask", "chat"} & {*args} and "-m" not in args else []
        return [sys.executable, str(Path(__file__).with_name("fake_mlxmtp.py")), *args, *chosen]

    def run(self, *args: str, stdin: bytes | int | None = subprocess.DEVNULL) -> subprocess.CompletedProcess[bytes]:
        """Run to the end with pipes; `stdin` is bytes to pipe in, or what subprocess takes."""
        given: dict[str, Any] = {"input": stdin} if isinstance(stdin, bytes) else {"stdin": stdin}
        return subprocess.run(
            self.command(*args),
            env=self.environment(),
            cwd=self.home,
            capture_output=True,
            timeout=60,
            **given,
            check=False,
        )

    def shell(self, script: str) -> subprocess.CompletedProcess[str]:
        """Run a bash script in which `mlxmtp` is the program and `$MODEL` its model."""
        fake = Path(__file__).with_name("fake_mlxmtp.py")
        head = f'mlxmtp() {{ "{sys.executable}" "{fake}" "$@"; }}; MODEL="{self.model}"\n'
        return subprocess.run(
            ["bash", "-c", head + script],
            env=self.environment(),
            cwd=self.home,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def start(self, *args: str) -> subprocess.Popen[bytes]:
        """Start with pipes and go on."""
        return subprocess.Popen(
            self.command(*args),
            env=self.environment(),
            cwd=self.home,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def terminal(self, *args: str, columns: int = 60, rows: int = 24) -> Terminal:
        """Start in a terminal that is stdin, stdout and stderr."""
        program, *rest = self.command(*args)
        child = pexpect.spawn(
            program,
            rest,
            env=self.environment(),
            cwd=str(self.home),
            dimensions=(rows, columns),
            timeout=30,
        )
        return Terminal(child, columns, rows)


class Terminal:
    """What a person would see; `raw` is every byte that was sent."""

    def __init__(self, child: pexpect.spawn, columns: int, rows: int) -> None:
        self.child = child
        self.raw = b""
        self._screen = pyte.HistoryScreen(columns, rows, history=1000, ratio=1.0)
        self._stream = pyte.ByteStream(self._screen)

    def wait_for(self, text: str) -> None:
        self.wait_until(repr(text), lambda lines: text in "\n".join(lines))

    def wait_until(self, what: str, holds: Callable[[list[str]], bool]) -> None:
        """Read until `holds` is true of all rows."""
        while not holds(self.lines()):
            try:
                self._take(self.child.read_nonblocking(4096, timeout=20))
            except (pexpect.TIMEOUT, pexpect.EOF) as error:
                shown = "\n".join(self.lines())
                raise AssertionError(f"{type(error).__name__} before {what} came; there is:\n{shown}") from None

    def send(self, keys: str) -> None:
        """Press keys; Enter is `\\r`."""
        self.child.send(keys)

    def suspend(self, shown: str) -> None:
        """The program, which waits for something, is stopped, the shell writes `shown`, and the program goes on."""
        with suppress(pexpect.TIMEOUT):
            while True:
                self._take(self.child.read_nonblocking(4096, timeout=0.3))
        self.child.kill(signal.SIGSTOP)
        os.waitpid(self.child.pid, os.WUNTRACED)
        self._take(shown.encode())
        self.child.kill(signal.SIGCONT)

    def resize(self, columns: int, rows: int) -> None:
        """Another window size; what is on the screen stays where it is, rows that are too long are cut."""
        self.child.setwinsize(rows, columns)
        self._screen.resize(rows, columns)

    def finish(self) -> int:
        """Read to the end and return the exit code."""
        code = self.drain()
        self.child.close()
        return code

    def drain(self) -> int:
        """The same, with the terminal still open; a signal's number counts below zero."""
        while True:
            try:
                self._take(self.child.read_nonblocking(4096, timeout=20))
            except pexpect.EOF:
                break
        self.child.wait()
        return int(-self.child.signalstatus if self.child.exitstatus is None else self.child.exitstatus)

    def lines(self) -> list[str]:
        """Every row from the first one that scrolled away to the last with text."""
        above = ["".join(row[x].data for x in range(self._screen.columns)) for row in self._screen.history.top]
        rows = [line.rstrip() for line in [*above, *self._screen.display]]
        while rows and not rows[-1]:
            rows.pop()
        return rows

    @property
    def cursor_column(self) -> int:
        return int(self._screen.cursor.x)

    def _take(self, data: bytes) -> None:
        self.raw += data
        self._stream.feed(data)


@pytest.fixture
def program(tmp_path: Path) -> Program:
    home = tmp_path / "home"
    home.mkdir()
    return Program(home, write_text_checkpoint(tmp_path / "model", context=400))
