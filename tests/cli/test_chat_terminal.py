"""`mlxmtp chat` in a real terminal, with a queue for a network."""

from __future__ import annotations

import os
import re
import signal
import stat
import termios
import time
from pathlib import Path

import pytest

from mlxmtp.chat.conversation import Conversation
from mlxmtp.chat.journal import read_events
from tests.cli.conftest import Program, Terminal

FIRST = "mlxmtp chat: /help, Ctrl+D to leave"
ENTER, CTRL_C, CTRL_D, CTRL_G, CTRL_J, CTRL_R, CTRL_T, UP = "\r", "\x03", "\x04", "\x07", "\n", "\x12", "\x14", "\x1b[A"
ESCAPE = re.compile(rb"\x1b")
COLOUR = re.compile(rb"\x1b\[(?:[0-9]*;)*(?:[34][0-8]|9[0-7]|10[0-7])[;m]")


def begin(program: Program, *args: str, columns: int = 100, rows: int = 30) -> Terminal:
    """A conversation that waits for its first line."""
    terminal = program.terminal("chat", *args, columns=columns, rows=rows)
    terminal.wait_for("/model\n>")
    return terminal


def leave(terminal: Terminal) -> list[str]:
    """Ctrl+D, once there is a line to press it in."""
    terminal.wait_until("a prompt", lambda lines: lines[-1].startswith(">"))
    terminal.send(CTRL_D)
    assert terminal.finish() == 0
    assert terminal.cursor_column == 0
    return terminal.lines()


def go_on(program: Program, terminal: Terminal) -> None:
    """Let the answer go on, once what was typed has been taken."""
    terminal.wait_until_taken()
    program.go_on()


def one_turn(program: Program, question: str, answer: str) -> None:
    """A conversation of its own."""
    terminal = begin(program)
    terminal.send(question + ENTER)
    terminal.wait_for(answer)
    leave(terminal)


def test_two_turns_and_out(program: Program) -> None:
    program.answers = ["# Title\n\nSome **bold** words [red]here[/red].\n\n- 中文\n<turn|>", "Second.<turn|>"]
    terminal = begin(program)
    terminal.send("Hi" + ENTER)
    terminal.wait_for("tok/pass")
    terminal.send("And?" + ENTER)
    terminal.wait_for("Second.")
    terminal.wait_for("prompt 91 tok")
    lines = leave(terminal)
    assert lines[0] == FIRST
    assert lines[1].startswith("Note: There is no drafter for")
    start = lines.index("> Hi")
    assert lines[start : start + 7] == ["> Hi", "", "Title", "", "Some bold words [red]here[/red].", "", " • 中文"]
    assert re.match(r"\d+ tok · ", lines[start + 7])
    assert "Second." in lines


def test_a_question_typed_before_the_prompt_is_there(program: Program) -> None:
    program.anew = True
    program.answers = ["Hello.<turn|>"]
    terminal = program.terminal("chat")
    terminal.wait_for(FIRST)
    terminal.send("Hi" + ENTER)
    terminal.wait_for("Hello.")
    assert [line for line in leave(terminal) if "Hi" in line] == ["> Hi"]


def test_it_wants_a_terminal(program: Program) -> None:
    done = program.run("chat")
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.decode() == (
        "Error: mlxmtp chat needs a terminal for what you type and read; for pipes there is mlxmtp ask.\n"
    )


def test_ctrl_c_while_the_model_is_read(program: Program) -> None:
    program.env = {"FAKE_LOAD": "wait"}
    program.answers = ["Hello.<turn|>"]
    terminal = begin(program)
    terminal.send("Hi" + ENTER)
    terminal.wait_for("loading")
    terminal.send(CTRL_C)
    terminal.wait_for("loaded.\n> Hi")
    assert "is still being loaded." in " ".join(terminal.lines())
    program.go_on()
    terminal.send(ENTER)
    terminal.wait_for("Hello.")
    assert [line for line in leave(terminal) if line.startswith("> ")] == ["> Hi", "> Hi"]


