"""The keyboard while the model works, and the terminal's modes. Imports little: it is there before anything else."""

import os
import re
import select
import signal
import sys
import termios
from codecs import getincrementaldecoder
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any

from mlxmtp.cli.terminal import signals

CTRL_D, CTRL_T = "\x04", "\x14"
BACKSPACE, CTRL_U, CTRL_W = ("\x7f", "\x08"), "\x15", ("\x17", "\x1b\x7f")  # the last with Alt, too
_START, _END = "\x1b[200~", "\x1b[201~"  # the terminal's marks around a paste
_PASTE_SECONDS = 1.0  # a paste whose end is missing: how long nothing comes before it is taken as it is
_CONTROLS = r"\x00-\x08\x0b-\x1f\x7f-\x9f"
_PIECE = re.compile(
    rf"{re.escape(_START)}(?P<paste>(?s:.*?))(?:{re.escape(_END)}|\Z)"
    r"|\x1b(?:\[[0-?]*[ -/]*[@-~]|O.|[^\n\x1b])?"  # arrows and the like
    rf"|(?P<text>[^{_CONTROLS}]+)"
    r"|."
)


class Modes:
    """The owner of the terminal's modes: echo and line mode on stdin, marked pastes. A process has one, `modes`."""

    def __init__(self) -> None:
        self.interruptions = 0  # by other programs, whose text may stand above the cursor then
        self.marked = False  # pastes
        self.progress = False  # a line that is replaced stands on stderr's last row
        self._before: list[Any] | None = None  # stdin's mode, while it is on hold

    def hold(self) -> None:
        """Switch off echo and mark pastes until `release`; Enter and Ctrl+D stay what they are, Ctrl+C a signal."""
        if self._before is not None:
            return
        try:
            self._before = termios.tcgetattr(sys.stdin)  # first: Ctrl+C may come at any moment
            _switch_off(sys.stdin.fileno(), termios.ECHO | termios.ICANON, termios.TCSANOW)
        except (termios.error, OSError):  # no terminal after all
            return
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, signals.end)
        self.mark_pastes()

    def release(self) -> None:
        self.hand_over()
        self.unmark_pastes()

    def hand_over(self) -> None:
        """Give echo and line mode back."""
        if self._before is not None:
            termios.tcsetattr(sys.stdin, termios.TCSANOW, self._before)
            self._before = None

    def mark_pastes(self) -> None:
        """Let the terminal mark pastes, where a person reads and escape codes are understood."""
        from mlxmtp.environment import dumb_terminal

        if sys.stdout is not None and sys.stdout.isatty() and not dumb_terminal():
            self.marked = True  # first: Ctrl+C may come as soon as it is written
            _send("\x1b[?2004h")

    def unmark_pastes(self) -> None:
        if self.marked:
            _send("\x1b[?2004l")
            self.marked = False

    def restore(self) -> None:
        """Leave the terminal to the shell: with echo, without progress, its prompt on a row without `^C`."""
        self.release()
        if sys.stderr is not None and sys.stderr.isatty():
            os.write(sys.stderr.fileno(), b"\r\x1b[K" if self.progress else b"\r  \r")


def _switch_off(descriptor: int, flags: int, when: int) -> None:
    mode = termios.tcgetattr(descriptor)
    mode[0] &= ~termios.ICRNL  # a line that was pasted may end in both
    mode[3] = mode[3] & ~flags | termios.ISIG
    termios.tcsetattr(descriptor, when, mode)


def _send(code: str) -> None:
    with suppress(OSError):  # the window may be gone
        os.write(sys.stdout.fileno(), code.encode())  # past the stream, which a signal may have found writing


modes = Modes()
hold, release = modes.hold, modes.release
signals.before_the_end.append(modes.restore)


@dataclass(frozen=True, slots=True)
class TypedAhead:
    """Text typed before there was a line for it; `pasted`: what it begins with came from the clipboard."""

    text: str = ""
    pasted: bool = False


