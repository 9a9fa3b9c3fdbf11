"""Markdown while it streams, without a process: what was sent, and what a terminal makes of it."""

from __future__ import annotations

import re

import pyte
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxmtp.cli.terminal.markdown import MarkdownStream, finished_length

ANSWER = """\
# Title

A paragraph with **bold**, `code` and [red]brackets[/red]
on two lines, and <b>html</b>.

1. one
2. two

   still two
3. three

```python
def f(x):

    return "中文" + x
```

| a | b |
|---|---|
| 1 | 2 |

> quoted

Last line"""


class Screen:
    """A terminal with everything that scrolled away."""

    def __init__(self, columns: int = 40, rows: int = 10) -> None:
        self.screen = pyte.HistoryScreen(columns, rows, history=2000, ratio=1.0)
        self.stream = pyte.Stream(self.screen)
        self.sent: list[str] = []
        self.tick = 0.0
        self.markdown = MarkdownStream(self.write, lambda: (columns, rows), clock=self.clock)

    def clock(self) -> float:
        self.tick += 1.0
        return self.tick

    def write(self, text: str) -> None:
        self.sent.append(text)
        self.stream.feed(text.replace("\n", "\r\n"))

    def play(self, text: str, size: int) -> None:
        for at in range(0, len(text), size):
            self.markdown.feed(text[at : at + size])
        self.markdown.finish()

    def lines(self) -> list[str]:
        # pyte leaves an empty cell behind a wide character
        above = ["".join(row[x].data for x in range(self.screen.columns)) for row in self.screen.history.top]
        rows = [row.rstrip() for row in [*above, *self.screen.display]]
        while rows and not rows[-1]:
            rows.pop()
        return rows


def shown(text: str, size: int, columns: int = 40, rows: int = 10) -> list[str]:
    screen = Screen(columns, rows)
    screen.play(text, size)
    return screen.lines()


@pytest.mark.parametrize("size", [1, 3, 17])
@pytest.mark.parametrize(("columns", "rows"), [(40, 10), (80, 50), (20, 5)])
def test_streamed_looks_like_printed_at_once(size: int, columns: int, rows: int) -> None:
    assert shown(ANSWER, size, columns, rows) == shown(ANSWER, 10_000, columns, rows)


def test_what_is_shown() -> None:
    lines = shown(ANSWER, 5)
    assert lines[0] == "Title"
    assert "A paragraph with bold, code and" in lines
    assert any("[red]brackets[/red]" in line for line in lines)
    assert "on two lines, and <b>html</b>." in lines
    assert '    return "中文" + x' in lines
    assert lines[-1] == "Last line"


BLOCKS = [
    "para\ngraph",
    "- a\n- b",
    "```\nx = 1\n```",
    "# head",
    "> q",
    "| a |\n|---|\n| 1 |",
    "***",
    "    code",
    "中文字 🦀",
    "",
]


@settings(max_examples=40, deadline=None)
@given(blocks=st.lists(st.sampled_from(BLOCKS), min_size=1, max_size=8), size=st.integers(1, 30))
def test_any_mixture_of_blocks_streams_to_the_same_screen(blocks: list[str], size: int) -> None:
    text = "\n\n".join(blocks)
    expected = [line for line in shown(text, 10_000, 30, 8) if line]
    assert [line for line in shown(text, size, 30, 8) if line] == expected


@given(text=st.text(alphabet="ab\n #`->|*1.", max_size=60))
@settings(max_examples=200, deadline=None)
def test_finished_is_always_a_start_that_more_text_cannot_change(text: str) -> None:
    whole = text[: text.rfind("\n") + 1]
    done = finished_length(whole)
    assert 0 <= done <= len(whole)
    assert done == 0 or whole[done - 1] == "\n"
    assert finished_length(whole + "more\n\n") >= done


def test_a_finished_block_is_sent_once_and_the_tail_stays_small() -> None:
    screen = Screen(60, 30)
    paragraph = "word " * 20
    screen.play("\n\n".join(f"Paragraph {number}. {paragraph}" for number in range(10)), 7)
    sent = "".join(screen.sent)
    assert max(frame.count("\n") for frame in screen.sent) <= 2 * 12
    assert len(sent) < 40 * 10 * len(paragraph)
    for number in range(10):
        assert sum(line.startswith(f"Paragraph {number}.") for line in screen.lines()) == 1


def test_a_long_code_block_shows_its_end_and_is_whole_at_last() -> None:
    screen = Screen(40, 60)
    code = "".join(f"line_{number} = {number}\n" for number in range(400))
    screen.markdown.feed("```python\n")
    for line in code.splitlines(keepends=True):
        screen.markdown.feed(line)
    assert len(screen.lines()) == 12
    assert screen.lines()[-1] == "line_399 = 399"
    screen.markdown.feed("```\n")
    screen.markdown.finish()
    assert screen.lines() == code.splitlines()


def test_a_long_line_of_code_is_sent_whole_and_the_terminal_folds_it() -> None:
    line = "curl --location https://example.org/a/long/path/file.tar.gz --output \t/tmp/file.tar.gz 中文中文"
    screen = Screen(40, 20)
    screen.play(f"Text\n\n```text\n{line}\n```\n\nmore\n", 5)
    assert line.expandtabs(4) in re.sub(r"\x1b\[[0-9;]*m", "", "".join(screen.sent))


def test_code_in_a_list_is_folded_where_the_window_ends() -> None:
    """Between words a break would read as two lines."""
    lines = shown("- a\n\n  ```text\n  one two three four five six seven\n  ```\n", 3, columns=20)
    assert lines == [" • a", "   one two three fou", "   r five six seven"]