def test_ctrl_c_while_the_prompt_is_read(program: Program) -> None:
    program.env = {"FAKE_PREFILL": '["stop"]'}
    program.answers = ["Never.<turn|>", "Hello.<turn|>"]
    terminal = begin(program)
    terminal.send("Hi" + ENTER)
    terminal.wait_for("reading the prompt")
    terminal.send(CTRL_C)
    terminal.wait_for("Stopped before the answer began.\n\n> Hi")
    terminal.send(" there" + ENTER)
    terminal.wait_for("> Hi there")
    terminal.wait_for("Never.")  # the queue's first answer: the request before was not answered at all
    assert "> Hi there" in leave(terminal)


def test_ctrl_c_within_a_thought(program: Program) -> None:
    program.answers = ["<|channel>thought\nLet me see{stop} what this is<channel|>Never.<turn|>", "Hello.<turn|>"]
    terminal = begin(program, "--think")
    terminal.send("Hi" + ENTER)
    terminal.wait_for("Let me")
    terminal.send(CTRL_C)
    terminal.wait_for("Stopped before the answer began.\n\n> Hi")
    terminal.send(ENTER)
    terminal.wait_for("Hello.")
    lines = leave(terminal)
    assert "Never." not in lines
    assert not any("Let me" in line for line in lines)


def test_ctrl_c_within_an_answer(program: Program) -> None:
    program.answers = ["First paragraph.\n\nThe second goes{stop} on and on and on<turn|>", "Hello.<turn|>"]
    terminal = begin(program)
    terminal.send("Hi" + ENTER)
    terminal.wait_for("goes")
    terminal.send(CTRL_C)
    terminal.wait_for("stopped · ")
    terminal.send("Again" + ENTER)
    terminal.wait_for("Hello.")
    lines = leave(terminal)
    assert "First paragraph." in lines
    assert "on and on and on" not in "\n".join(lines)
    assert "> Again" in lines


def test_a_thought_folds_and_ctrl_t_brings_it_back(program: Program) -> None:
    program.answers = ["<|channel>thought\nLet me see.{wait} Done.<channel|>Yes.<turn|>"]
    terminal = begin(program, "--think")
    terminal.send("Hi" + ENTER)
    terminal.wait_for("Ctrl+T hides it")
    terminal.wait_for("Let me see")
    terminal.send(CTRL_T)
    terminal.wait_for("Ctrl+T shows it")
    assert "Let me see" not in "\n".join(terminal.lines())
    terminal.send(CTRL_T)
    terminal.wait_for("Let me see")
    program.go_on()
    terminal.wait_for("tok/pass")
    lines = terminal.lines()
    folded = next(at for at, line in enumerate(lines) if re.fullmatch(r"thought for \d+(\.\d)? s", line))
    assert lines[folded - 2 : folded] == ["> Hi", ""]
    assert lines[folded + 1 : folded + 3] == ["", "Yes."]
    terminal.send(CTRL_T)
    terminal.wait_for("Let me see. Done.\n\n>")
    leave(terminal)


def test_a_question_typed_while_a_command_works_is_sent_and_shown_once(program: Program) -> None:
    (program.home / "material").mkdir()
    (program.home / "material" / "a.txt").write_text("Alpha", encoding="utf-8")
    git = program.home / "git"  # which the command asks about the folder
    git.write_text("#!/bin/sh\ntouch begun\nwhile [ ! -e typed ]; do sleep 0.1; done\nexit 1\n", encoding="utf-8")
    git.chmod(0o755)
    program.env = {"PATH": f"{program.home}:{os.environ['PATH']}"}
    program.answers = ["Fine.<turn|>"]
    terminal = begin(program)
    terminal.send("/file material" + ENTER)
    while not (program.home / "begun").exists():
        time.sleep(0.05)
    terminal.send("What is it?" + ENTER)
    (program.home / "typed").touch()
    terminal.wait_for("Fine.")
    assert "\n".join(leave(terminal)).count("What is it?") == 1


