from __future__ import annotations

import re
from io import StringIO

import pytest

from mlxmtp.cli.terminal.output import Look, Output, show_table
from mlxmtp.cli.terminal.progress import DownloadProgress, PrefillProgress, RunProgress
from mlxmtp.units import ago, format_count


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Screen(StringIO):
    def isatty(self) -> bool:
        return True


def test_speed_and_time_left_come_from_the_network_alone() -> None:
    clock = Clock()
    progress = DownloadProgress(Output(None, StringIO()), 10_000_000_000, clock)
    progress.count(2_000_000_000, False)
    assert progress.text() == "2.0 GB of 10.0 GB, 20 %, checking what is here"
    for _ in range(5):
        clock.now += 1
        progress.count(100_000_000, True)
    assert progress.text() == "2.5 GB of 10.0 GB, 25 %, 0.1 GB/s, 1:00 left"
    progress.count(-500_000_000, False)
    assert progress.text().startswith("2.0 GB of 10.0 GB, 20 %")


def test_a_log_gets_a_line_now_and_then_and_a_terminal_one_line_that_changes() -> None:
    clock, log, screen = Clock(), StringIO(), Screen()
    logged, seen = DownloadProgress(Output(None, log), 1000, clock), DownloadProgress(Output(None, screen), 1000, clock)
    for _ in range(100):
        clock.now += 0.5
        logged.count(5, True)
        seen.count(5, True)
    assert len(log.getvalue().splitlines()) == 1
    assert "\n" not in screen.getvalue()
    logged.waiting("the hub answers 503", 7)
    assert log.getvalue().endswith("the hub answers 503; trying again in 7 s\n")


def test_a_benchmark_knows_its_pace_after_the_first_run_of_each_model() -> None:
    clock, log = Clock(), StringIO()
    progress = RunProgress(Output(None, log), 20, clock)
    say = progress.starting(0)
    for done in range(5):
        say(f"text {done}", done)
        clock.now += 1000 if done == 0 else 31  # loading and compiling are no part of the pace
    assert log.getvalue().splitlines() == [
        "run 1 of 20: text 1",
        "run 2 of 20, 9:18 left: text 2",
        "run 3 of 20, 8:47 left: text 3",
        "run 4 of 20, 8:16 left: text 4",
    ]
    say = progress.starting(10)
    say("the next model", 0)
    assert log.getvalue().splitlines()[-1] == "run 10 of 20: the next model"


def test_a_quiet_benchmark_says_nothing_and_a_terminal_keeps_one_line() -> None:
    clock, log, screen = Clock(), StringIO(), Screen()
    quiet = RunProgress(Output(None, log, Look(quiet=True)), 9, clock).starting(0)
    seen = RunProgress(Output(None, screen), 9, clock).starting(0)
    for done in range(9):
        clock.now += 40
        quiet("a text", done)
        seen("a text", done)
    assert log.getvalue() == ""
    assert "\n" not in screen.getvalue()
    assert "run 8 of 9, 0:40 left: a text" in screen.getvalue()


def test_a_quiet_download_says_nothing() -> None:
    clock, log = Clock(), StringIO()
    progress = DownloadProgress(Output(None, log, Look(quiet=True)), 1000, clock)
    clock.now += 40
    progress.count(5, True)
    progress.waiting("the hub answers 503", 7)
    assert log.getvalue() == ""


def test_columns_are_tabs_for_programs_and_aligned_for_people() -> None:
    header, rows = ["NAME", "SIZE"], [["a", "10 MB"], ["longer", "1 MB"]]
    pipe, screen = StringIO(), Screen()
    show_table(Output(pipe, None), header, rows, right=(1,))
    assert pipe.getvalue() == "NAME\tSIZE\na\t10 MB\nlonger\t1 MB\n"
    show_table(Output(screen, None), header, rows, right=(1,))
    assert screen.getvalue() == "\x1b[1mNAME     SIZE\x1b[0m\na       10 MB\nlonger   1 MB\n"


def test_a_cell_ends_neither_its_column_nor_its_row() -> None:
    rows = [["a\tb\r\nc\u2028d", "\x1b[2J\x9b1m"], ["中文 é", "x"]]
    pipe, screen = StringIO(), Screen()
    show_table(Output(pipe, None), ["NAME", "TITLE"], rows)
    assert pipe.getvalue() == "NAME\tTITLE\na b  c d\t [2J 1m\n中文 é\tx\n"
    show_table(Output(screen, None, Look(dumb=True)), ["NAME", "TITLE"], rows[:1])
    assert screen.getvalue() == "NAME      TITLE\na b  c d   [2J 1m\n"


def test_words_for_numbers() -> None:
    assert [ago(0, now) for now in (5, 60, 7300, 86400 * 3, 86400 * 400)] == [
        "just now", "1 minute ago", "2 hours ago", "3 days ago", "1 year ago"
    ]  # fmt: skip
    assert [format_count(n) for n in (4_628_569_379, 15_987_631, 2_000_000, 43_000)] == ["4.6B", "16M", "2.0M", "43k"]


def test_reading_a_prompt_shows_speed_without_what_was_reused_and_time_left() -> None:
    clock, screen = Clock(), Screen()
    progress = PrefillProgress(Output(None, screen), clock)

    def shown(done: int) -> str:
        screen.truncate(screen.seek(0))
        progress.count(done, 9000)
        return screen.getvalue()

    assert shown(5000) == ""  # most prompts have been read before there is more to say
    clock.now += 0.2
    assert shown(5000) == ""  # another layer of the same chunk
    clock.now += 1.8
    assert "reading the prompt, 5,000 of 9,000 tokens\x1b" in shown(5000)  # a long one
    assert "6,000 of 9,000 tokens, 500 tok/s, 0:06 left" in shown(6000)
    clock.now += 6
    assert shown(9000) == "\r\x1b[K"
    assert shown(1000) == ""  # another prompt


@pytest.mark.parametrize("slower", [0.0, 1.0, 6.0])
def test_the_time_left_knows_that_a_long_prompt_is_read_more_and_more_slowly(slower: float) -> None:
    """A token at the end takes `1 + slower` times as long as one at the beginning."""
    clock, screen, total = Clock(), Screen(), 32_000
    progress = PrefillProgress(Output(None, screen), clock)

    def seconds(done: int) -> float:
        return done / 1000 * (1 + slower * done / total / 2)

    for step, done in enumerate(range(0, total, 250)):
        screen.truncate(screen.seek(0))
        clock.now += (seconds(done) - seconds(max(0, done - 250))) * (0.8, 1.2)[step % 2]
        progress.count(done, total)
        if done >= total / 5:
            minutes, rest = re.findall(r"(\d+):(\d+) left", screen.getvalue())[0]
            assert 60 * int(minutes) + int(rest) == pytest.approx(seconds(total) - seconds(done), rel=0.25, abs=1.5)
