"""The two streams of a command, nothing but the answer on stdout, everything else on stderr; and the clipboard."""

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from io import TextIOWrapper, UnsupportedOperation
from typing import Self, TextIO

from mlxmtp.cli.terminal.keyboard import modes
from mlxmtp.cli.terminal.rows import Flow, bold, columns_of, cropped, dim, one_line, without_controls, wrapped
from mlxmtp.cli.terminal.signals import writing
from mlxmtp.environment import Pictures, in_tmux, over_ssh
from mlxmtp.errors import MlxmtpError, sentence

_LONGEST_COPY = 74_994  # bytes: what terminals take in one sequence (xterm's limit of 100,000 base64 characters)


class ReaderGone(Exception):
    """Nobody reads stdout any more."""


@dataclass(frozen=True, slots=True)
class Look:
    """Ways in which the streams may be used."""

    quiet: bool = False
    color: bool = True
    dumb: bool = False
    still: bool = False  # repaint nothing: what reads the screen aloud would read it again and again
    pictures: Pictures = ""


class Output:
    """Stdout and stderr of one command."""

    def __init__(self, stdout: TextIO | None, stderr: TextIO | None, look: Look | None = None) -> None:
        self._stdout, self._stderr = stdout, stderr
        self.look = look or Look()
        self._said = ""  # the last progress that was said
        self._shows_progress = False  # and the terminal's modes know of it: Ctrl-C removes the line, too
        self._in_thought = False  # the last thing on stderr was part of a thought
        self._thought_at_start = True
        self._flow = Flow(lambda: _size(stderr)[0])  # of a thought on a terminal

    @classmethod
    def standard(cls, look: Look | None = None) -> Self:
        """Return the process's own streams. What does not go to a terminal is UTF-8, whatever the locale says."""
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, TextIOWrapper):
                with suppress(OSError):  # of a full disk, for what waits in it
                    stream.reconfigure(encoding=None if stream.isatty() else "utf-8", errors="replace")
        return cls(sys.stdout, sys.stderr, look)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Leave stdout to what is written here: what else this process and its children print goes to stderr."""
        with redirect_stdout(sys.stderr):
            try:
                number = -1 if self._stdout is None else self._stdout.fileno()
                kept = os.dup(number)
                os.dup2(2, number)
            except (OSError, ValueError):  # no descriptor, or a closed one: nothing of a child arrives there
                yield
                return
            before = self._stdout
            assert before is not None
            with open(kept, "w", encoding=before.encoding, errors=before.errors) as stdout:  # noqa: PTH123
                self._stdout = stdout
                try:
                    yield
                finally:
                    os.dup2(kept, number)
                    self._stdout = before

    @property
    def terminal(self) -> bool:
        """True if a person sees stdout."""
        return self._stdout is not None and self._stdout.isatty()

    @property
    def error_terminal(self) -> bool:
        """True if a person sees stderr."""
        return self._stderr is not None and self._stderr.isatty()

    @property
    def pictures(self) -> Pictures:
        """The protocol by which a person may be shown pictures; empty in a pipe."""
        return self.look.pictures if self.terminal and not self.look.dumb and not self.look.still else ""

    def size(self) -> tuple[int, int]:
        return _size(self._stdout)

    def write(self, text: str) -> None:
        """Put text on stdout now: a pipe gets it as it is, a terminal without control characters. Raises ReaderGone."""
        self.draw(without_controls(text) if self.terminal else text)

    def write_line(self, text: str, indent: int = 0) -> None:
        """Put a line on stdout; a terminal gets it broken between words, further rows indented by `indent`."""
        rows = wrapped(text, self.size()[0] - indent) if self.terminal and not self.look.dumb else [text]
        self.write(f"\n{' ' * indent}".join(rows) + "\n")

    def draw(self, frame: str) -> None:
        """Put our own escape codes on stdout now, with text cleaned by `rows` or `markdown`. Raises as `write`."""
        if not frame:
            return
        self.settle()
        if self._stdout is None:
            raise MlxmtpError("Standard output is closed, so there is nowhere to put the answer.")
        try:
            with writing:
                self._stdout.write(frame)
                self._stdout.flush()
        except BrokenPipeError as error:
            abandon(self._stdout)
            raise ReaderGone from error
        except OSError as error:
            abandon(self._stdout)
            raise MlxmtpError(f"The answer cannot be written: {error.strerror or error}.") from error

    def dim(self, rows: Iterable[str]) -> None:
        if self.look.dumb:
            self.write("".join(f"{row}\n" for row in rows))
        else:
            self.draw("".join(f"{dim(row)}\n" for row in rows))

    def coloured(self, text: str, colour: int) -> None:
        """Put text on stdout, on a terminal with colours in one of 31 (red) to 37 (white)."""
        shows = self.terminal and self.look.color and not self.look.dumb
        self.draw(f"\x1b[{colour}m{without_controls(text)}\x1b[0m") if shows else self.write(text)

    def note(self, text: str) -> None:
        """Tell what the reader of the answer should know; `quiet` drops it."""
        if not self.look.quiet:
            self.remark(f"Note: {text}")

    def error(self, text: str) -> None:
        self.remark(f"Error: {text}")

    def remark(self, text: str) -> None:
        """Write a line to stderr; a terminal gets it broken between words."""
        self.line("\n".join(wrapped(text, _size(self._stderr)[0])) if self._draws_errors else text)

    def line(self, text: str) -> None:
        self.settle()
        self._put_error(f"{without_controls(text) if self.error_terminal else text}\n")

    def progress(self, text: str) -> None:
        """Replace the progress line; only a terminal shows it."""
        if self.look.still:
            self._say_once(text)
        elif self._draws_errors and not self.look.quiet:
            self.end_thought()
            self._shows_progress = modes.progress = True  # first: Ctrl-C may come as soon as the line is there
            # One row, with room for the terminal's own ^C: a line that wraps could not be taken away again.
            self._put_error(f"\r\x1b[K{dim(cropped(text, _size(self._stderr)[0] - 3))}")

    def _say_once(self, text: str) -> None:
        """Write what is being done when it begins, and not how far it has come."""
        doing = text.partition(",")[0]
        if doing != self._said and self.error_terminal and not self.look.quiet:
            self._said = doing
            self.line(doing)

    def clear_progress(self) -> None:
        if self._shows_progress and modes.progress:
            self._put_error("\r\x1b[K")
            self._shows_progress = modes.progress = False

    def thinking(self, text: str) -> None:
        """Write a piece of a thought to stderr, dim where that is a terminal."""
        self.clear_progress()
        if not self._in_thought:
            text = text.lstrip("\n")
        if not text:
            return
        self._in_thought = True
        self._thought_at_start = text.endswith("\n")
        if self.error_terminal:
            text = dim(self._flow.feed(text)) if self._draws_errors else without_controls(text)
        self._put_error(text)

    def end_thought(self) -> None:
        """Leave the thought: what follows starts on a line of its own."""
        if self._in_thought:
            self._in_thought = False
            self._put_error(dim(self._flow.rest()) + ("\n" if self._thought_at_start else "\n\n"))

    def undo_modes(self) -> None:
        """Restore cursor and unmarked pastes after a signal in the middle of a line, and begin a new one."""
        if self.terminal and not self.look.dumb:
            with suppress(MlxmtpError, ReaderGone):  # the window may be gone
                self.draw("\x1b[?2004l\x1b[?25h\r\n")

    def settle(self) -> None:
        """Leave stderr clean, however the command ends."""
        self.clear_progress()
        self.end_thought()

    @property
    def _draws_errors(self) -> bool:
        return self.error_terminal and not self.look.dumb

    def _put_error(self, text: str) -> None:
        if self._stderr is None:
            return
        try:
            with writing:
                self._stderr.write(text)
                self._stderr.flush()
        except OSError:  # nobody reads the remarks; the answer may still have a reader
            abandon(self._stderr)


def explain(error: Exception, out: Output, *, debug: bool) -> None:
    """Say why something did not work; with `debug` also where."""
    if debug:
        import traceback

        out.line("".join(traceback.format_exception(error)).rstrip())
    out.error(sentence(error))


def show_table(out: Output, header: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> None:
    """Write rows under a header: tabs between cells for programs, columns for people, those in `right` to the right."""
    cells = [[one_line(cell) for cell in row] for row in [header, *rows]]
    if not out.terminal:
        out.write("".join("\t".join(row) + "\n" for row in cells))
        return
    lines = columns_of(cells, right)
    if out.look.color and not out.look.dumb:
        out.draw(f"{bold(lines.pop(0))}\n")
    out.write("".join(f"{line}\n" for line in lines))


def copy_to_clipboard(text: str, out: Output) -> str:
    """Copy with the Mac's own program, tmux, or the terminal's escape sequence; return a sentence on how it went."""
    import base64
    import subprocess

    amount = f"{len(text):,} character{'' if len(text) == 1 else 's'}"
    ways = []
    if sys.platform == "darwin" and not over_ssh():  # there it would fill the far machine's clipboard
        program = ["/usr/bin/env", "LC_CTYPE=UTF-8", "/usr/bin/pbcopy"]  # reads bytes as the locale has them
        ways.append((program, f"Copied {amount}."))
    if in_tmux():  # drops bare sequences; -w passes them on
        paste = "paste with prefix ], or as ever if tmux may set this terminal's clipboard"
        ways.append((["tmux", "load-buffer", "-w", "-"], f"Copied {amount} to tmux: {paste}."))
    for command, said in ways:
        with suppress(OSError, subprocess.CalledProcessError):  # the next may do
            subprocess.run(command, input=text, encoding="utf-8", errors="replace", check=True)
            return said
    data = text.encode("utf-8", "replace")
    if out.look.dumb:
        return "This terminal has no way to the clipboard: /export writes a file instead."
    if len(data) > _LONGEST_COPY:
        return f"{amount} are too many for the terminal's clipboard: /export writes a file instead."
    out.draw(f"\x1b]52;c;{base64.b64encode(data).decode()}\x07")
    return f"Copied {amount}, if this terminal allows it."


def _size(stream: TextIO | None) -> tuple[int, int]:
    try:
        columns, rows = os.get_terminal_size(stream.fileno() if stream is not None else -1)
    except (OSError, UnsupportedOperation, ValueError):
        return 80, 24
    return columns or 80, rows or 24


def abandon(stream: TextIO) -> None:
    """Let what a broken stream still holds run into nothing, so that Python's own flush at exit stays silent."""
    with suppress(OSError, UnsupportedOperation):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