def test_a_cache_is_not_kept_without_a_session(program: Program) -> None:
    terminal = program.terminal("chat", "--no-save", "--keep-cache", columns=120)
    assert terminal.finish() == 2
    assert "but --no-save keeps none: take one." in terminal.lines()[-1]


@pytest.mark.parametrize("flags", [(), ("--keep-cache",)])
def test_three_ctrl_c_leave_a_model_that_does_not_react(program: Program, flags: tuple[str, ...]) -> None:
    program.env = {"FAKE_SOON": "600"}  # or two would be enough, should the machine be busy
    program.answers = ["Hello there{sleep 0.3} and more{never} and more<turn|>"]
    terminal = begin(program, *flags)
    terminal.send("Hi" + ENTER)
    terminal.wait_for("\nHello there and")
    program.wait_for_never()
    for number in range(3):
        program.wait_for_stops(number)  # two at once are one signal
        terminal.send(CTRL_C)
    assert terminal.drain() == 0
    assert terminal.cursor_column == 0
    said = "The model does not react: keys and values were not kept." in terminal.lines()
    assert said == bool(flags)


def test_a_thought_without_words_is_seen_while_it_lasts(program: Program) -> None:
    program.answers = ["<|channel>thought{wait}\n<channel|>Yes.<turn|>"]
    terminal = begin(program, "--think")
    terminal.send("Hi" + ENTER)
    terminal.wait_until(
        "seconds", lambda lines: re.match(r"thinking [1-9]\d* s · Ctrl\+T hides it", lines[-1]) is not None
    )
    program.go_on()
    terminal.wait_for("tok/pass")
    lines = leave(terminal)
    start = lines.index("> Hi")
    assert lines[start : start + 3] == ["> Hi", "", "Yes."]


def test_what_is_typed_ahead_waits_in_the_next_line(program: Program) -> None:
    program.answers = ["One{wait} two<turn|>", "Three<turn|>"]
    terminal = begin(program)
    terminal.send("Hi" + ENTER)
    terminal.wait_for("One")
    terminal.send("next" + ENTER)
    go_on(program, terminal)
    terminal.wait_for("> next")
    assert "next" not in "\n".join(terminal.lines()).partition("One two")[0]
    terminal.send(" one" + ENTER)
    terminal.wait_for("Three")
    assert "> next one" in leave(terminal)


def test_ctrl_d_during_an_answer_leaves_after_it(program: Program) -> None:
    program.answers = ["One{wait} two<turn|>"]
    terminal = begin(program)
    terminal.send("Hi" + ENTER)
    terminal.wait_for("One")
    terminal.send(CTRL_D)
    go_on(program, terminal)
    assert terminal.finish() == 0
    assert "One two" in terminal.lines()


def test_pasted_text_keeps_its_lines_and_is_no_command(program: Program) -> None:
    program.answers = ["Pasted.<turn|>"]
    terminal = begin(program)
    terminal.send("\x1b[200~/exit\r\nsecond line\x1b[201~")
    terminal.wait_for("> /exit\n  second line")
    terminal.send(ENTER)
    terminal.wait_for("Pasted.")
    leave(terminal)
    assert "Hello" not in terminal.raw.decode()


PASTED = "\x1b[200~{}\x1b[201~"
MARKS, NO_MARKS = b"\x1b[?2004h", b"\x1b[?2004l"


def test_what_is_pasted_during_an_answer_is_no_command(program: Program) -> None:
    program.answers = ["One{wait} two<turn|>", "Three<turn|>"]
    terminal = begin(program)
    terminal.send("Hi" + ENTER)
    terminal.wait_for("One")
    assert terminal.raw.rfind(MARKS) > terminal.raw.rfind(NO_MARKS)
    terminal.send("\x1a")  # there is no shell to go back to, so the answer goes on
    terminal.send(PASTED.format("/exit\r\nsecond line\rthird"))
    go_on(program, terminal)
    terminal.wait_for("> /exit\n  second line\n  third")
    terminal.send(ENTER)
    terminal.wait_for("Three")
    leave(terminal)
    assert terminal.raw.rfind(NO_MARKS) > terminal.raw.rfind(MARKS)


