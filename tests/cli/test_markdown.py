"""Markdown while it streams, without a process: what was sent, and what a terminal makes of it."""

from __future__ import annotations

import re

import pyte
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxmtp.cli.terminal.layout import lay_out
from mlxmtp.cli.terminal.markdown import MarkdownStream, finished_length
from mlxmtp.cli.terminal.rows import Row, without_controls

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
    "```py\n    ```\n    a\n    ```\n# b\n```",
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


@pytest.mark.parametrize("size", [1, 7])
def test_a_fence_in_a_docstring_does_not_close_the_block(size: int) -> None:
    text = '```py\ndef f():\n    """Say:\n\n    ```\n    f()\n    ```\n    """\n    # code\n```\n\n# Title\n'
    assert shown(text, size) == shown(text, 10_000)
    assert "    # code" in shown(text, size)


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


def test_lines_of_code_are_printed_as_they_come() -> None:
    screen = Screen(40, 60)
    code = [f"line_{number} = {number}" for number in range(400)]
    screen.markdown.feed("Look:\n\n```python\n")
    for number, line in enumerate(code):
        screen.markdown.feed(f"{line}\n")
        assert screen.lines()[2:] == code[: number + 1]
    screen.markdown.feed("```\n")
    screen.markdown.finish()
    assert screen.lines() == ["Look:", "", *code]
    assert max(map(len, screen.sent)) < 200


def test_items_of_a_list_are_printed_as_they_come() -> None:
    """Also those of a list within an item, and the code there: only the last line may still change."""
    screen = Screen(40, 5)
    text = "".join(
        f"{number}. one\n   - two\n\n     ```sh\n     three\n     four\n     ```\n" for number in range(1, 10)
    )
    for at in range(len(text)):
        screen.markdown.feed(text[at])
        assert len(screen.markdown._end._rows) <= 4
    screen.markdown.finish()
    assert [line.strip() for line in screen.lines() if line][-4:] == ["9. one", "• two", "three", "four"]


def test_a_long_line_of_code_is_sent_whole_and_the_terminal_folds_it() -> None:
    """At the top, in a list and in a quote."""
    line = "curl --location https://example.org/a/long/path/file.tar.gz --output \t/tmp/file.tar.gz 中文中文"
    for text in (f"```text\n{line}\n```", f"1. Run\n\n   ```text\n   {line}\n   ```", f"> ```text\n> {line}\n> ```"):
        screen = Screen(40, 20)
        screen.play(f"Text\n\n{text}\n\nmore\n", 5)
        assert line in re.sub(r"\x1b\[[0-9;]*m", "", "".join(screen.sent))
    lines = shown("- a\n\n  ```text\n  one two three four five six seven\n  ```\n", 3, columns=20)
    assert lines == [" • a", "", "   one two three fou", "r five six seven"]


def test_code_in_a_line_has_no_background_of_its_own() -> None:
    screen = Screen()
    screen.play("Use `this`.\n", 4)
    assert "\x1b[1;36mthis" in screen.sent[-1]


def test_the_tail_never_fills_the_screen() -> None:
    screen = Screen(40, 4)
    table = "".join(f"| {number} |\n" for number in range(20))
    screen.markdown.feed(f"| a |\n|---|\n{table}")
    assert screen.screen.history.top.__len__() == 0
    assert screen.lines() == ["17", "18", "19"]
    screen.markdown.finish()
    assert screen.lines()[2:] == [str(number) for number in range(20)]


@pytest.mark.parametrize("frame", range(1, 12))
def test_ctrl_c_during_layout_loses_nothing_and_shows_nothing_twice(
    monkeypatch: pytest.MonkeyPatch, frame: int
) -> None:
    text = "First paragraph\nof two lines.\n\n- one\n- two\n\nThe end"
    screen = Screen()
    lay_out = MarkdownStream._lay_out
    calls = 0

    def interrupted(self: MarkdownStream, text: str, firm: int) -> tuple[list[Row], int]:
        nonlocal calls
        calls += 1
        if calls == frame:
            raise KeyboardInterrupt
        return lay_out(self, text, firm)

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
    assert cell.strip("`") in "".join(line.replace(" ", "") for line in lines)


def test_a_table_with_more_columns_than_the_window_has_room_for_is_shown_as_lines() -> None:
    words = ["one", "two", "three", "four", "**five**", "six", "seven", "中文"]
    rows = "".join(f"| {' | '.join(row)} |\n" for row in ("abcdefgh", ["---"] * 8, words))
    lines = shown(rows, 1000, 20, 40)
    assert lines[0] == "| a | b | c | d | e"
    assert " ".join(lines[2:]).split() == "| one | two | three | four | five | six | seven | 中文 |".split()
    assert shown(rows, 1000, 60, 40)[0].split() == list("abcdefgh")


@pytest.mark.parametrize(("first", "second"), [("x", "y" * 17), ("z " * 3, "yyyy " * 20)])
def test_no_row_of_a_table_as_wide_as_the_window_is_wider(first: str, second: str) -> None:
    """While it is open its blanks are rows of the terminal, too."""
    rows, _ = lay_out(f"| a | b |\n|---|---|\n| {first} | {second} |\n", 20)
    assert max(sum(len(text) for _, text in row) for row in rows) == 20