class Keyboard:
    """The terminal on `descriptor`, while entered without echo and line mode; pastes are marked, Ctrl+C is a signal.

    Without a descriptor nothing is ever typed, as where keys cannot be read one by one.
    """

    def __init__(self, descriptor: int = -1) -> None:
        self._fd = descriptor
        self.descriptors: tuple[int, ...] = (descriptor,) if descriptor >= 0 else ()  # to wait for
        self._undo = ExitStack()
        self._handlers: dict[int, Any] = {}  # of signals, before this was entered
        self._decoder = getincrementaldecoder("utf-8")("replace")
        self._typed = ""

    def __enter__(self) -> "Keyboard":
        try:
            mode = termios.tcgetattr(self._fd)
        except (termios.error, ValueError):  # no terminal after all
            self.descriptors = ()
            return self
        self._undo.callback(termios.tcsetattr, self._fd, termios.TCSADRAIN, mode)
        if not modes.marked:
            self._undo.callback(modes.unmark_pastes)
        self._listen()
        handlers: dict[int, Any] = {signal.SIGCONT: self._continued, signal.SIGTSTP: self._suspended}
        self._handlers = self._undo.enter_context(signals.handled(handlers))
        self._undo.callback(self._read_the_rest)  # first of all
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def pressed(self) -> str:
        """Return the control keys that came, Ctrl+T only; the rest is for `typed_ahead`."""
        try:
            data = os.read(self._fd, 4096)
        except OSError:  # the terminal is gone: nothing more will come from it
            data = b""
        if not data:
            self.descriptors = ()
        text = self._decoder.decode(data)
        self._typed += text.replace(CTRL_T, "")
        return CTRL_T * text.count(CTRL_T)

    def take_in(self) -> None:
        """Leave what has been typed so far to `typed_ahead`: it answers no question that comes now."""
        with self:
            pass  # it is read at the end

    def typed_ahead(self) -> TypedAhead:
        """Return what was typed since the last call, as edited. Raises EOFError for Ctrl+D with nothing before it."""
        keys, self._typed = self._typed.replace("\r\n", "\n").replace("\r", "\n"), ""
        line: list[str] = []  # characters: one that is taken away must cost nothing, be the line a megabyte
        pasted = False
        for piece in _PIECE.finditer(keys):
            new = piece["text"] or re.sub(f"[{_CONTROLS}]", "", piece["paste"] or "")
            if not line:
                new = new.lstrip("\n")
                pasted = piece["paste"] is not None
                if piece[0] == CTRL_D:
                    raise EOFError
            line += new
            if not new:
                _erase(line, piece[0])
        return TypedAhead("".join(line).rstrip("\n"), pasted)

    def _read_the_rest(self) -> None:
        """Read what is there already, and a paste to its end: else its lines would be sent one by one."""
        while self.descriptors:
            in_paste = self._typed.rfind(_START) > self._typed.rfind(_END)
            if not select.select(self.descriptors, [], [], _PASTE_SECONDS if in_paste else 0)[0]:
                break
            self.pressed()

    def _listen(self) -> None:
        # IEXTEN off: else Ctrl+V and, on macOS, Ctrl+O and Ctrl+Y never arrive.
        _switch_off(self._fd, termios.ECHO | termios.ICANON | termios.IEXTEN, termios.TCSADRAIN)
        modes.mark_pastes()

    def _suspended(self, number: int, _frame: FrameType | None) -> None:
        """Stop on Ctrl+Z, without marks: not every shell expects them."""
        modes.unmark_pastes()
        signal.signal(number, self._handlers[number])
        signal.raise_signal(number)  # here it stands still, unless there is no shell to go back to
        signal.signal(number, self._suspended)
        self._listen()

    def _continued(self, _number: int, _frame: FrameType | None) -> None:
        """Go on after Ctrl+Z: the shell has set the terminal its own way, and its lines stand above the cursor."""
        self._listen()
        modes.interruptions += 1


def _erase(line: list[str], key: str) -> None:
    """Erase what this key erases in the line editor, at the line's end; most keys do nothing."""
    if key in BACKSPACE:
        del line[-1:]
    elif key == CTRL_U:
        while line and line[-1] != "\n":
            line.pop()
    elif key in CTRL_W:
        while line and line[-1].isspace():
            line.pop()
        while line and not line[-1].isspace():
            line.pop()


def resumption() -> AbstractContextManager[object]:
    """Note within it that the shell has had the terminal whenever this process goes on after Ctrl+Z."""

    def note(_number: int, _frame: FrameType | None) -> None:
        modes.interruptions += 1

    return signals.handled({signal.SIGCONT: note})