def test_what_is_pasted_before_the_prompt_is_there_waits_in_it(program: Program) -> None:
    program.anew = True
    program.answers = ["Hello.<turn|>"]
    terminal = program.terminal("chat")
    terminal.wait_until("marks", lambda _: MARKS in terminal.raw)
    assert b"Note" not in terminal.raw.partition(MARKS)[0]  # they do not come with the prompt
    terminal.send(PASTED.format("/exit\rsecond line\rthird"))
    terminal.wait_for("> /exit\n  second line\n  third")
    terminal.send(" one" + ENTER)
    terminal.wait_for("Hello.")
    assert "  third one" in leave(terminal)


@pytest.mark.parametrize("end", ["SIGTERM", "Ctrl+C", "no model"])
def test_an_end_before_the_prompt_leaves_the_terminal_as_it_was(program: Program, end: str) -> None:
    program.anew = True
    program.env = {"FAKE_INTERRUPT_AT": "prompt_toolkit"} if end == "Ctrl+C" else {}
    terminal = program.terminal("chat", *(["-m", "no/model"] if end == "no model" else []))
    terminal.wait_until("marks", lambda _: MARKS in terminal.raw)
    if end == "SIGTERM":
        terminal.process.send_signal(signal.SIGTERM)
    assert terminal.drain() in {"SIGTERM": (-15, 128 + 15), "Ctrl+C": (130,), "no model": (1, 3)}[end]
    assert termios.tcgetattr(terminal.descriptor) == terminal.modes_before
    assert terminal.raw.rfind(NO_MARKS) > terminal.raw.rfind(MARKS)
    terminal.close()


def test_a_command_typed_after_a_paste_was_taken_away_is_one(program: Program) -> None:
    terminal = begin(program)
    terminal.send(PASTED.format("/exit and text"))
    terminal.wait_for("> /exit and text")
    terminal.send(CTRL_C + "/help undo" + ENTER)
    terminal.wait_for("Take back the last question")
    leave(terminal)


def test_a_command_from_the_history_is_one_after_a_paste(program: Program) -> None:
    terminal = begin(program)
    terminal.send("/help undo" + ENTER)
    terminal.wait_for("Take back the last question")
    terminal.send(PASTED.format("x") + UP)
    terminal.wait_until("the command", lambda lines: lines[-1] == "> /help undo")
    terminal.send(ENTER)
    terminal.wait_until("its text", lambda lines: sum("Take back the last" in line for line in lines) == 2)
    leave(terminal)


def test_a_command_typed_in_place_of_a_returned_question_is_one(program: Program) -> None:
    program.answers = ["<|channel>thought\nLet me see{stop} what this is<channel|>Never.<turn|>"]
    terminal = begin(program, "--think")
    terminal.send(" /exit is what?" + ENTER)
    terminal.wait_for("Let me")
    terminal.send(CTRL_C)
    terminal.wait_for("Stopped before the answer began.\n\n> /exit is what?")
    terminal.send(CTRL_C + "/exit" + ENTER)
    assert terminal.finish() == 0


def test_a_returned_question_that_looks_like_a_command_is_a_question(program: Program) -> None:
    program.answers = ["<|channel>thought\nLet me see{stop} what this is<channel|>Never.<turn|>", "Hello.<turn|>"]
    terminal = begin(program, "--think")
    terminal.send(" /exit is what?" + ENTER)
    terminal.wait_for("Let me")
    terminal.send(CTRL_C)
    terminal.wait_for("Stopped before the answer began.\n\n> /exit is what?")
    terminal.send(" More" + ENTER)
    terminal.wait_for("Hello.")
    leave(terminal)


