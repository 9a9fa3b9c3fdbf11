"""What a person must see stands where the eye is, and what they drop or complete is a path."""

from __future__ import annotations

import re
import time

import pytest

from tests.cli.conftest import Program, Terminal

ENTER, CTRL_C, CTRL_D, UP = "\r", "\x03", "\x04", "\x1b[A"


def begin(program: Program, *args: str, rows: int = 24) -> Terminal:
    terminal = program.terminal("chat", *args, columns=100, rows=rows)
    terminal.wait_until("the prompt", lambda lines: bool(lines) and lines[-1].startswith(">"))
    return terminal


def test_a_message_that_is_refused_does_not_hide_why(program: Program) -> None:
    """It is higher than the window: in the line it would push the reason out."""
    terminal = begin(program)
    text = "\n".join(f"line {number}" for number in range(90))
    terminal.send(f"\x1b[200~{text}\x1b[201~")
    terminal.wait_for("line 89")
    terminal.send(ENTER)
    terminal.wait_for("the Up key brings it back.")
    assert any("Error: With this question the prompt has" in row for row in terminal.lines()[-8:])
    terminal.wait_until("an empty line", lambda lines: lines[-1] == ">")
    terminal.send(UP)
    terminal.wait_until("the message", lambda lines: lines[-1].strip() == "line 89")
    terminal.send(CTRL_C + CTRL_D)
    assert terminal.finish() == 0


def test_a_model_that_does_not_stop_says_so_and_one_more_ctrl_c_leaves(program: Program) -> None:
    program.answers = ["Hello there{sleep 0.3} and more{never} and more<turn|>"]
    terminal = begin(program)
    terminal.send("Hi" + ENTER)
    terminal.wait_for("Hello there and")
    program.wait_for_never()
    terminal.send(CTRL_C)
    terminal.wait_for("stopping; Ctrl+C again leaves")
    terminal.send(CTRL_C)
    assert terminal.drain() == 0
    back = re.search(r"To come back: mlxmtp chat -r (\w+)", "\n".join(terminal.lines()))
    assert back is not None
    assert "Hello there and" in program.run("sessions", "show", back[1]).stdout.decode()


@pytest.mark.parametrize("dropped", ["'{}'", "{escaped}"])
def test_a_file_dropped_on_the_window_is_read(program: Program, dropped: str) -> None:
    folder = program.home / "my files"
    folder.mkdir()
    (folder / "a b.txt").write_text("Alpha")
    path = str(folder / "a b.txt")
    program.answers = ["Fine.<turn|>"]
    terminal = begin(program)
    terminal.send(f"\x1b[200~{dropped.format(path, escaped=path.replace(' ', chr(92) + ' '))}\x1b[201~")
    terminal.wait_for('a b.txt"')
    terminal.send("what is it?" + ENTER)
    terminal.wait_for("tokens")
    terminal.wait_for("Fine.")
    terminal.send(CTRL_D)
    assert terminal.finish() == 0


def test_tab_goes_into_a_folder_with_blanks(program: Program) -> None:
    (program.home / "dir x").mkdir()
    (program.home / "dir x" / "only.txt").write_text("x")
    terminal = begin(program)
    terminal.send("@di\t")
    terminal.wait_for('> @"dir x/')
    time.sleep(0.2)
    terminal.send("\t")
    terminal.wait_for('> @"dir x/only.txt"')
    terminal.send(CTRL_C + CTRL_D)
    assert terminal.finish() == 0


def test_the_arrows_choose_a_session_and_a_wrong_name_is_asked_again(program: Program) -> None:
    program.answers = ["One.<turn|>"]
    for question in ("First?", "Second?"):
        assert program.run("ask", "--save", question).returncode == 0
    terminal = program.terminal("chat", "-r", columns=100)
    terminal.wait_for("ID or name, Enter for")
    terminal.send("nobody" + ENTER)
    terminal.wait_for("Error: There is no session 'nobody'")
    terminal.send(UP)
    terminal.send(UP)
    older = next(line for line in terminal.lines() if line.endswith("First?")).split()[0]
    terminal.wait_until("the older one", lambda lines: lines[-1].endswith(f": {older}"))
    terminal.send(ENTER)
    terminal.wait_for("Going on with: First? (1 exchange)")
    terminal.send(CTRL_D)
    assert terminal.finish() == 0