@pytest.mark.parametrize(
    ("mark", "rest", "shown_mark"),
    [("> ", "> ", "▌ "), ("- ", "  ", " • "), ("1. ", "   ", " 1. "), ("> - ", ">   ", "▌  • ")],
)
def test_a_table_in_a_quotation_or_an_item_is_one(mark: str, rest: str, shown_mark: str) -> None:
    lines = shown(f"{mark}| a | b |\n{rest}|---|---|\n{rest}| c | d |\n", 1000)
    assert lines[0] == f"{shown_mark}a  b"
    assert lines[1].endswith("────")
    assert lines[2].endswith("c  d")
    lines = shown(f"{mark}| a | b |\n{rest}|---|---|\n{rest}| c | d | e |\n", 1000)
    assert lines[0] == f"{shown_mark}| a | b |", "a cell too many: the rows of the source, with the marks once"
    assert lines[2].endswith("| c | d | e |")
    assert ">" not in lines[2]


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


WORDS = [
    "one", "snake_case_word", "2 * 3 * 4", "100 %", "**bold**", "*slanted*", "~~gone~~", "a\\_b", "C:\\dir", "中文中文",
    "x < y & z", "&amp;", "<div>", "it's", "\u202eevil\u202c", "1)", "$5", "_", "[1]", "---", "🦀",
]  # fmt: skip
WHOLE = [
    "`docker run --rm -it image:latest make all`", "`a|b`", "https://e.example/a_b/c_d?e=f_g&h=" + "i" * 60,
    "<https://e.example/x_y_z>", "[text](https://e.example/p_q)", r"$\mathbf{x}_{i} + \mathbf{y}_{j}$",
    r"\(a_1 * b_1 * c\)", r"$\{1,2\}$", r"$$x_1 \\ y_1$$", r"\[z_1^*\]",
]  # fmt: skip
CODE = [
    "echo 0123456789 0123456789 0123456789 0123456789 end",
    "    if x_y:",
    "",
    "\tcd /tmp && make *",
    "- not $a_b$ list",
]
SOURCE_MARKS = re.compile(r"\*\*|~~|(?<!\w)\*(?=\w)|(?<=\w)\*(?!\w)|\\(?=_)")


@st.composite
def documents(draw: st.DrawFn) -> tuple[str, list[str], list[str]]:
    """Return a document, its words, and what must stand on one row each."""
    words: list[str] = []
    whole: list[str] = []

    def line() -> str:
        pieces = draw(st.lists(st.sampled_from([*WORDS, *WHOLE]), min_size=1, max_size=9))
        for piece in pieces:
            if piece in WORDS:
                words.extend(re.findall(r"\w+", SOURCE_MARKS.sub("", piece)))
            else:
                whole.append(re.sub(r"^`|`$|^<|>$|^\[text\]\(|\)$(?<!\\\))", "", piece) if piece[0] in "`<[" else piece)
        return "go " + " ".join(pieces)

    def code(indent: str) -> str:
        lines = draw(st.lists(st.sampled_from(CODE), min_size=1, max_size=4))
        whole.extend(lines)
        return "".join(f"{indent}{one}\n" for one in ("```sh", *lines, "```"))

    def block(kind: str) -> str:
        if kind == "list":
            return f"1. {line()}\n   - {line()}\n   - {line()}\n     more {line()}\n2. {line()}\n\n{code('   ')}"
        if kind == "table":
            cells = [draw(st.sampled_from([one for one in (*WORDS, *WHOLE) if "|" not in one])) for _ in range(4)]
            whole.extend(re.sub(r"^`|`$", "", one) for one in cells if one[0] == "`")
            return "| {} | {} |\n|---|---|\n| {} | {} |\n".format(*cells)
        if kind == "formula":
            return "$$\na_1 &= b_1 \\\\\n- c*d*e\n$$\n\n\\[\nx_{i}*y_{j}\n\\]\n"
        made = {"paragraph": "", "heading": "## ", "quote": "> "}
        return (
            f"> {line()}\n>\n{code('> ')}"
            if kind == "quoted code"
            else code("")
            if kind == "code"
            else made[kind] + line() + "\n"
        )

    kinds = ["paragraph", "heading", "quote", "list", "table", "formula", "code", "quoted code"]
    text = "\n".join(block(kind) for kind in draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=5)))
    return text, words, whole


@settings(max_examples=60, deadline=None)
@given(document=documents(), columns=st.integers(20, 100))
def test_no_word_is_lost_and_nothing_is_broken_that_is_one(
    document: tuple[str, list[str], list[str]], columns: int
) -> None:
    text, words, whole = document
    rows = ["".join(piece for _, piece in row) for row in lay_out(without_controls(text), columns)[0]]
    shown = "\n".join(rows)
    for word in words:
        assert word in shown, (word, shown)
    for one in whole:
        assert any(without_controls(one) in row for row in rows), (one, shown)


@settings(max_examples=25, deadline=None)
@given(document=documents(), size=st.integers(1, 40), columns=st.sampled_from([24, 80]))
def test_any_document_streams_to_what_is_printed_at_once(
    document: tuple[str, list[str], list[str]], size: int, columns: int
) -> None:
    expected = [line for line in shown(document[0], 100_000, columns, 12) if line]
    assert [line for line in shown(document[0], size, columns, 12) if line] == expected
