from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxmtp.engine.events import Splitter, Text, Thinking


def split(pieces: list[str], *, inside: bool = False) -> tuple[str, str]:
    """(text, thinking) of pieces fed one after the other."""
    splitter = Splitter(inside=inside)
    events = [event for piece in pieces for event in splitter.feed(piece)] + splitter.finish()
    return (
        "".join(event.text for event in events if isinstance(event, Text)),
        "".join(event.text for event in events if isinstance(event, Thinking)),
    )


@pytest.mark.parametrize(
    ("written", "text", "thinking"),
    [
        ("answer", "answer", ""),
        ("<|channel>thought\nhm<channel|>answer", "answer", "hm"),
        ("<|channel>thought\n<channel|>answer", "answer", ""),
        ("<|channel>thought<channel|>answer", "answer", ""),
        ("<|channel>thought\nhm, never closed", "", "hm, never closed"),
        ("<|channel>thought", "", ""),
        ("<|channel>", "", ""),
        ("<|channel>thoughtful\nwords<channel|>a", "a", "thoughtful\nwords"),
        ("<|channel>analysis\nwords<channel|>a", "a", "analysis\nwords"),
        ("<|channel>thought\none<channel|>a<|channel>thought\ntwo<channel|>b", "ab", "onetwo"),
        ("a<channel|>b", "ab", ""),
        ("<|channel>thought\nx<|channel>thought\ny<channel|>z", "z", "xy"),
        ("5 <| 6 and <chan", "5 <| 6 and <chan", ""),
    ],
)
@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_thoughts_and_text_are_told_apart_however_they_are_cut(
    written: str, text: str, thinking: str, size: int
) -> None:
    assert split([written[at : at + size] for at in range(0, len(written), size)]) == (text, thinking)


def test_a_thought_that_the_prompt_opened_has_no_name_line() -> None:
    assert split(["thought\nreally", "<channel|>yes"], inside=True) == ("yes", "thought\nreally")


def test_text_is_not_held_back_without_a_reason() -> None:
    splitter = Splitter()
    assert splitter.feed("certain <") == [Text("certain ")]
    assert splitter.feed("b>") == [Text("<b>")]


def test_an_empty_event_tells_that_a_thought_has_begun() -> None:
    splitter = Splitter()
    assert splitter.feed("a<|chan") == [Text("a")]
    assert splitter.feed("nel>") == [Thinking("")]
    assert splitter.feed("thought\n") == []
    assert Splitter(inside=True).feed("") == [Thinking("")]


PARTS = st.lists(st.sampled_from(["<|channel>", "<channel|>", "thought\n", "thought", "<|", "|>", "a", "\n", " b"]))


@settings(deadline=None)
@given(parts=PARTS, cuts=st.lists(st.integers(0, 60)))
def test_where_the_pieces_are_cut_changes_nothing(parts: list[str], cuts: list[int]) -> None:
    whole = "".join(parts)
    edges = [0, *sorted(min(cut, len(whole)) for cut in cuts), len(whole)]
    assert split([whole[a:b] for a, b in pairwise(edges)]) == split([whole])


@settings(deadline=None)
@given(parts=PARTS)
def test_nothing_between_the_marks_comes_out_as_text(parts: list[str]) -> None:
    text, _ = split(["before<|channel>thought\n", *(part for part in parts if part != "<channel|>"), "<chan"])
    assert text == "before"