def test_a_pasted_question_longer_than_the_window_stays_whole(program: Program) -> None:
    program.answers = ["Read.<turn|>", "Short.<turn|>"]
    terminal = begin(program, columns=100, rows=7)
    rows = [f"row {number}" for number in range(12)]
    terminal.send(PASTED.format("\r\n".join([*rows, "\tx\x07" + "y" * 100])))
    terminal.wait_for("  row 11\n")
    terminal.send(ENTER)
    terminal.wait_for("Read.")
    terminal.wait_for("tok/pass")
    terminal.send("And?" + ENTER)
    terminal.wait_for("Short.")
    lines = leave(terminal)
    start = lines.index("> row 0")
    assert lines[start + 1 : start + 12] == [f"  {row}" for row in rows[1:]]
    assert lines[start + 12 : start + 15] == ["      x" + "y" * 93, "  " + "y" * 7, ""]
    assert not any("row" in line for line in lines[:start] + lines[start + 12 :])
    assert lines.count("> And?") == 1


def test_lines_within_a_message(program: Program) -> None:
    program.answers = ["A.<turn|>", "B.<turn|>"]
    terminal = begin(program)
    terminal.send("one" + CTRL_J + "two\x1b\rthree" + ENTER)
    terminal.wait_for("> one\n  two\n  three\n\nA.")
    terminal.wait_for("tok/pass")
    terminal.send('"""' + ENTER + "x = 1" + ENTER + "/exit" + ENTER + '"""' + ENTER)
    terminal.wait_for("B.")
    leave(terminal)
    shown = program.run("sessions", "show", latest(program)).stdout.decode()
    assert "one\ntwo\nthree" in shown
    assert "x = 1\n/exit" in shown


def latest(program: Program) -> str:
    (session,) = (program.home / "sessions").glob("*.jsonl")
    return session.stem


def test_ctrl_c_at_the_prompt_clears_the_line(program: Program) -> None:
    terminal = begin(program)
    terminal.send("never sent")
    terminal.wait_for("> never sent")
    terminal.send(CTRL_C)
    terminal.send("/stats" + ENTER)
    terminal.wait_for("There are no figures yet: ask something first.\n>")
    terminal.send(CTRL_C)
    terminal.wait_for("Ctrl+D leaves, /help lists the commands.\n>")
    assert not any("never" in line for line in leave(terminal))


def test_history_outlives_the_program(program: Program) -> None:
    program.answers = ["A.<turn|>"]
    one_turn(program, "first question", "tok/pass")
    history = program.home / "history"
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    again = begin(program)
    again.send(UP)
    again.wait_for("> first question")
    again.send(CTRL_C + CTRL_R + "quest")
    again.wait_for("first question")
    again.send(CTRL_C + CTRL_C)
    leave(again)
    unsaved = begin(program, "--no-save")
    unsaved.send(UP + "/stats" + ENTER)
    unsaved.wait_for("> /stats\n")
    leave(unsaved)
    assert "/stats" not in history.read_text()


def test_a_long_history_loses_its_older_half(program: Program) -> None:
    history = program.home / "history"
    history.parent.mkdir(parents=True, exist_ok=True)
    entry = "\n# 2026-11-23 08:00:00\n+question {}\n+# 2 of it\n"
    history.write_text("".join(entry.format(i) for i in range(50_000)))
    history.chmod(0o600)
    terminal = begin(program)
    terminal.send(UP)
    terminal.wait_for("> question 49999\n")
    terminal.send(CTRL_C)
    leave(terminal)
    kept = history.read_text()
    assert 900_000 < len(kept) <= 2**20
    assert kept.startswith("\n# 2026")
    assert kept.endswith(entry.format(49_999))
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    assert [path.name for path in history.parent.glob(".history*")] == []


