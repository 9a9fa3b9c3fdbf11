"""The two streams: no text that is not ours can control a terminal, and a pipe gets it as it is."""

from __future__ import annotations

import inspect
import re
import unicodedata
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
from rich.cells import get_character_cell_size

from mlxmtp.cli.app import main
from mlxmtp.cli.terminal.output import Look, Output, show_table
from mlxmtp.cli.terminal.presenters import AnswerView, Raw, Rendered
from mlxmtp.engine.stats import Stats
from mlxmtp.errors import MlxmtpError, UsageError, sentence
from mlxmtp.units import text_width
from tests.cli.conftest import Program

ROOT = Path(__file__).parents[2] / "mlxmtp" / "cli"
HOSTILE = {
    "an escape sequence": "\x1b[2J",
    "a title": "\x1b]0;owned\x07",
    "the clipboard": "\x1b]52;c;b3duZWQ=\x1b\\",
    "a bell": "\x07",
    "a C1 sequence": "\x9b2J\x9d0;owned\x9c",
    "a backspace": "\x08\x7f",
    "a return": "\rNote: all is well",
    "an override": "\u202eevil\u202c",
    "an isolate": "\u2066evil\u2069",
}
OURS = re.compile(r"\r\x1b\[K|\x1b\[[0-9]*[mABJKhl]")
LEFT = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


class Screen(StringIO):
    def isatty(self) -> bool:
        return True


DOORS: dict[str, Callable[[Output, str], None]] = {
    "write": Output.write,
    "write_line": Output.write_line,
    "dim": lambda out, text: out.dim([text]),
    "coloured": lambda out, text: out.coloured(text, 32),
    "note": Output.note,
    "error": Output.error,
    "line": Output.line,
    "remark": Output.remark,
    "progress": Output.progress,
    "thinking": Output.thinking,
}


def test_the_marks_of_doctor_are_coloured(program: Program) -> None:
    program.env = {"HF_HUB_OFFLINE": "1"}
    terminal = program.terminal("doctor", columns=100)
    terminal.finish()
    assert "\x1b[32m✓\x1b[0m chip: ".encode() in terminal.raw
    assert any(line.startswith("! hub: ") for line in terminal.lines())
    plain = program.terminal("doctor", "--no-color", columns=100)
    plain.finish()
    assert "✓ chip: ".encode() in plain.raw
    shown, plainly = ([one for one in found.lines() if "disk: " not in one] for found in (terminal, plain))
    assert shown == plainly


def test_what_doctor_finds_is_broken_between_words(program: Program) -> None:
    program.env = {"HF_HUB_OFFLINE": "1"}
    versions = next(line for line in program.run("doctor").stdout.decode().splitlines() if "versions" in line)
    terminal = program.terminal("doctor", columns=50)
    terminal.finish()
    assert {*versions.split()} <= {*" ".join(terminal.lines()).split()}


def test_the_list_of_all_models_fits_a_usual_window(program: Program) -> None:
    terminal = program.terminal("ls", "--all", columns=80)
    assert terminal.finish() == 0
    rows = program.run("ls", "--all").stdout.decode().splitlines()
    assert [line.split()[0] for line in terminal.lines()][: len(rows)] == [row.split()[0] for row in rows]


def test_every_public_method_that_takes_text_is_tried_here() -> None:
    takes_text = {
        name
        for name, method in inspect.getmembers(Output, inspect.isfunction)
        if not name.startswith("_") and len(inspect.signature(method).parameters) > 1
    }
    assert takes_text - {"draw"} == set(DOORS)


