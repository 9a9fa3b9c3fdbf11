"""Stop strings: found wherever tokens cut them, nothing of them shown, thoughts left alone."""

from __future__ import annotations

from itertools import accumulate, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mlxmtp
from mlxmtp.engine.events import End, StopStrings, Text
from mlxmtp.engine.model import Model
from mlxmtp.engine.params import Params
from tests.engine.test_engine import Bench
from tests.text_checkpoint import write_text_checkpoint

LETTERS = st.text(alphabet="ab<\n", max_size=30)
WORDS = st.lists(st.text(alphabet="ab<\n", min_size=1, max_size=5), max_size=4)


def fed(strings: StopStrings, pieces: list[str]) -> str:
    said = ""
    for piece in pieces:
        said += strings.feed(piece)
        if strings.found:
            return said
    return said + strings.finish()


@given(text=LETTERS, words=WORDS, sizes=st.lists(st.integers(1, 7), max_size=30))
def test_a_text_ends_before_the_first_string_however_it_is_cut(text: str, words: list[str], sizes: list[int]) -> None:
    ends = [0, *(end for end in accumulate(sizes) if end < len(text)), len(text)]
    pieces = [text[a:b] for a, b in pairwise(ends)]
    # The string whose last character comes first ends the text: what comes later is not known yet.
    complete = min((text.find(word) + len(word) for word in words if word in text), default=None)
    strings = StopStrings(words)
    said = fed(strings, pieces)
    assert strings.found == (complete is not None)
    if complete is None:
        assert said == text
    else:
        assert text.startswith(said)
        assert not any(word in said for word in words)
    whole = StopStrings(words)
    assert (said, strings.stop) == (fed(whole, list(text)), whole.stop), "character by character"


@given(text=LETTERS, words=WORDS)
def test_nothing_is_held_back_that_cannot_become_a_stop_string(text: str, words: list[str]) -> None:
    strings = StopStrings(words)
    said = strings.feed(text)
    if not strings.found:
        held = text[len(said) :]
        assert not held or any(word.startswith(held) for word in words)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(write_text_checkpoint(tmp_path_factory.mktemp("text"), context=100))


@pytest.mark.parametrize("word", [" two", "o th", "three", "e", "é", "one two three é!"])
def test_an_answer_ends_before_its_stop_string(bench: Bench, word: str) -> None:
    text = "one two three é!"
    answer, _, end = bench.ask(f"{text}<turn|>", Params(stop_strings=("never", word)))
    assert (answer, end.finish_reason) == (text[: text.index(word)], "stop")


def test_a_thought_may_say_it(bench: Bench) -> None:
    said = "<|channel>thought\nsay END now<channel|>first END second"
    answer, thinking, end = bench.ask(said, Params(stop_strings=("END",)))
    assert (answer, thinking, end.finish_reason) == ("first ", "say END now", "stop")


def test_what_only_began_like_it_is_shown_at_the_end(bench: Bench) -> None:
    assert bench.ask("almost EN", Params(stop_strings=("END",)))[0] == "almost EN"
    assert bench.ask("almost EN<turn|>", Params(stop_strings=("END",)))[0] == "almost EN"


def test_drafts_behind_it_do_not_count_as_accepted(bench: Bench) -> None:
    tokens = bench.tokenizer.encode("abcd")
    assert len(tokens) == 4
    _, _, end = bench.ask("abcd<turn|>", Params(stop_strings=("b",)))
    assert (end.stats.generation_tokens, end.stats.accepted) == (2, 1)


@pytest.mark.parametrize("drafts", [0, 4])
def test_the_conversation_goes_on_after_it(drafts: int) -> None:
    """The cache holds tokens behind the string: the next prompt must not build on them."""
    model = mlxmtp.load("pocket")
    question = [{"role": "user", "content": "What is MTP?"}]
    params = Params(temp=0.0, max_tokens=30, num_draft_tokens=drafts)
    stopped = Params(temp=0.0, max_tokens=30, num_draft_tokens=drafts, stop_strings=(" for short",))
    said = said_by(model, question, stopped)
    assert said == said_by(model, question, params).partition(" for short")[0]
    more = [*question, {"role": "assistant", "content": said}, {"role": "user", "content": "And a drafter?"}]
    assert said_by(model, more, params) == said_by(mlxmtp.load("pocket", drafter=False), more, params)


def test_what_stands_behind_it_is_not_counted_whatever_is_drafted() -> None:
    model, counts = mlxmtp.load("pocket"), []
    for drafts in (0, 3, 8):
        params = Params(temp=0.0, num_draft_tokens=drafts, stop_strings=(" layers",))
        answer = model.stream([{"role": "user", "content": "What is a drafter?"}], params)
        *_, end = answer
        assert isinstance(end, End)
        counts.append((end.stop, end.stats.generation_tokens, len(answer.tokens)))
    _, least, _ = counts[0]
    assert counts == [(" layers", least, least)] * 3


def said_by(model: Model, messages: list[dict[str, str]], params: Params) -> str:
    return "".join(event.text for event in model.stream(messages, params) if isinstance(event, Text))


@pytest.mark.parametrize("bad", ["END", ("",)])
def test_a_lone_string_and_an_empty_one_are_refused(bad: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="stop_strings"):
        Params(stop_strings=bad)
