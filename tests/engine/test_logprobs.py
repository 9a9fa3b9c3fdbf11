"""Log-probabilities come with the text that their tokens wrote, and with none of a thought, a mark or a stop string."""

from __future__ import annotations

import pytest

from mlxmtp.engine.events import Text
from mlxmtp.engine.params import Params
from tests.engine.test_engine import HI, Bench
from tests.text_checkpoint import write_text_checkpoint


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(write_text_checkpoint(tmp_path_factory.mktemp("text"), context=200))


CASES = [
    ("Hello the 🦀 é!<turn|>", (), "Hello the 🦀 é!", "Hello the 🦀 é!"),
    ("<|channel>thought\nhm 🦀<channel|>yes<turn|>", (), "yes", "yes"),
    ("yes <|channel>thought\nhm<channel|> no<turn|>", (), "yes  no", "yes  no"),
    ("say END no", ("END",), "say ", "say "),
    ("say EN<turn|>", ("END",), "say EN", "say EN"),
    ("say END x <|channel>thought\nhm<channel|> leaked", ("END",), "say ", "say "),
    ("say <channel|>Hello the end<turn|>", (), "say Hello the end", "say Hello the end"),
    ("a <b> c", (), "a <b> c", "a <b> c"),
    ("the<|channel>thought\nEND<channel|>first END second", ("END",), "thefirst ", "thefirst "),
]


@pytest.mark.parametrize(("written", "stops", "text", "told"), CASES)
def test_tokens_beside_the_text_spell_it(bench: Bench, written, stops, text, told):
    bench.enqueue(written)
    events = list(bench.model.stream(HI, Params(stop_strings=stops, top_logprobs=2)))
    texts = [event for event in events if isinstance(event, Text)]
    assert "".join(event.text for event in texts) == text
    shown = ""
    spelled = b""
    for event in texts:
        shown += event.text
        spelled += b"".join(one.bytes for one in event.logprobs)
        assert shown.encode().startswith(spelled)  # no token is told before its text
    assert spelled == told.encode()
    first = texts[0].logprobs[0]
    assert (first.logprob, [(one.token, one.logprob) for one in first.top]) == (
        -0.5,
        [(first.token, -0.5), (first.token + 1, -1.5)],
    )


def test_none_unless_they_are_asked_for(bench: Bench):
    bench.enqueue("<|channel>thought\nhm<channel|>yes<turn|>")
    events = list(bench.model.stream(HI, Params()))
    assert not any(event.logprobs for event in events if isinstance(event, Text))
    assert bench.decoder.requests[-1].sampling.penalties == Params().sampling({}, 0).penalties


def test_penalties_reach_the_decoder(bench: Bench):
    bench.ask("x<turn|>", Params(logit_bias={5: 1.0}, presence_penalty=0.5, frequency_penalty=1, repetition_penalty=2))
    penalties = bench.decoder.requests[-1].sampling.penalties
    assert (penalties.bias, penalties.presence, penalties.frequency, penalties.repetition) == ({5: 1.0}, 0.5, 1, 2)
    with pytest.raises(ValueError, match="top_logprobs must be"):
        Params(top_logprobs=21)
