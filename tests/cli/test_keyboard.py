"""Keys during an answer, on a pseudo-terminal."""

from __future__ import annotations

import os
import pty
import select
import signal
import sys
import termios
from collections.abc import Iterator
from threading import Thread, Timer

import pexpect
import pytest

from mlxmtp.cli.terminal.keyboard import CTRL_T, Keyboard, Modes, TypedAhead
from mlxmtp.cli.terminal.rows import RedrawnRows
from mlxmtp.cli.terminal.signals import interrupts


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """The end a program reads from, and the end a person types at."""
    person, program = pty.openpty()
    yield program, person
    os.close(person)
    os.close(program)


def typed(keyboard: Keyboard, person: int, keys: bytes) -> str:
    os.write(person, keys)
    assert select.select(keyboard.descriptors, [], [], 10)[0]
    return keyboard.pressed()


def test_no_echo_while_it_listens_and_everything_as_before_afterwards(terminal: tuple[int, int]) -> None:
    program, _ = terminal
    before = termios.tcgetattr(program)
    with Keyboard(program):
        flags = termios.tcgetattr(program)[3]
        assert not flags & (termios.ECHO | termios.ICANON | termios.IEXTEN)
        assert flags & termios.ISIG
        signal.raise_signal(signal.SIGCONT)
    assert termios.tcgetattr(program) == before


def test_after_ctrl_z_no_row_is_taken_away_and_the_next_ones_are_again(terminal: tuple[int, int]) -> None:
    rows = RedrawnRows(lambda: (80, 24))
    rows.replace(["one", "two"])
    with Keyboard(terminal[0]):
        assert rows.erasure()
        signal.raise_signal(signal.SIGCONT)
        assert rows.erasure() == ""
        assert rows.replace(["one", "two", "three"]) == "one\ntwo\nthree"
        assert rows.erasure()


def test_lines_typed_while_nobody_listened_are_taken_in(terminal: tuple[int, int]) -> None:
    program, person = terminal
    keyboard = Keyboard(program)
    os.write(person, b"\nthe next question\n")
    while not select.select([program], [], [], 10)[0]:
        pass
    keyboard.take_in()
    assert not select.select([program], [], [], 0)[0]
    assert keyboard.typed_ahead().text == "the next question"


def test_ctrl_t_acts_and_text_is_kept(terminal: tuple[int, int]) -> None:
    program, person = terminal
    keyboard = Keyboard(program)
    with keyboard:
        assert typed(keyboard, person, b"ne\x14xt \xe4\xb8") == CTRL_T
        assert typed(keyboard, person, b"\xad\x1b[A\x1b[1;5C\x1bOP\x01\rline\r") == ""
    assert keyboard.typed_ahead() == TypedAhead("next 中\nline")
    assert keyboard.typed_ahead() == TypedAhead()


def ahead(terminal: tuple[int, int], keys: str) -> TypedAhead:
    """What stands in the next line after these keys."""
    keyboard = Keyboard(terminal[0])
    with keyboard:
        typed(keyboard, terminal[1], keys.encode())
    return keyboard.typed_ahead()


def test_every_character_that_controls_nothing_is_kept(terminal: tuple[int, int]) -> None:
    text = "\tx\u3000y\xa0z می\u200cخواهم 👨\u200d👩\u200d👧 e\u0301 \ue000 \U000e0041"
    assert ahead(terminal, f"{text}\x07\x9b\x00") == TypedAhead(text)


@pytest.mark.parametrize(
    ("keys", "stands"),
    [
        ("helo\x7flo", "hello"),
        ("helo\x7flo\x15now", "now"),
        ("helo\x7flo\x15now\x17", ""),
        ("one\rtwo\x15three", "one\nthree"),
        ("one\rtwo\x7f\x7f\x7f\x08\x08", "on"),
        ("one two  \x17three four\x1b\x7ffive", "one three five"),
        ("\x7f\x15\x17one", "one"),
        ("\x1b\x1b[Done\x1b\rtwo\x1bOA\x1bb", "one\ntwo"),
        ("\r\r one \r\r", " one "),
    ],
)
def test_what_is_typed_is_edited_as_it_was_typed(terminal: tuple[int, int], keys: str, stands: str) -> None:
    assert ahead(terminal, keys) == TypedAhead(stands)