def test_tab_completes(program: Program) -> None:
    (program.home / "notes.txt").write_text("Alpha", encoding="utf-8")
    terminal = begin(program)
    terminal.send("/contin\t")
    terminal.wait_for("> /continue")
    terminal.send(CTRL_C)
    terminal.send("/file no\t")
    terminal.wait_for("> /file notes.txt")
    terminal.send(CTRL_C)
    terminal.send("see @no\t")
    terminal.wait_for("> see @notes.txt")
    terminal.send(CTRL_C)
    terminal.send("/model poc\t")
    terminal.wait_for("> /model pocket")
    terminal.send(CTRL_C)
    leave(terminal)


def test_ctrl_c_leaves_an_edit_and_the_next_message_is_a_new_one(program: Program) -> None:
    program.answers = ["First.<turn|>", "Second.<turn|>"]
    terminal = begin(program)
    terminal.send("One?" + ENTER)
    terminal.wait_for("tok/pass")
    terminal.send("/edit" + ENTER)
    terminal.wait_for("an empty line leaves it as it was.\n> One?")
    terminal.send(" or two" + CTRL_C)
    terminal.wait_for("The question stays as it was.")
    terminal.send("Three?" + ENTER)
    terminal.wait_until("a prompt", lambda lines: "Second." in lines and lines[-1] == ">")
    terminal.send("/context" + ENTER)
    terminal.wait_for("2 exchanges")
    leave(terminal)


def test_ctrl_g_opens_the_editor(program: Program) -> None:
    editor = program.home / "my editor"
    editor.write_text('#!/bin/sh\nprintf "edited %s" "$(cat "$1")" > "$1"\n', encoding="utf-8")
    editor.chmod(0o755)
    program.env = {"EDITOR": f"'{editor}'"}
    terminal = begin(program)
    terminal.send("text" + CTRL_G)
    terminal.wait_for("> edited text")
    terminal.send(CTRL_C)
    leave(terminal)


def test_ctrl_g_says_what_is_wrong_with_the_editor(program: Program) -> None:
    program.env = {"VISUAL": "'no editor"}
    terminal = begin(program)
    terminal.send("text" + CTRL_G)
    terminal.wait_for("lacks a quotation mark: set VISUAL or EDITOR.")
    terminal.send(CTRL_C)
    leave(terminal)


def test_a_window_that_gets_narrower_and_wider_in_mid_answer(program: Program) -> None:
    words = " ".join(f"word{number:02}" for number in range(30))
    program.answers = [f"Short.\n\nwide{{wait}} {words}{{wait}} end<turn|>"]
    terminal = begin(program)
    terminal.send("Hi" + ENTER)
    terminal.wait_for("wide")
    terminal.resize(50, 30)
    program.go_on()
    terminal.wait_for("word29")
    terminal.resize(90, 30)
    program.go_on()
    terminal.wait_for("tok/pass")
    lines = leave(terminal)
    start, end = lines.index("Short."), next(at for at, line in enumerate(lines) if "tok/s" in line)
    assert " ".join(lines[start + 2 : end]) == f"wide {words} end"


def test_what_enter_n_ctrl_c_and_ctrl_d_mean_when_the_context_is_full(program: Program) -> None:
    long = "y" * 150
    program.answers = ["z" * 60 + "<turn|>", "Fits.<turn|>"]
    terminal = begin(program, columns=200, rows=60)
    terminal.send(long + ENTER)
    terminal.wait_for("tok/pass")

    def count(text: str, lines: list[str]) -> int:
        return sum(text in line for line in lines)

    def asked(times: int) -> None:
        """The question is on the screen, and what is pressed now answers it."""
        terminal.wait_until("a question", lambda lines: count("[Y/n]", lines) == times)

    def refused(times: int) -> None:
        """Nothing was sent, and what could not be sent is in the line."""
        terminal.wait_until(
            "a refusal", lambda lines: count("Nothing was sent", lines) == times and lines[-1] == f"> {long}"
        )

    terminal.wait_until("a prompt", lambda lines: lines[-1] == ">")
    terminal.send(long + ENTER)
    for times, keys in enumerate((CTRL_C, CTRL_D, "n" + ENTER), 1):
        asked(times)
        terminal.send(keys)
        refused(times)
        terminal.send(ENTER)
    asked(4)
    terminal.send(ENTER)
    terminal.wait_for("Fits.")
    leave(terminal)


