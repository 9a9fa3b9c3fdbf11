"""Keys during an answer, on a pseudo-terminal."""

from __future__ import annotations

import os
import pty
import select
import signal
import termios
from collections.abc import Iterator
from threading import Timer

import pytest

from mlxmtp.cli.keyboard import CTRL_T, Keyboard, ctrl_c_first, interrupts
from mlxmtp.cli.tail import Tail


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
    tail = Tail(lambda: (80, 24))
    tail.replaced(["one", "two"])
    with Keyboard(terminal[0]):
        assert tail.erasure()
        signal.raise_signal(signal.SIGCONT)
        assert tail.erasure() == ""
        assert tail.replaced(["one", "two", "three"]) == "one\ntwo\nthree"
        assert tail.erasure()


def test_lines_typed_while_nobody_listened_are_taken_in(terminal: tuple[int, int]) -> None:
    program, person = terminal
    keyboard = Keyboard(program)
    os.write(person, b"\nthe next question\n")
    while not select.select([program], [], [], 10)[0]:
        pass
    keyboard.take_in()
    assert not select.select([program], [], [], 0)[0]
    assert keyboard.typed_ahead() == "the next question"


def test_ctrl_t_acts_and_text_is_kept(terminal: tuple[int, int]) -> None:
    program, person = terminal
    keyboard = Keyboard(program)
    with keyboard:
        assert typed(keyboard, person, b"ne\x14xt \xe4\xb8") == CTRL_T
        assert typed(keyboard, person, b"\xad\x1b[A\x1b[1;5C\x1bOP\x01\rline\r") == ""
    assert keyboard.typed_ahead() == "next 中\nline"
    assert keyboard.typed_ahead() == ""


def test_ctrl_d_first_is_the_end(terminal: tuple[int, int]) -> None:
    program, person = terminal
    keyboard = Keyboard(program)
    with keyboard:
        typed(keyboard, person, b"\x04")
    with pytest.raises(EOFError):
        keyboard.typed_ahead()
    assert keyboard.typed_ahead() == ""


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


def test_ctrl_c_that_the_compiler_of_kernels_heard_first_is_no_failure() -> None:
    late = Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))
    late.start()
    with pytest.raises(KeyboardInterrupt), ctrl_c_first():
        raise RuntimeError("the compiler has ended")
    with pytest.raises(RuntimeError, match="out of memory"), ctrl_c_first():
        raise RuntimeError("out of memory")
