"""Bias and penalties act on every row of a round: the text is that of plain decoding; logprobs are the model's own."""

from __future__ import annotations

import math
from functools import cache
from typing import Any, cast

import mlx.core as mx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxmtp.decode.decoder import Decoder
from mlxmtp.decode.penalties import Penalties
from mlxmtp.decode.prefill import drained
from mlxmtp.decode.sampling import Sampling, choose
from tests.decode.test_constraint import Language, scattered
from tests.golden import load_golden
from tests.networks import Adversary, Oracle, decode, drafter, target

FAMILY = "e2b"
PENALTIES = [
    Penalties(presence=1.5),
    Penalties(frequency=0.7, presence=-0.5),
    Penalties(repetition=1.4),
    Penalties(bias={3: 100.0, 5: -100.0}, frequency=2.0),
    Penalties({7: 4.0, 9: -4.0}, 0.5, 0.25, 1.1),
]


def decoder(draft: object = None, **options: Any) -> Decoder:
    return Decoder(target(FAMILY), cast("Any", draft), **({"compiled": "never"} | options))


def prompt() -> list[int]:
    return load_golden(FAMILY).records["short"].prompt


def logits_after(engine: Decoder, text: list[int]) -> list[float]:
    engine.forget()
    engine._cache.reserve(len(text) + 16)
    _, logits = drained(engine._begin(text, Sampling(), None, [], []))
    return cast("list[float]", logits[0].tolist())


def changed(logits: list[float], penalties: Penalties, given: list[int], said: list[int]) -> list[float]:
    """The formulas as they stand in the papers and the API's pages, a token at a time."""
    found = []
    for token, logit in enumerate(logits):
        value = logit + penalties.bias.get(token, 0.0)
        if token in given or token in said:
            value *= 1 / penalties.repetition if value > 0 else penalties.repetition
        found.append(value - penalties.presence * (token in said) - penalties.frequency * said.count(token))
    return found


def sampled(case: int, temp: float) -> Sampling:
    return Sampling(temp=temp, seed=11, penalties=PENALTIES[case])


@cache
def by_definition(case: int, temp: float, count: int) -> list[int]:
    engine, said, sampling = decoder(), list[int](), sampled(case, temp)
    for _ in range(count):
        logits = changed(logits_after(engine, prompt() + said), sampling.penalties, prompt(), said)
        position = mx.array([len(prompt()) + len(said)])
        said.append(cast("int", choose(mx.array([logits]), sampling.key(), position, sampling.filters).item()))
    return said


@settings(max_examples=15, deadline=None)
@given(
    case=st.integers(0, len(PENALTIES) - 1),
    temp=st.sampled_from([0.0, 0.9]),
    drafts=st.sampled_from([0, 1, 3, 8, "auto"]),
    in_flight=st.integers(0, 2),
    drafting=st.sampled_from(["trained", "hostile", "all-knowing"]),
    copies=st.booleans(),
)
def test_drafts_do_not_change_a_penalized_text(case, temp, drafts, in_flight, drafting, copies):
    plain, sampling = by_definition(case, temp, 14), sampled(case, temp)
    vocab = target(FAMILY).config.vocab_size
    draft = {
        "trained": lambda: drafter(FAMILY),
        "hostile": lambda: Adversary(plain[1], vocab),
        "all-knowing": lambda: Oracle(prompt() + plain, vocab),
    }[drafting]()
    engine = decoder(draft, in_flight=in_flight)
    options = {"draft_from": ("mtp", "copy")} if copies else {}
    assert decode(engine, prompt(), 14, num_draft_tokens=drafts, sampling=sampling, **options) == plain
    assert engine.tokens[: engine.rows] == (prompt() + plain)[:-1]


def test_an_all_knowing_drafter_is_accepted_whole_under_penalties():
    sampling = Sampling(penalties=PENALTIES[-1])
    plain = decode(decoder(), prompt(), 19, sampling=sampling)
    knowing = Oracle(prompt() + plain, target(FAMILY).config.vocab_size)
    rounds = list(decoder(knowing).rounds(prompt(), max_tokens=19, num_draft_tokens=8, sampling=sampling))
    assert [round_.accepted for round_ in rounds] == [0, 8, 8]