def test_code_in_a_line_has_no_background_of_its_own() -> None:
    screen = Screen()
    screen.play("Use `this`.\n", 4)
    assert "\x1b[1;36mthis" in screen.sent[-1]


def test_the_tail_never_fills_the_screen() -> None:
    screen = Screen(40, 4)
    screen.markdown.feed("\n".join(f"- {number}" for number in range(20)))
    assert screen.screen.history.top.__len__() == 0
    screen.markdown.finish()
    assert [line.strip(" •") for line in screen.lines()] == [str(number) for number in range(20)]


@pytest.mark.parametrize("frame", range(1, 12))
def test_ctrl_c_during_layout_loses_nothing_and_shows_nothing_twice(
    monkeypatch: pytest.MonkeyPatch, frame: int
) -> None:
    text = "First paragraph\nof two lines.\n\n- one\n- two\n\nThe end"
    screen = Screen()
    lay_out = MarkdownStream._lay_out
    calls = 0

    def interrupted(self: MarkdownStream, text: str, *, for_good: bool = False) -> list[str]:
        nonlocal calls
        calls += 1
        if calls == frame:
            raise KeyboardInterrupt
        return lay_out(self, text, for_good=for_good)

    monkeypatch.setattr(MarkdownStream, "_lay_out", interrupted)
    fed = 0
    try:
        for at in range(0, len(text), 8):
            fed = at + 8
            screen.markdown.feed(text[at : at + 8])
    except KeyboardInterrupt:
        screen.markdown.finish()
    assert calls > frame
    assert screen.lines() == shown(text[:fed], 10_000)


def test_control_characters_of_the_model_do_not_reach_the_terminal() -> None:
    screen = Screen()
    screen.play("a\x1b[2Jb\x07\x9bc\r\x00d\n", 3)
    assert screen.lines() == ["a[2Jbcd"]
    assert "\x1b[2J" not in "".join(screen.sent)


def test_copied_lines_have_no_blank_ends() -> None:
    screen = Screen(60)
    screen.play("Short.\n\n```python\nx = 1\n```\n", 4)
    assert not any(
        line.endswith(" ") for frame in screen.sent for line in frame.split("\n") if not frame.startswith("\r")
    )


def test_without_colour_no_colour_is_sent() -> None:
    sent: list[str] = []
    stream = MarkdownStream(sent.append, lambda: (40, 20), color=False)
    stream.feed("# T\n\n`code` and **bold**\n\n```python\ndef f(): pass\n```\n")
    stream.finish()
    assert "\x1b[3" not in "".join(sent).replace("\x1b[3m", "")
    assert "\x1b[1m" in "".join(sent)


@pytest.mark.parametrize("text", ["", "\n\n", "   \n"])
def test_an_empty_answer_is_an_empty_line(text: str) -> None:
    screen = Screen()
    screen.play(text, 1)
    assert screen.lines() == []
    assert screen.screen.cursor.x == 0
    assert screen.screen.cursor.y == 1


CELLS = [
    "选择一个基准元素将数组分为两部分小于基准的放左边大于基准的放右边",
    "https://example.org/a-path/that-is/longer-than/the-window/of-this-test",
    "`/usr/local/share/one/path/that/goes/on/and/on.txt`",
]


@pytest.mark.parametrize("columns", [20, 40, 60])
@pytest.mark.parametrize("cell", CELLS, ids=["wide", "address", "path"])
def test_no_cell_of_a_table_is_cut(cell: str, columns: int) -> None:
    lines = shown(f"| a | b |\n|---|---|\n| x | {cell} |\n", 1000, columns, 40)
    assert "…" not in "".join(lines)
    assert cell.strip("`") in "".join(line[4:].strip() for line in lines)
    assert max(map(len, lines)) <= columns


def test_a_table_with_more_columns_than_the_window_has_room_for_is_shown_as_lines() -> None:
    words = ["one", "two", "three", "four", "**five**", "six", "seven", "中文"]
    rows = "".join(f"| {' | '.join(row)} |\n" for row in ("abcdefgh", ["---"] * 8, words))
    lines = shown(rows, 1000, 20, 40)
    assert lines[0] == "| a | b | c | d | e"
    assert " ".join(lines[2:]).split() == "| one | two | three | four | five | six | seven | 中文 |".split()
    assert shown(rows, 1000, 60, 40)[0].split() == list("abcdefgh")


def test_definitions_of_links_and_footnotes_are_shown() -> None:
    text = (
        'See [docs], [1] and that[^1].\n\n[docs]: https://d.example/ "Title"\n[1]: https://e.example/\n\n[^1]: a-note\n'
    )
    assert shown(text, 5, 80) == [
        "See [docs], [1] and that[^1].",
        "",
        '[docs]: https://d.example/ "Title"',
        "[1]: https://e.example/",
        "",
        "[^1]: a-note",
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("See ![the *plan*](http://x/y.png) here.", "See the plan (http://x/y.png) here."),
        ("- see ![a](b.png)", " • see a (b.png)"),
        ("![](b.png)", "image (b.png)"),
        ("[![built](badge.svg)](http://ci/) now", "built (badge.svg) (http://ci/) now"),
        ("# ![Logo](l.png) Title", "Logo (l.png) Title"),
    ],
)
def test_images_are_their_words_and_their_address_where_they_stand(text: str, line: str) -> None:
    assert shown(text, 1000, 60) == [line]


def test_an_image_in_a_table_has_its_address() -> None:
    assert "a (b.png)" in shown("| h |\n|---|\n| ![a](b.png) |\n", 1000)[2]
