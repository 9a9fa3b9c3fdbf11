"""One answer on a terminal that is read back: thought, fold, answer, and windows that change."""

from __future__ import annotations

import signal
import threading
from random import Random

import pyte
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxmtp.app.worker import Worker
from mlxmtp.cli.repl.chat import wait_for_model
from mlxmtp.cli.terminal.keyboard import Keyboard
from mlxmtp.cli.terminal.output import Look, Output
from mlxmtp.cli.terminal.presenters import AnswerView
from mlxmtp.cli.terminal.rows import Flow, RedrawnRows, folded, joined, listed, wrapped
from mlxmtp.units import text_width


class Window(Output):
    """A terminal of a size that can change."""

    def __init__(self, columns: int = 40, rows: int = 10, look: Look | None = None) -> None:
        super().__init__(None, None, look)
        self.columns, self.rows = columns, rows
        self.screen = pyte.HistoryScreen(columns, rows, history=500, ratio=1.0)
        self.stream = pyte.Stream(self.screen)
        self.sent = ""
        self.now = 0.0

    @property
    def terminal(self) -> bool:
        return True

    def size(self) -> tuple[int, int]:
        return self.columns, self.rows

    def draw(self, frame: str) -> None:
        self.sent += frame
        self.stream.feed(frame.replace("\n", "\r\n"))

    def clock(self) -> float:
        self.now += 0.1
        return self.now

    def lines(self) -> list[str]:
        above = ["".join(row[x].data for x in range(self.screen.columns)) for row in self.screen.history.top]
        rows = [row.rstrip() for row in [*above, *self.screen.display]]
        while rows and not rows[-1]:
            rows.pop()
        return rows


def view(window: Window, **options: bool) -> AnswerView:
    return AnswerView(window, clock=window.clock, **options)


def test_a_long_thought_is_shown_in_few_rows_and_leaves_one() -> None:
    window = Window()
    answer = view(window)
    for number in range(200):
        answer.thinking(f"step {number} of the thought. ")
    assert window.lines()[0].startswith("thinking ")
    assert " ".join(window.lines()).endswith("step 199 of the thought.")
    assert not window.screen.history.top
    answer.text("\n\nThe **answer**.")
    answer.end()
    lines = window.lines()
    assert lines[0].startswith("thought for ")
    assert lines[1:] == ["", "The answer."]


def test_a_long_thought_takes_twelve_rows_of_a_high_window() -> None:
    window = Window(rows=40)
    answer = view(window)
    for number in range(200):
        answer.thinking(f"step {number} of the thought. ")
    assert len(window.lines()) == 12


def test_a_thought_without_an_answer_leaves_its_time() -> None:
    window = Window()
    answer = view(window)
    answer.thinking("hm")
    answer.end()
    assert [line.partition(" for ")[0] for line in window.lines()] == ["thought"]


def test_a_thought_without_words_shows_its_seconds_and_leaves_nothing() -> None:
    window = Window()
    now = [0.0]
    answer = AnswerView(window, clock=lambda: now[0])
    answer.thinking("")
    assert window.sent == ""  # many models open and close an empty one at once
    answer.tick()
    assert window.lines() == ["thinking 0 s · Ctrl+T hides it"]
    assert answer.patience == 1.0
    now[0] = 1.0
    answer.tick()
    assert window.lines() == ["thinking 1 s · Ctrl+T hides it"]
    answer.text("Yes")
    answer.thinking("")
    answer.tick()
    answer.end()
    assert window.lines() == ["Yes"]


def test_a_thought_is_timed_from_its_beginning() -> None:
    window = Window()
    answer = view(window)
    answer.thinking("")
    window.now += 3
    answer.thinking("\nhm")
    assert window.lines() == ["thinking 3 s · Ctrl+T hides it", "hm"]
    answer.end()
    assert window.lines() == ["thought for 3 s"]


@pytest.mark.parametrize("words", ["step. " * 80, "hm"])
def test_a_thought_after_text_leaves_all_that_was_said(words: str) -> None:
    window = Window()
    answer = view(window)
    answer.text("A.\n\nB")
    answer.thinking("\n")  # nothing yet
    answer.text(" goes on.\n\n")
    for word in ("\n", words, words):
        answer.thinking(word)
        window.now += 1
        answer.tick()
    assert window.lines()[:4] == ["A.", "", "B goes on.", ""]
    assert window.lines()[4].startswith("thinking ")
    answer.text("\n\nC\n\n")
    window.now += 1
    answer.tick()
    answer.thinking(words)
    window.now += 1
    answer.tick()
    answer.end()
    lines = [line.rpartition(" for ")[0] or line for line in window.lines()]
    assert lines == ["A.", "", "B goes on.", "", "thought", "", "C", "", "thought"]
    assert window.screen.cursor.x == 0


def test_without_escapes_a_thought_after_text_has_rows_of_its_own() -> None:
    window = Window(look=Look(dumb=True))
    answer = view(window)
    for say, text in ((answer.text, "A"), (answer.thinking, "hm"), (answer.text, "\nB\n"), (answer.thinking, "so")):
        say(text)
    answer.end()
    lines = [line.rpartition(" for ")[0] or line for line in window.lines()]
    assert lines == ["A", "", "hm", "", "thought", "", "B", "", "so", "", "thought"]


def test_hiding_and_showing() -> None:
    window = Window()
    answer = view(window, show_thoughts=False)
    answer.thinking("secret words")
    assert "secret" not in window.sent
    answer.toggle()
    assert "secret words" in window.lines()
    answer.toggle()
    assert "secret words" not in window.lines()
    assert not answer.shows_thoughts