def test_forty_columns(program: Program) -> None:
    words = " ".join(f"word{number:02}" for number in range(12))
    program.answers = [f"{words}\n\n| a | b |\n|---|---|\n| 1 | 中 |\n\n```\n{'x' * 60}\n```\n<turn|>"]
    terminal = program.terminal("chat", columns=40)
    terminal.wait_until("the prompt", lambda rows: "/model>" in "".join(rows) and ">" in rows)  # paths break anywhere
    terminal.send("a question that is longer than forty columns are" + ENTER)
    terminal.wait_for("accepted")
    terminal.wait_for("context")
    lines = leave(terminal)
    assert "> a question that is longer than forty c" in lines
    assert "word00 word01 word02 word03 word04" in lines
    assert "x" * 40 in lines
    assert max(map(len, lines)) <= 40


def test_without_colours(program: Program) -> None:
    program.env = {"NO_COLOR": "1"}
    program.answers = ["Some `code`.\n\n```python\nx = 1\n```\n<turn|>"]
    terminal = begin(program)
    terminal.send("Hi" + ENTER)
    terminal.wait_for("tok/pass")
    terminal.send("/s\t")
    terminal.wait_until("a menu", lambda lines: all(word in " ".join(lines) for word in ("/save ", "/stats")))
    terminal.send(CTRL_C)
    leave(terminal)
    assert not COLOUR.search(terminal.raw)


def test_plain_shows_an_answer_as_it_was_written(program: Program) -> None:
    program.answers = ["Some **x** words.<turn|>"]
    terminal = begin(program, "--plain")
    terminal.send("Hi" + ENTER)
    terminal.wait_for("tok/pass")
    assert "Some **x** words." in leave(terminal)


def test_a_dumb_terminal_gets_no_escape_at_all(program: Program) -> None:
    program.env = {"TERM": "dumb"}
    program.answers = ["<|channel>thought\nHm.<channel|>Some **text**.<turn|>", "Long{stop} and longer<turn|>"]
    terminal = begin(program, "--think", "--hide-thinking")
    terminal.send('"""\n/exit\n"""\n')
    terminal.wait_for("Some **text**.")
    terminal.wait_for("tok/pass")
    terminal.send("/hlep\n")
    terminal.wait_for("Did you mean /help?")
    terminal.send("More\n")
    terminal.wait_for("Long")
    terminal.send(CTRL_C)
    terminal.wait_for("stopped · ")
    lines = leave(terminal)
    assert re.search(r"\nthought for \d+(\.\d)? s\n\nSome \*\*text\*\*\.\n", "\n".join(lines))
    assert not ESCAPE.search(terminal.raw)


def test_going_on_with_the_latest_session(program: Program) -> None:
    program.answers = ["Hello.<turn|>"]
    terminal = begin(program)
    terminal.send("Hi" + ENTER)
    terminal.wait_for("tok/pass")
    leave(terminal)
    program.answers = ["More.<turn|>"]
    again = program.terminal("chat", "-c", columns=100)
    again.wait_for("Going on with: Hi (1 exchange)\n\n> Hi\n\nHello.\n\n>")
    again.send("Go on" + ENTER)
    again.wait_for("More.")
    leave(again)
    resumed = program.terminal("chat", "-r", latest(program)[:4], columns=100)
    resumed.wait_for("Going on with: Hi (2 exchanges)")
    resumed.wait_for("More.\n\n>")
    leave(resumed)
    assert len(list(Path(program.home / "sessions").glob("*.jsonl"))) == 1


