"""`mlxmtp ask` in a real terminal."""

from __future__ import annotations

import re

import pytest

from tests.cli.conftest import Program

ANSWER = "# Title\n\nSome **bold** words [red]here[/red].\n\n```python\nx = 1\n```\n\n- 中文 one\n- two<turn|>"
ESCAPE = re.compile(rb"\x1b")


def test_markdown_is_rendered(program: Program) -> None:
    program.answers = [ANSWER]
    terminal = program.terminal("ask", "Hi", "-q")
    assert terminal.finish() == 0
    assert terminal.lines() == [
        "Title", "", "Some bold words [red]here[/red].", "", "x = 1", "", " • 中文 one", " • two"
    ]  # fmt: skip
    assert terminal.cursor_column == 0


def test_statistics_are_broken_between_words(program: Program) -> None:
    program.answers = ["Hello.<turn|>"]
    terminal = program.terminal("ask", "Hi", "--stats")
    assert terminal.finish() == 0
    figures = terminal.lines()[terminal.lines().index("Hello.") + 1 :]
    assert len(figures) > 1
    assert re.fullmatch(r"\d+ tok · .* tok/pass, .* · seed \d+ · no drafter", " ".join(figures))


def test_after_ctrl_z_what_the_shell_wrote_stays(program: Program) -> None:
    program.answers = ["row " * 30 + "{sleep 0.2}row {wait}and the end<turn|>"]
    terminal = program.terminal("ask", "Hi", "-q")
    terminal.wait_until("two rows", lambda lines: "\n".join(lines).count("row") > 20)
    program.wait_for_wait()
    terminal.suspend("\r\n[1]+  Stopped\r\n$ fg\r\n")
    program.go_on()
    assert terminal.finish() == 0
    text = "\n".join(terminal.lines())
    assert "[1]+  Stopped\n$ fg\n" in text
    assert text.rstrip().endswith("and the end")


def test_plain_and_dumb_terminals_get_the_text_as_it_is(program: Program) -> None:
    program.answers = [ANSWER]
    plain = program.terminal("ask", "Hi", "--plain", "-q")
    assert plain.finish() == 0
    assert "Some **bold** words [red]here[/red]." in plain.lines()
    assert not ESCAPE.search(plain.raw)
    program.env = {"TERM": "dumb"}
    dumb = program.terminal("ask", "Hi")
    assert dumb.finish() == 0
    assert "# Title" in dumb.lines()
    assert not ESCAPE.search(dumb.raw)


def test_colours_can_be_switched_off(program: Program) -> None:
    program.answers = ["Some `code`.\n<turn|>"]
    colour = re.compile(rb"\x1b\[[0-9;]*3[0-7]")
    assert colour.search(_raw(program, "ask", "Hi"))
    assert not colour.search(_raw(program, "ask", "Hi", "--no-color"))
    assert not colour.search(_raw(program, "--no-color", "ask", "Hi"))
    program.env = {"NO_COLOR": "1"}
    assert not colour.search(_raw(program, "ask", "Hi"))


def test_thinking_is_dim_above_the_answer(program: Program) -> None:
    program.answers = ["<|channel>thought\nLet me see.<channel|>Yes.<turn|>"]
    terminal = program.terminal("ask", "Hi", "--think", "--no-draft")
    assert terminal.finish() == 0
    assert terminal.lines() == ["Let me see.", "", "Yes."]
    assert b"\x1b[2mLet" in terminal.raw.replace(b"\x1b[2mL\x1b[0m\x1b[2met", b"\x1b[2mLet")
    hidden = program.terminal("ask", "Hi", "--think", "--hide-thinking", "--no-draft")
    assert hidden.finish() == 0
    assert hidden.lines() == ["Yes."]


@pytest.mark.parametrize("plain", [[], ["--plain"]])
def test_a_thought_after_text_stands_below_it(program: Program, plain: list[str]) -> None:
    program.answers = ["One.\n\nTwo <|channel>thought\nLet me see.<channel|>Three.<turn|>"]
    terminal = program.terminal("ask", "Hi", "--think", "--no-draft", *plain)
    assert terminal.finish() == 0
    assert [line for line in terminal.lines() if line][-4:] == ["One.", "Two", "Let me see.", "Three."]


def test_a_thought_ends_at_its_budget(program: Program) -> None:
    program.answers = ["<|channel>thought\nLong and longer", "Yes.<turn|>"]
    terminal = program.terminal("ask", "Hi", "--think", "--think-tokens", "6", "--no-draft")
    assert terminal.finish() == 0
    assert terminal.lines()[-1] == "Yes."
    assert "longer" not in "\n".join(terminal.lines())


def test_ctrl_c_leaves_the_line_after_the_server_to_the_shell(program: Program) -> None:
    terminal = program.terminal("serve", "--port", "0", columns=100)
    terminal.wait_for("on http://127.0.0.1:")
    terminal.send("\x03")
    assert terminal.finish() == 0
    assert terminal.lines()[-1].endswith("^C")
    assert terminal.cursor_column == 0


def test_no_prompt_at_a_terminal_is_usage_at_once(program: Program) -> None:
    terminal = program.terminal("ask", columns=100)
    assert terminal.finish() == 2
    assert terminal.lines()[0] == "Usage: mlxmtp ask [OPTIONS] [PROMPT]..."
    assert terminal.lines()[-1].startswith("Error: There is nothing to ask")


def test_ctrl_c_keeps_what_was_said_and_leaves_a_clean_terminal(program: Program) -> None:
    program.answers = ["First paragraph.\n\nThe second one goes{sleep 0.2} on{never} and on"]
    terminal = program.terminal("ask", "Hi", "-q")
    terminal.wait_for("goes")
    terminal.send("\x03")
    assert terminal.finish() == 130
    lines = terminal.lines()
    assert lines[0] == "First paragraph."
    assert lines[2].startswith("The second one goes")
    assert terminal.cursor_column == 0
    assert "Traceback" not in "\n".join(lines)


def test_ctrl_c_while_loading_leaves_nothing_behind(program: Program) -> None:
    """Neither the progress line nor the terminal's own `^C`."""
    program.env = {"FAKE_LOAD": "sleep 60"}
    terminal = program.terminal("ask", "Hi", "--no-draft")
    terminal.wait_for("loading")
    terminal.send("\x03")
    assert terminal.finish() == 130
    assert b"^C" in terminal.raw
    assert terminal.lines() == []
    assert terminal.cursor_column == 0


def test_a_narrow_terminal_gets_plain_text(program: Program) -> None:
    program.answers = ["**b**<turn|>"]
    terminal = program.terminal("ask", "Hi", "-q", columns=12)
    assert terminal.finish() == 0
    assert terminal.lines() == ["**b**"]


def test_a_missing_drafter_is_said_to_people(program: Program) -> None:
    program.answers = ["a<turn|>"]
    terminal = program.terminal("ask", "Hi", columns=200)
    assert terminal.finish() == 0
    assert "so it decodes without one" in terminal.lines()[0]


def _raw(program: Program, *args: str) -> bytes:
    terminal = program.terminal(*args)
    assert terminal.finish() == 0
    return terminal.raw