@pytest.mark.parametrize(
    ("keys", "stands", "pasted"),
    [
        ("{/exit\rsecond\r\nthird\nfourth}", "/exit\nsecond\nthird\nfourth", True),
        ("{\r/exit}", "/exit", True),
        ("{a\x7f\x15\x17\x04b\x1b[A}", "ab[A", True),
        ("/exit {now}", "/exit now", False),
        ("\r{/exit}", "/exit", True),
        ("{/exit}\x17/help", "/help", False),
        ("{/exit now}\x17please", "/exit please", True),
        ("x\x7f{/exit} now", "/exit now", True),
        ("{}/help", "/help", False),
        ("{/exit\r", "/exit", True),
    ],
)
def test_what_is_pasted_stays_as_it_is(terminal: tuple[int, int], keys: str, stands: str, pasted: bool) -> None:
    keys = keys.replace("{", "\x1b[200~").replace("}", "\x1b[201~")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mlxmtp.cli.terminal.keyboard._PASTE_SECONDS", 0.0)
        assert ahead(terminal, keys) == TypedAhead(stands, pasted)


def test_a_paste_is_taken_to_its_end(terminal: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left over would be read by the line editor, as if it were typed."""
    monkeypatch.setattr("mlxmtp.cli.terminal.keyboard._PASTE_SECONDS", 60.0)
    keyboard = Keyboard(terminal[0])
    with keyboard:
        typed(keyboard, terminal[1], b"\x1b[200~one\r")
        late = Timer(0.2, os.write, (terminal[1], b"two\x1b[201~ three"))
        late.start()
    assert keyboard.typed_ahead() == TypedAhead("one\ntwo three", pasted=True)


def test_a_pasted_megabyte(terminal: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlxmtp.cli.terminal.keyboard._PASTE_SECONDS", 60.0)
    text = "\n".join("a line of it" for _ in range(80_000))
    keyboard = Keyboard(terminal[0])
    with keyboard:
        paste = Thread(target=write_all, args=(terminal[1], f"\x1b[200~{text}\x1b[201~".encode()))
        paste.start()
        assert select.select(keyboard.descriptors, [], [], 10)[0]
        keyboard.pressed()
    paste.join()
    assert keyboard.typed_ahead() == TypedAhead(text, pasted=True)


def write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data[:1000]) :]


def test_ctrl_d_first_is_the_end(terminal: tuple[int, int]) -> None:
    program, person = terminal
    keyboard = Keyboard(program)
    with keyboard:
        typed(keyboard, person, b"\x04")
    with pytest.raises(EOFError):
        keyboard.typed_ahead()
    assert keyboard.typed_ahead() == TypedAhead()


def test_the_terminal_is_given_back_as_it_was(terminal: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    program, person = terminal
    monkeypatch.setenv("TERM", "xterm")
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    before, modes = termios.tcgetattr(program), Modes()
    with open(program, closefd=False) as stdin, open(program, "w", closefd=False) as stdout:
        monkeypatch.setattr("sys.stdin", stdin)
        monkeypatch.setattr("sys.stdout", stdout)
        for _ in range(2):  # the second time changes nothing
            modes.hold()
            assert not termios.tcgetattr(program)[3] & (termios.ECHO | termios.ICANON)
        modes.hand_over()
        assert termios.tcgetattr(program) == before
        modes.hold()
        modes.release()
        assert termios.tcgetattr(program) == before
    for number, handler in handlers.items():
        signal.signal(number, handler)
    written = b""
    while len(written) < 24 and select.select([person], [], [], 10)[0]:
        written += os.read(person, 100)
    assert written == b"\x1b[?2004h\x1b[?2004h\x1b[?2004l"  # marked by either `hold`, undone once


def test_a_file_is_no_keyboard() -> None:
    with open(os.devnull, "rb") as nothing:  # noqa: PTH123  (its descriptor is wanted)
        keyboard = Keyboard(nothing.fileno())
        with keyboard:
            assert keyboard.descriptors == ()


def test_ctrl_c_is_a_call_and_an_interrupt_again_afterwards() -> None:
    count = 0

    def react() -> None:
        nonlocal count
        count += 1

    with interrupts(react):
        signal.raise_signal(signal.SIGINT)
    assert count == 1
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


EDITS = """
import sys, time
from mlxmtp.cli.repl.line_editor import LineEditor
from mlxmtp.cli.repl.completion import Sources
from mlxmtp.cli.terminal.keyboard import Keyboard
from mlxmtp.cli.terminal.signals import interrupts

came = []

def wait():
    with interrupts(lambda: came.append(1)), Keyboard(sys.stdin.fileno()):
        print("waiting", flush=True)
        while not came:
            time.sleep(0.01)
    print("no longer")

editor = LineEditor(None, Sources(), color=False)
editor.on_picture = wait
print("got", repr(editor.read().text))
"""


def test_ctrl_c_ends_what_a_key_waits_for_and_leaves_the_line() -> None:
    child = pexpect.spawn(sys.executable, ["-c", EDITS], encoding="utf-8", timeout=120)
    child.expect(">")
    child.send("a long question\x16")
    child.expect("waiting")
    child.send("\x03")
    child.expect("no longer")
    child.send("\r")
    child.expect("got 'a long question'")
    child.expect(pexpect.EOF)
