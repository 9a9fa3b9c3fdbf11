"""Drafts copied from the text: found where they stand, worth something, and never a change of the text."""

import random
from typing import Any

import pytest
from hypothesis import given as drawing
from hypothesis import strategies as st

from mlxmtp.bench.suite import read_suites
from mlxmtp.decode.copying import Copying
from mlxmtp.decode.decoder import Decoder
from mlxmtp.decode.draft_length import DraftLength
from mlxmtp.decode.sampling import Sampling
from mlxmtp.engine.tokenizer import Tokenizer
from mlxmtp.limits import COPIED, MAX_DRAFT
from scripts.benchmarks.edits import POCKET, answer
from tests.golden import load_golden
from tests.networks import decode, drafter, target, tokens

SAMPLINGS = [Sampling(), Sampling(temp=0.8, top_k=20, seed=3)]


def looping() -> list[int]:
    """A prompt whose greedy answer the tiny network repeats."""
    return load_golden("e2b").records["long"].prompt * 2


class Eager(DraftLength):
    """Copies wherever something can be copied."""

    def choose(self, *given: Any) -> int:
        return COPIED if self.copying is not None and self.copying.proposed else super().choose(*given)


@drawing(st.lists(st.integers(0, 3), max_size=120), st.integers(1, 40))
def test_what_is_proposed_followed_the_same_tokens_before(text, step):
    """Found in pieces or at once; a text that was cut is forgotten."""
    copying, whole = Copying(), Copying()
    for end in range(0, len(text), step):
        copying.find(text[:end])
    copying.find(text)
    whole.find(text)
    assert copying.proposed == whole.proposed
    if copying.proposed:
        assert len(copying.proposed) == COPIED
        places = [at for at in range(4, len(text)) if text[at - 4 : at] == text[-4:]]
        assert any(text[at : at + COPIED] == copying.proposed[: len(text) - at] for at in places)
    else:
        assert all(text[at - 4 : at] != text[-4:] for at in range(4, len(text)))
    copying.begin(other := [9, *text[1:]])
    copying.find(other)
    whole = Copying()
    whole.find(other)
    assert copying.proposed == whole.proposed


def test_the_longer_agreement_is_preferred_and_circles_go_on():
    copying = Copying()
    copying.find([*range(10, 20), 7, 5, 16, 17, 18, 19, 8, *range(10, 20)])
    assert copying.proposed[:2] == [7, 5]
    copying.begin([1, 2, 3] * 4)
    copying.find([1, 2, 3] * 4)
    assert copying.proposed == [1, 2, 3] * 5


def test_trust_follows_what_happened():
    copying = Copying()
    copying.find(list(range(20)) * 2)
    start = copying.tokens()
    for _ in range(3):
        copying.judge([*copying.proposed[:5]])
    assert copying.tokens() > start
    for _ in range(5):
        copying.judge([-1])
    assert copying.tokens() < 0.5 * start


def test_copies_that_disappoint_are_trusted_less_for_a_while():
    """They are chosen where they look best, so what they promised there is held against what came of it."""
    tried, watched = Copying(), Copying()
    for copying, copied in ((tried, True), (watched, False)):
        copying.find(list(range(20)) * 2)
        for _ in range(6):
            copying.judge(copying.proposed[:9])
            copying.judge([copying.proposed[0], -1], copied=copied)
    assert tried.tokens() < 0.6 * watched.tokens()
    for _ in range(200):
        for copying in (tried, watched):
            copying.judge(copying.proposed[:9])
    assert tried.tokens() > 0.95 * watched.tokens()


@pytest.mark.few(4)
@pytest.mark.parametrize("compiled", ["never", "always"])
@pytest.mark.parametrize("in_flight", [0, 1])
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "sampled"])
@pytest.mark.parametrize("network", ["drafter", "none"])
def test_copying_never_changes_a_text(network, sampling, in_flight, compiled):
    plain = decode(Decoder(target("e2b"), compiled="never"), looping(), 60, sampling=sampling)
    for depth in (Eager(), DraftLength()):
        draft = drafter("e2b") if network == "drafter" else None
        decoder = Decoder(target("e2b"), draft, in_flight=in_flight, compiled=compiled)
        decoder.depth = depth
        assert decode(decoder, looping(), 60, sampling=sampling, draft_from=("mtp", "copy")) == plain