@pytest.mark.parametrize("case", [1, 2, len(PENALTIES) - 1])
def test_an_answer_that_goes_on_is_penalized_for_all_of_it(case):
    """As one does whose thought has reached its budget: what was said before stands in the prompt then."""
    plain, sampling = by_definition(case, 0.9, 14), sampled(case, 0.9)
    engine = decoder(drafter(FAMILY))
    first = decode(engine, prompt(), 5, sampling=sampling)
    assert first + decode(engine, prompt() + first, 9, sampling=sampling, said=5) == plain


def test_rounds_that_are_asked_for_change_no_others():
    engine = decoder(drafter(FAMILY))
    first = engine.rounds(prompt(), max_tokens=9, num_draft_tokens=0)
    engine.rounds(prompt(), max_tokens=9, num_draft_tokens=4)
    assert all(round_.draft == () for round_ in first)


def test_bias_alone_forces_and_bans_and_zero_changes_nothing():
    assert set(decode(decoder(), prompt(), 5, sampling=Sampling(penalties=Penalties({3: 100.0})))) == {3}
    free = decode(decoder(drafter(FAMILY)), prompt(), 20)
    assert free[1] not in decode(decoder(), prompt(), 20, sampling=Sampling(penalties=Penalties({free[1]: -100.0})))
    assert decode(decoder(drafter(FAMILY)), prompt(), 20, sampling=Sampling(penalties=Penalties({3: 0.0}))) == free


@pytest.mark.parametrize("drafts", [0, 3])
def test_a_constraint_chooses_among_penalized_tokens(drafts):
    allows, sampling = scattered(0.3, 5), Sampling(temp=0.8, seed=2, penalties=PENALTIES[-1])
    language, engine, said = Language(allows), decoder(), list[int]()
    for _ in range(12):
        logits = mx.array([changed(logits_after(engine, prompt() + said), sampling.penalties, prompt(), said)])
        where = sampling.key(), mx.array([len(prompt()) + len(said)]), sampling.filters
        masked = mx.where(mx.array(language.allowed()), logits, -mx.inf)
        own = cast("int", choose(logits, *where).item())
        said.append(own if language.accept([own]) else cast("int", choose(masked, *where).item()))
        language.text[len(said) - 1 :] = said[-1:]
    options = {"num_draft_tokens": drafts, "sampling": sampling, "constraint": Language(allows)}
    assert decode(decoder(drafter(FAMILY)), prompt(), 12, **options) == said


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temp=1.2, seed=4, penalties=PENALTIES[1])], ids=str)
@pytest.mark.parametrize("drafts", [0, 4])
def test_logprobs_are_those_of_a_pass_over_the_whole_text(drafts, sampling):
    options = {"num_draft_tokens": drafts, "sampling": sampling, "top_logprobs": 3}
    rounds = list(decoder(drafter(FAMILY)).rounds(prompt(), max_tokens=12, **options))
    said = [token for round_ in rounds for token in round_.tokens]
    found = [one for round_ in rounds for one in round_.logprobs]
    assert [one.token for one in found] == said
    engine = decoder()
    for index, one in enumerate(found):
        logits = logits_after(engine, prompt() + said[:index])
        total = math.log(math.fsum(math.exp(value) for value in logits))
        assert one.logprob == pytest.approx(logits[one.token] - total, abs=1e-4)
        best = sorted(range(len(logits)), key=lambda token: -logits[token])[:3]
        assert [value for _, value in one.top] == pytest.approx([logits[token] - total for token in best], abs=1e-4)
        assert [value for _, value in one.top] == sorted((value for _, value in one.top), reverse=True)


def test_no_logprobs_unless_they_are_asked_for_and_none_beside_the_own():
    assert all(not round_.logprobs for round_ in decoder().rounds(prompt(), max_tokens=4))
    [only] = decoder().rounds(prompt(), max_tokens=1, top_logprobs=0)
    assert [(one.token, one.top) for one in only.logprobs] == [(only.tokens[0], ())]


def test_values_out_of_range_are_refused():
    for wrong in ({"presence": 2.1}, {"frequency": math.nan}, {"repetition": 0.0}, {"bias": {1: 101.0}}):
        with pytest.raises(ValueError, match="must be"):
            Penalties(**wrong)
    with pytest.raises(ValueError, match="tokens of a logit_bias"):
        decoder().rounds(prompt(), max_tokens=1, sampling=Sampling(penalties=Penalties({10**6: 1.0})))
