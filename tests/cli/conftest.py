"""The program as a process: real pipes, a real terminal, a queue for a network."""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyte
import pytest

from tests.cli.forks import Process
from tests.text_checkpoint import write_text_checkpoint

ROOT = Path(__file__).parents[2]
PATIENCE = 120.0  # seconds until what does not come is missed; starting took 30 where sixteen others ran
LEAVES, UNTIL_LEFT = "{ exec <&-; touch left; }", "until [ -e left ]; do sleep 0.02; done"
"""In a script of the shell: a reader that leaves at once, and the wait for that."""


@dataclass
class Program:
    """Runs `mlxmtp` with a home folder of its own; `answers` is what the model will say.

    `anew`: as new interpreters instead of forks, where the start itself is the matter. `names_model`: with `-m` in
    every command that asks.
    """

    home: Path
    model: Path
    answers: list[str] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)
    anew: bool = sys.platform == "darwin"  # whose frameworks are not to be used behind a fork
    names_model: bool = True
    terminals: list[Terminal] = field(default_factory=list)

    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "LC_ALL")}
        own = {"HOME": str(self.home), "MLXMTP_HOME": str(self.home), "PYTHONPATH": str(ROOT), "TERM": "xterm-256color"}
        own["PYTHONFAULTHANDLER"] = "1"  # see `Terminal.where`
        return {**kept, **own, "FAKE_ANSWERS": json.dumps(self.answers), **self.env}

    def command(self, *args: str) -> list[str]:
        """The words that start a new interpreter with it."""
        return [sys.executable, str(Path(__file__).with_name("fake_mlxmtp.py")), *self._arguments(args)]

    def start(self, *args: str, stdin: int | None = None) -> Process:
        """Start with pipes and go on; `stdin` is a descriptor, nothing if there is none."""
        with Path(os.devnull).open("rb") as nothing:
            return self._process(args, stdin=nothing.fileno() if stdin is None else stdin)

    def run(self, *args: str, stdin: bytes | int | None = None) -> subprocess.CompletedProcess[bytes]:
        """Run to the end with pipes; `stdin` may be bytes to pipe in."""
        process = self._process(args) if isinstance(stdin, bytes) else self.start(*args, stdin=stdin)
        out, err = process.communicate(stdin if isinstance(stdin, bytes) else b"")
        return subprocess.CompletedProcess(args, process.wait(), out, err)

    def shell(self, script: str) -> subprocess.CompletedProcess[str]:
        """Run a bash script in which `mlxmtp` is the program and `$MODEL` its model."""
        python, program = self.command()
        head = f'mlxmtp() {{ "{python}" "{program}" "$@"; }}; MODEL="{self.model}"\n'
        return subprocess.run(
            ["bash", "-c", head + script],
            env=self.environment(),
            cwd=self.home,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=2 * PATIENCE,
            check=False,
        )

    def terminal(self, *args: str, columns: int = 60, rows: int = 24) -> Terminal:
        """Start in a terminal that is stdin, stdout and stderr."""
        shown = Terminal(columns, rows, lambda descriptor: self._process(args, terminal=descriptor))
        self.terminals.append(shown)
        return shown

    def go_on(self) -> None:
        """Let the model go on that has come to `{wait}`."""
        (self.home / "go on").touch()

    def wait_for_wait(self) -> None:
        """Wait until the model has come to `{wait}`: what it said before is on its way."""
        self._wait_for("waits", "the model did not come to {wait}")

    def wait_for_never(self) -> None:
        """Wait until the model has come to `{never}`: a Ctrl+C before that would still be heard."""
        self._wait_for("never", "the model did not come to {never}")

    def wait_for_stops(self, count: int) -> None:
        """Wait until Ctrl+C has been heard so often; the program must have FAKE_SOON."""
        end, stops = time.monotonic() + PATIENCE, self.home / "stops"
        while (stops.stat().st_size if stops.exists() else 0) < count:
            assert time.monotonic() < end, "the program does not hear Ctrl+C"
            time.sleep(0.01)

    def _wait_for(self, name: str, fault: str) -> None:
        """Wait for a file in the folder of the program."""
        end = time.monotonic() + PATIENCE
        while not (self.home / name).exists():
            assert time.monotonic() < end, fault
            time.sleep(0.01)

    def _process(self, args: tuple[str, ...], stdin: int | None = None, terminal: int | None = None) -> Process:
        words = self.command(*args) if self.anew else self._arguments(args)
        return Process(words, self.environment(), self.home, stdin=stdin, terminal=terminal, anew=self.anew)

    def _arguments(self, args: tuple[str, ...]) -> list[str]:
        asks = self.names_model and {"ask", "chat"} & {*args} and "-m" not in args
        return [*args, "-m", str(self.model)] if asks else [*args]