@pytest.mark.parametrize("hostile", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("look", [Look(), Look(dumb=True)], ids=["terminal", "dumb"])
@pytest.mark.parametrize("door", DOORS)
def test_no_text_controls_a_terminal(door: str, look: Look, hostile: str) -> None:
    stdout, stderr = Screen(), Screen()
    out = Output(stdout, stderr, look)
    DOORS[door](out, f"before {hostile} after")
    out.settle()
    sent = stdout.getvalue() + stderr.getvalue()
    if look.dumb:
        assert not LEFT.search(sent)
    assert not LEFT.search(OURS.sub("", sent))
    assert "\x1b[2J" not in sent
    assert "before" in sent or door == "progress"


@pytest.mark.parametrize("hostile", HOSTILE.values(), ids=HOSTILE)
def test_no_answer_and_no_table_controls_a_terminal(hostile: str) -> None:
    screen = Screen()
    out = Output(screen, None)
    view = AnswerView(out)
    view.thinking(f"a thought {hostile}")
    view.tick()
    for shape in (view, AnswerView(out, plain=True), Raw(out), Rendered(out)):
        shape.text(f"# title {hostile}\n\n```\ncode {hostile}\n```\n\n| {hostile} |\n|---|\n| {hostile} |\n")
        shape.end("stop", Stats())
    show_table(out, [f"name {hostile}"], [[hostile]])
    assert "code" in screen.getvalue()
    assert not LEFT.search(re.sub(r"\r\x1b\[K|\r(?=\x1b\[)|\x1b\[[0-9;]*[mABKJ]", "", screen.getvalue()))
    assert "\x1b[2J" not in screen.getvalue()


def test_what_is_said_about_a_call_begins_a_row_of_its_own() -> None:
    shown, piped = Screen(), StringIO()
    for stream in (shown, piped):
        raw = Raw(Output(stream, stream))
        raw.text("Let me see.")
        raw.settle()
        raw.settle()
        stream.write("(about it)\n")
        raw.text("\n\nDone.")
        raw.end("stop", Stats())
    assert shown.getvalue() == "Let me see.\n(about it)\n\n\nDone.\n"
    assert piped.getvalue() == "Let me see.(about it)\n\n\nDone.\n"


def test_a_refusal_after_a_wait_for_standard_input_stands_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, on_wait: Callable[[], None], **__: object) -> None:
        on_wait()
        raise UsageError("stdin holds NUL bytes.")

    stderr = Screen()
    monkeypatch.setattr("mlxmtp.chat.attach.join_message", refused)
    monkeypatch.setattr("sys.stdin", None)
    monkeypatch.setattr("sys.stderr", stderr)
    monkeypatch.setenv("TERM", "xterm")
    assert main(["ask", "Hi"]) == 2
    waiting, _, rest = stderr.getvalue().partition("\x1b[0m")
    assert "waiting for standard input" in waiting
    assert rest == "\r\x1b[KError: stdin holds NUL bytes.\n"


def test_an_error_that_quotes_control_characters_is_one_line_of_visible_ones() -> None:
    name = "D\x1b[31m\n\u202ex"
    for error in (MlxmtpError(f"Model '{name}' is damaged."), FileNotFoundError(2, "No such file", name)):
        told = sentence(error)
        assert told.isprintable()
        assert r"D\x1b[31m\n\u202ex" in told


@pytest.mark.parametrize("door", sorted(set(DOORS) - {"progress", "dim"}))
def test_a_pipe_gets_text_as_it_is(door: str) -> None:
    stdout, stderr = StringIO(), StringIO()
    text = "".join(HOSTILE.values())
    DOORS[door](Output(stdout, stderr), text)
    assert text in stdout.getvalue() + stderr.getvalue()


def test_only_the_terminal_package_sends_codes_of_its_own() -> None:
    """Elsewhere `draw` is only handed to what draws markdown."""
    drawing = [
        (path.relative_to(ROOT).as_posix(), line.strip())
        for path in ROOT.rglob("*.py")
        if "terminal" not in path.relative_to(ROOT).parts
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.search(r"\bdraw\(|\.draw\b", line) and "MarkdownStream(" not in line
    ]
    assert drawing == []


def test_a_progress_line_is_one_row_of_whatever_characters() -> None:
    screen = Screen()
    Output(None, screen).progress("loading a\nmodel " + "中" * 100)
    (row,) = OURS.sub("", screen.getvalue()).split("\n")
    assert row.startswith("loading a model 中")
    assert text_width(row) == 76  # of 80: three are for ^C, and half a character does not fit


@pytest.mark.parametrize("columns", [1, 2, 3, 4])
def test_a_progress_line_ends_in_a_window_of_any_width(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlxmtp.cli.terminal.output._size", lambda _: (columns, 10))
    screen = Screen()
    Output(None, screen).progress("loading")
    assert OURS.sub("", screen.getvalue()).strip("\r") == "loading"[: max(0, columns - 3)]


def test_columns_are_counted_as_what_draws_counts_them() -> None:
    """All of Unicode as rich counts it, but for flag letters and skin tones that stand alone."""
    apart = [
        point
        for point in range(0x110000)
        if unicodedata.category(chr(point)) not in ("Cn", "Cs")
        and not (0x1F1E6 <= point <= 0x1F1FF or 0x1F3FB <= point <= 0x1F3FF)
        and text_width(chr(point)) != get_character_cell_size(chr(point))
    ]
    assert len(apart) < 100  # 0 with rich 15 and wcwidth 0.9; either may know a Unicode that the other does not
    texts = {"a\x1b": 1, "中文": 4, "e\u0301": 1, "👍🏽": 2, "❤\ufe0f": 2, "🇩🇪": 2, "👩\u200d👧": 2, "": 0, "é…": 2}
    assert {text: text_width(text) for text in texts} == texts