def test_without_saving_the_latest_session_is_only_read(program: Program) -> None:
    program.answers = ["One.<turn|>"]
    one_turn(program, "First?", "One.")
    (session,) = Path(program.home / "sessions").iterdir()
    before = session.read_bytes()
    terminal = program.terminal("chat", "-c", "--no-save", columns=100, rows=30)
    terminal.wait_until("a prompt", lambda lines: lines[-1:] == [">"])
    assert "Going on with: First? (1 exchange)" in terminal.lines()
    terminal.send("Second?" + ENTER)
    terminal.wait_until("an answer", lambda lines: sum(line == "One." for line in lines) == 2)
    leave(terminal)
    assert [path.read_bytes() for path in Path(program.home / "sessions").iterdir()] == [before]


def test_a_session_is_chosen_from_the_list(program: Program) -> None:
    program.answers = ["One.<turn|>"]
    for question in ("First?", "Second?"):
        one_turn(program, question, "One.")
    terminal = program.terminal("chat", "-r")
    terminal.wait_for("ID or name, Enter for")
    older = next(line for line in terminal.lines() if line.endswith("First?")).split()[0]
    terminal.send(older + ENTER)
    terminal.wait_for("Going on with: First? (1 exchange)")
    terminal.wait_for("> First?")
    leave(terminal)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize(
    ("answer", "shown"),
    [
        ("{never}", "/model\n>"),
        ("<|channel>thought\nLet me see{never} more and more", "Let me"),
        ("One two three four{never} five six", "three"),
    ],
)
def test_a_signal_ends_it_with_the_terminal_as_it_was_and_nothing_lost(
    program: Program, number: signal.Signals, answer: str, shown: str
) -> None:
    program.answers = [answer]
    terminal = program.terminal("chat", "--think", columns=100)
    terminal.wait_for("/model\n>")
    if shown not in "/model\n>":
        terminal.send("Count" + ENTER)
    terminal.wait_for(shown)
    terminal.process.send_signal(number)
    assert terminal.drain() == 128 + number
    assert termios.tcgetattr(terminal.descriptor) == terminal.modes_before
    terminal.close()
    assert terminal.raw.rfind(b"\x1b[?2004l") > terminal.raw.rfind(b"\x1b[?2004h")  # no bracketed paste is left
    assert terminal.raw.rfind(b"\x1b[?25h") >= terminal.raw.rfind(b"\x1b[?25l")
    if shown == "three":
        (path,) = (program.home / "sessions").glob("*.jsonl")
        (exchange,) = Conversation.restore(read_events(path.read_bytes(), path)).exchanges
        assert exchange.reply is not None
        assert exchange.reply.text.startswith("One two three")
        assert b'"finish_reason": "cancelled"' in path.read_bytes()


def test_bytes_that_are_no_text_do_not_end_it(program: Program) -> None:
    program.answers = ["Coffee.<turn|>"]
    terminal = begin(program)
    terminal.send(b"caf\xe9\r")
    terminal.wait_for("Coffee.")
    leave(terminal)


def test_files_from_the_command_line(program: Program) -> None:
    (program.home / "notes.txt").write_text("Alpha", encoding="utf-8")
    program.answers = ["Read.<turn|>"]
    terminal = begin(program, "-f", "notes.txt", "-s", "Be brief.")
    terminal.send("What?" + ENTER)
    terminal.wait_for("Read.")
    leave(terminal)
    text = (program.home / "sessions" / f"{latest(program)}.jsonl").read_text(encoding="utf-8")
    assert "--- notes.txt ---" in text
    assert "Be brief." in text
    for name in ("-", "/dev/stdin"):
        refused = program.terminal("chat", "-f", name, columns=120)
        assert refused.finish() == 2
        assert refused.lines()[-1].startswith("Error: mlxmtp chat takes what you type from stdin")
        assert refused.lines()[-1].endswith("use mlxmtp ask -f -.")
    assert b"stdin" not in program.run("chat", "--help").stdout
    missing = program.terminal("chat", "-f", "none.txt", columns=100)
    assert missing.finish() == 2
    assert missing.lines()[-1] == "Error: There is no file none.txt."