def test_seconds_are_whole_from_one_on() -> None:
    window = Window()
    answer = view(window)
    answer.thinking("hm")
    window.now += 4
    answer.text("Yes")
    answer.end()
    assert window.lines()[0] == "thought for 4 s"


def test_control_characters_never_reach_the_terminal() -> None:
    for look in (Look(), Look(dumb=True)):
        window = Window(look=look)
        answer = view(window)
        answer.thinking("a\x1b[2Jb\x07")
        answer.text("c\x1b]0;title\x07d")
        answer.end()
        assert "\x1b[2J" not in window.sent
        assert "\x1b]" not in window.sent
        assert "\x07" not in window.sent


def test_without_escapes_everything_is_plain_and_complete() -> None:
    window = Window(look=Look(dumb=True))
    answer = view(window)
    answer.thinking("hm\n")
    answer.text("**Yes**")
    answer.end()
    assert window.sent.startswith("hm\n\nthought for 0.")
    assert window.sent.endswith(" s\n\n**Yes**\n")
    assert "\x1b" not in window.sent


def test_a_piece_within_a_frame_waits_no_longer_than_the_frame() -> None:
    window = Window()
    now = [0.0]
    answer = AnswerView(window, clock=lambda: now[0])
    answer.text("one ")
    now[0] = 0.01
    answer.text("two")
    assert window.lines() == ["one"]
    assert answer.patience is not None
    now[0] = 0.1
    answer.tick()
    assert window.lines() == ["one two"]
    assert answer.patience is None


@pytest.mark.parametrize(("columns", "above"), [(40, 1), (80, 1), (20, 3), (10, 7)])
def test_a_tail_is_taken_away_as_the_window_wraps_it_now(columns: int, above: int) -> None:
    """Two rows of 40 columns; terminals wrap them when the window gets narrower."""
    size = [40, 24]
    rows = RedrawnRows(lambda: (size[0], size[1]))
    rows.replace(["x" * 40, "\x1b[2m中中" + "y" * 36 + "\x1b[0m"])
    size[0] = columns
    assert rows.erasure() == f"\r\x1b[{above}A\x1b[K\x1b[B\x1b[J\x1b[A"


class KeepingScreen(pyte.HistoryScreen):
    """Like tmux: clearing everything from the first cell on moves what is there into the history."""

    def erase_in_display(self, how: int = 0, *args: object, **kwargs: object) -> None:
        if how == 0 and (self.cursor.x, self.cursor.y) == (0, 0):
            self.history.top.extend(self.buffer[y] for y in range(self.lines))
        super().erase_in_display(how, *args, **kwargs)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_tail_at_the_top_of_the_window_is_not_kept_in_the_history(count: int) -> None:
    """Where it stands once a window has become too low for what was above it."""
    screen = KeepingScreen(20, 6, history=100)
    stream = pyte.Stream(screen)
    rows = RedrawnRows(lambda: (20, 6))
    for frame in range(4):
        stream.feed(rows.replace([f"{frame} of row {row}" for row in range(count)]).replace("\n", "\r\n"))
    stream.feed(rows.erasure())
    assert not screen.history.top
    assert not "".join(screen.display).strip()
    assert (screen.cursor.x, screen.cursor.y) == (0, 0)


@given(st.text("ab 中é\n", max_size=60), st.integers(2, 9), st.randoms())
def test_text_in_pieces_is_broken_between_words(text: str, columns: int, rng: Random) -> None:
    flow, shown, at = Flow(lambda: columns), "", 0
    while at < len(text):
        size = rng.randint(1, 5)
        shown += flow.feed(text[at : at + size])
        at += size
    shown += flow.rest()
    assert "".join(shown.split()) == "".join(text.split())  # nothing is lost
    assert all(text_width(row) <= columns for row in shown.split("\n"))
    if "中" not in text and all(len(word) <= columns for word in text.split()):
        assert shown.split() == text.split()  # and no word is broken


def test_rows_are_wrapped_by_columns() -> None:
    assert wrapped("one two  three", 8) == ["one two", "three"]
    assert wrapped("中文中文 ab", 6) == ["中文中", "文 ab"]
    assert wrapped("a\n\nb", 5) == ["a", "", "b"]
    assert wrapped("x" * 7, 3) == ["xxx", "xxx", "x"]
    assert folded("one two\n中文中", 4) == ["one ", "two", "中文", "中"]


def test_two_columns_become_one_in_a_narrow_window() -> None:
    rows = [("/a", "one two three four five"), ("/long", "")]
    assert listed(rows, 80) == ["/a     one two three four five", "/long  "]
    assert listed(rows, 27) == ["/a     one two three four", "       five", "/long  "]
    assert listed(rows, 26) == ["/a", "  one two three four five", "/long", "  "]
    assert listed([], 80) == []


def test_parts_are_joined_as_far_as_they_fit() -> None:
    assert joined(["12 tok", "3 tok/s", "context"], " · ", 17) == ["12 tok · 3 tok/s", "context"]
    assert joined(["a", "b"], " · ", 80) == ["a · b"]


class StruckKeys(Keyboard):
    """Ctrl+C comes while the terminal is being set up."""

    listens = False

    def __enter__(self) -> Keyboard:
        self.listens = True
        signal.raise_signal(signal.SIGINT)
        return self

    def __exit__(self, *_: object) -> None:
        self.listens = False


def test_ctrl_c_while_the_keyboard_is_set_up_leaves_the_terminal_as_it_was() -> None:
    thread, gate, keys = Worker(), threading.Event(), StruckKeys()
    thread.load(lambda: gate.wait(10))  # type: ignore[arg-type, return-value]
    assert not wait_for_model(thread, keys, Output(None, None), "it")
    assert not keys.listens
    gate.set()