class Terminal:
    """What a person would see; `raw` is every byte that was sent, `descriptor` this end of the terminal."""

    def __init__(self, columns: int, rows: int, start: Callable[[int], Process]) -> None:
        """`start` begins what runs in it, with the descriptor of its end."""
        self.descriptor, theirs = os.openpty()
        termios.tcsetwinsize(self.descriptor, (rows, columns))
        self._name = os.ttyname(theirs)
        self.modes_before = termios.tcgetattr(theirs)
        self.process = start(theirs)
        os.close(theirs)
        self.raw = b""
        self._screen = pyte.HistoryScreen(columns, rows, history=1000, ratio=1.0)
        self._stream = pyte.ByteStream(self._screen)

    def wait_for(self, text: str) -> None:
        self.wait_until(repr(text), lambda lines: text in "\n".join(lines))

    def wait_until(self, what: str, holds: Callable[[list[str]], bool]) -> None:
        """Read until `holds` is true of all rows."""
        end = time.monotonic() + PATIENCE
        while not holds(lines := self.lines()):
            if not (data := self._read(end - time.monotonic())):
                shown = "\n".join(lines)
                why = "the end" if data is not None else "nothing more"
                raise AssertionError(f"{why} came instead of {what}; there is:\n{shown}\n\n{self.where()}")
            self._take(data)

    def send(self, keys: str | bytes) -> None:
        """Press keys; Enter is `\\r`."""
        data = keys.encode() if isinstance(keys, str) else keys
        while data:
            data = data[os.write(self.descriptor, data) :]

    def wait_until_taken(self) -> None:
        """Let the program take all keys that were sent."""
        theirs = os.open(self._name, os.O_RDWR | os.O_NOCTTY)
        try:
            end = time.monotonic() + PATIENCE
            while int.from_bytes(fcntl.ioctl(theirs, termios.FIONREAD, bytes(4)), sys.byteorder):
                assert time.monotonic() < end, "the program takes no keys"
                time.sleep(0.01)
        finally:
            os.close(theirs)

    def suspend(self, shown: str) -> None:
        """The program, which waits for something, is stopped, the shell writes `shown`, and the program goes on."""
        while data := self._read(0.3):
            self._take(data)
        self.process.send_signal(signal.SIGSTOP)
        self.process.wait_until_stopped()
        while data := self._read(0.0):  # what it had still written
            self._take(data)
        self._take(shown.encode())
        self.process.send_signal(signal.SIGCONT)

    def resize(self, columns: int, rows: int) -> None:
        """Another window size; what is on the screen stays where it is, rows that are too long are cut."""
        termios.tcsetwinsize(self.descriptor, (rows, columns))
        self._screen.resize(rows, columns)

    def finish(self) -> int:
        """Read to the end and return the exit code."""
        code = self.drain()
        self.close()
        return code

    def drain(self) -> int:
        """The same, with the terminal still open; a signal's number counts below zero."""
        while data := self._read(PATIENCE):
            self._take(data)
        assert data is not None, "\n".join(["it does not end; there is:", *self.lines(), "", self.where()])
        return self.process.wait(PATIENCE)

    def where(self) -> str:
        """End the program, which is stuck, and return what its threads were doing, and the last bytes before."""
        last = self.raw[-400:]
        self.process.send_signal(signal.SIGABRT)
        said = b""
        while data := self._read(2.0):
            said += data
        return f"last bytes: {last!r}\n{said.decode(errors='replace')}"

    def close(self) -> None:
        """Close the window; a program that is still there is ended."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
            self.process.kill()
            self.process.wait(PATIENCE)

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

    def _read(self, seconds: float) -> bytes | None:
        """Read what there is, nothing at the end, None if nothing comes for so long."""
        if not select.select([self.descriptor], [], [], max(0.0, seconds))[0]:
            return None
        try:
            return os.read(self.descriptor, 65536)
        except OSError:  # how Linux says that nobody is at the other end
            return b""


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    home = tmp_path / "home"
    home.mkdir()
    made = Program(home, write_text_checkpoint(tmp_path / "model", context=400))
    yield made
    for terminal in made.terminals:
        terminal.close()