def test_a_text_that_is_known_is_copied_and_says_so():
    text = decode(Decoder(target("31b"), compiled="never"), load_golden("31b").records["long"].prompt, 40)
    prompt = [*load_golden("31b").records["long"].prompt, *text]
    decoder = Decoder(target("31b"), compiled="never")
    decoder.depth = Eager()
    rounds = list(decoder.rounds(prompt, max_tokens=40, draft_from=("copy",)))
    copied = [one for one in rounds if one.copied]
    assert all(len(one.draft) == COPIED for one in copied)
    assert not any(one.copied for one in rounds if not one.draft)


@pytest.mark.few(1)
@pytest.mark.parametrize("in_flight", [0, 1])
def test_closing_after_every_round_with_copies_and_going_on_equals_a_fresh_run(in_flight):
    options: Any = {"draft_from": ("mtp", "copy")}
    fresh = decode(Decoder(target("e2b"), compiled="never"), looping(), 40)
    for stop_after in range(1, 9):
        decoder = Decoder(target("e2b"), drafter("e2b"), in_flight=in_flight, compiled="never")
        decoder.depth = Eager()
        rounds = decoder.rounds(looping(), max_tokens=40, **options)
        kept = tokens(next(rounds) for _ in range(stop_after))
        rounds.close()
        assert decoder.tokens == looping() + kept
        if len(kept) < 40:
            assert kept + decode(decoder, decoder.tokens, 40 - len(kept), **options) == fresh


def test_a_fixed_length_and_the_default_copy_nothing():
    given: list[Any] = [{"num_draft_tokens": 3, "draft_from": ("mtp", "copy")}, {}]
    for options in given:
        decoder = Decoder(target("e2b"), drafter("e2b"), compiled="never")
        rounds = list(decoder.rounds([5, 6, 7] * 20, max_tokens=20, **options))
        assert not any(one.copied for one in rounds)


def play(
    text: list[int], start: int, *, copies: bool, copy_cost: float = 2.4, knows: float = 0.66, seed: int = 1
) -> float:
    """Plain rounds that ``text`` from ``start`` on takes where a drafter ``knows`` such a share of the tokens."""
    depth, chances, at, spent = DraftLength(), random.Random(seed), start, 0.0
    depth.copying = Copying() if copies else None
    depth.begin(text[:start])
    depth.follow(text[:start])
    while at < len(text):
        k = depth.choose(len(text) - at)
        cost = copy_cost if k == COPIED else 1 + 0.2 * k
        right = next((i for i in range(min(k, MAX_DRAFT)) if chances.random() > knows), min(k, MAX_DRAFT))
        if k == COPIED and depth.copying is not None:
            pairs = zip(depth.copying.proposed, text[at:], strict=False)
            right = next((i for i, (one, other) in enumerate(pairs) if one != other), COPIED)
        spent += cost
        depth.observe(k, right, 0.01 * cost, text[at : at + right + 1], given=k * (k == COPIED), copied=k == COPIED)
        at += right + 1
        depth.follow(text[:at])
    return spent


def test_edits_are_faster_by_half_and_other_texts_no_slower():
    """A text with one token in forty replaced, after itself; and random tokens, of which some repeat by chance."""
    numbers = random.Random(3)
    original = [numbers.randrange(1000) for _ in range(600)]
    edited = [token if numbers.random() > 1 / 40 else 2000 for token in original]
    assert 1.5 * play(original + edited, 600, copies=True) < play(original + edited, 600, copies=False)
    few = [numbers.randrange(3) for _ in range(1200)]
    assert play(few, 600, copies=True) < 1.03 * play(few, 600, copies=False)


def test_rows_that_begin_alike_are_left_to_a_good_drafter():
    """JSON of the bench suite: keys come again, values do not, and a copy ends soon after it began."""
    [text] = (one for one in read_suites(["edit"]) if one.name == "to-json")
    tokenizer = Tokenizer.load(POCKET / "target")
    prompt, said = text.ids(tokenizer.prompt_ids), tokenizer.encode(answer(text))
    about: Any = {"copy_cost": 3.4, "knows": 0.85}
    spent = {
        copies: sum(play([*prompt, *said], len(prompt), copies=copies, seed=seed, **about) for seed in range(4))
        for copies in (False, True)
    }
    assert spent[True] < 1.02 * spent[False]
