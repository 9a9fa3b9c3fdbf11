"""A constrained text depends on prompt, seed and language alone, and equals the free one as long as that obeys."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import cast

import mlx.core as mx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxmtp.decode.decoder import Decoder
from mlxmtp.decode.draft_length import DraftLength
from mlxmtp.decode.prefill import drained
from mlxmtp.decode.sampling import Sampling, choose
from mlxmtp.errors import MlxmtpError
from tests.golden import FAMILIES, load_golden
from tests.networks import Adversary, Oracle, decode, drafter, target, tokens

SAMPLINGS = [Sampling(), Sampling(temp=1.0, seed=7), Sampling(temp=0.8, top_k=5, top_p=0.9, min_p=0.02, seed=3)]
Allows = Callable[[Sequence[int], int], bool]


class Language:
    """A constraint by a function: may this token follow these? `asked` counts the masks."""

    def __init__(self, allows: Allows, vocab: int = 128) -> None:
        self._allows, self._vocab, self.text, self.asked = allows, vocab, list[int](), 0

    def accept(self, new: Sequence[int]) -> int:
        for count, token in enumerate(new):
            if not self._allows(self.text, token):
                return count
            self.text.append(token)
        return len(new)

    def forced(self) -> list[int]:
        run: list[int] = []
        for _ in range(40):
            able = [token for token in range(self._vocab) if self._allows([*self.text, *run], token)]
            if len(able) != 1:
                break
            run += able
        return run

    def allowed(self) -> list[bool]:
        return [self._allows(self.text, token) for token in range(self._vocab)]

    def mask(self) -> bytes:
        self.asked += 1
        allowed = self.allowed()
        if not any(allowed):
            raise MlxmtpError("nothing goes on from here")
        bits = sum(1 << token for token, one in enumerate(allowed) if one)
        return bits.to_bytes((self._vocab + 7) // 8 + 4, "little")  # longer than need be, as libraries make them


def scattered(share: float, salt: int) -> Allows:
    """Allow about this share of the tokens, other ones after every text."""

    def allows(text: Sequence[int], token: int) -> bool:
        digest = hashlib.blake2b(repr((salt, len(text), text[-1:], token)).encode(), digest_size=2).digest()
        return int.from_bytes(digest, "little") < share * 65536 or token == (len(text) + salt) % 128

    return allows


def decoder(family: str, draft: object = None, **options: object) -> Decoder:
    return Decoder(target(family), draft, **({"compiled": "never"} | options))  # type: ignore[arg-type]


def prompt(family: str) -> list[int]:
    return load_golden(family).records["short"].prompt


def by_definition(family: str, allows: Allows, count: int, sampling: Sampling) -> list[int]:
    """Each token from a pass of its own over the whole text: the target's choice, else that among what is allowed."""
    language, engine = Language(allows), decoder(family)
    for _ in range(count):
        text = prompt(family) + language.text
        engine.forget()
        engine._cache.reserve(len(text) + 16)
        _, logits = drained(engine._begin(text, sampling, None, [], []))
        where = sampling.key(), mx.array([len(text)]), sampling.filters
        own = cast("int", choose(logits, *where).item())
        if not language.accept([own]):
            masked = mx.where(mx.array(language.allowed()), logits, -mx.inf)
            assert language.accept([cast("int", choose(masked, *where).item())])
    return language.text


@settings(max_examples=12, deadline=None)
@given(
    family=st.sampled_from(FAMILIES),
    sampling=st.sampled_from(SAMPLINGS),
    share=st.sampled_from([0.02, 0.3, 0.7, 0.95]),
    salt=st.integers(0, 1000),
    drafts=st.sampled_from([0, 1, 2, 3, 4, 5, 6, 7, 8, "auto"]),
    in_flight=st.integers(0, 2),
    drafting=st.sampled_from(["trained", "hostile", "all-knowing"]),
)
def test_drafts_do_not_change_a_constrained_text(family, sampling, share, salt, drafts, in_flight, drafting):
    allows = scattered(share, salt)
    expected = by_definition(family, allows, 12, sampling)
    plain = decode(decoder(family), prompt(family), 12, constraint=Language(allows), sampling=sampling)
    assert plain == expected
    vocab = target(family).config.vocab_size
    draft = {
        "trained": lambda: drafter(family),
        "hostile": lambda: Adversary(next(token for token in range(128) if not allows((), token)), vocab),
        "all-knowing": lambda: Oracle(prompt(family) + plain, vocab),
    }[drafting]()
    language = Language(allows)
    options = {"num_draft_tokens": drafts, "sampling": sampling, "constraint": language}
    assert decode(decoder(family, draft, in_flight=in_flight), prompt(family), 12, **options) == plain == language.text


@pytest.mark.few(3)
@pytest.mark.parametrize("in_flight", [0, 1])
@pytest.mark.parametrize("drafts", [0, 3, 8])
def test_a_refusal_at_every_row_and_at_the_limit(drafts, in_flight):
    """One place alone refuses what the target says there; whatever follows is the target's own again."""
    own = decode(decoder("e2b"), prompt("e2b"), 12)
    for place in (0, 1, 2, 3, 6, 11):
        refused = own[place]

        def allows(text, token, place=place, refused=refused):
            return len(text) != place or token != refused

        plain = decode(decoder("e2b"), prompt("e2b"), 12, constraint=Language(allows))
        assert plain[:place] == own[:place]
        assert plain[place] != refused
        assert (
            plain[place + 1 :]
            == decode(decoder("e2b"), prompt("e2b") + plain[: place + 1], 11 - place or 1)[: 11 - place]
        )
        for known in (own, plain):
            engine = decoder("e2b", Oracle(prompt("e2b") + known, 128), in_flight=in_flight)
            language = Language(allows)
            assert decode(engine, prompt("e2b"), 12, constraint=language, num_draft_tokens=drafts) == plain
            assert language.asked == 1
            assert engine.tokens == prompt("e2b") + plain
            assert engine.rows == len(engine.tokens) - 1


@pytest.mark.few(3)
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "sampled", "filtered"])
@pytest.mark.parametrize("drafts", [0, 3, "auto"])
def test_a_constraint_that_allows_everything_changes_no_round(drafts, sampling):
    options = {"max_tokens": 30, "num_draft_tokens": drafts, "sampling": sampling}
    free = list(decoder("31b", drafter("31b")).rounds(prompt("31b"), **options))
    language = Language(lambda text, token: True)
    assert tokens(decoder("31b", drafter("31b")).rounds(prompt("31b"), constraint=language, **options)) == tokens(free)
    assert not language.asked


def test_a_stop_token_counts_only_where_the_constraint_allows_it():
    own = decode(decoder("12b"), prompt("12b"), 20)
    stop = own[3]
    assert decode(decoder("12b"), prompt("12b"), 20, stop=[stop]) == own[: own.index(stop) + 1]
    for drafts in (0, 2, 8):
        language = Language(lambda text, token: token != stop or len(text) > 9)
        engine = decoder("12b", drafter("12b"))
        text = decode(engine, prompt("12b"), 20, stop=[stop], constraint=language, num_draft_tokens=drafts)
        assert stop not in text[:10]
        assert text == by_definition("12b", lambda text, token: token != stop or len(text) > 9, len(text), Sampling())
        language = Language(lambda text, token: (token == stop) == (len(text) == 5))  # nothing but the end, there
        text = decode(engine, prompt("12b"), 20, stop=[stop], constraint=language, num_draft_tokens=drafts)
        assert len(text) == 6
        assert text[-1] == stop


@pytest.mark.few(1)
@pytest.mark.parametrize("in_flight", [0, 1])
def test_closing_after_every_round_and_going_on_equals_a_fresh_run(in_flight):
    allows = scattered(0.5, 4)
    fresh = decode(decoder("e2b"), prompt("e2b"), 20, constraint=Language(allows))
    for stop_after in (1, 2, 3, 5, 8):
        engine, language = decoder("e2b", drafter("e2b"), in_flight=in_flight), Language(allows)
        rounds = engine.rounds(prompt("e2b"), max_tokens=20, num_draft_tokens=4, constraint=language)
        said = tokens(next(rounds) for _ in range(stop_after))
        rounds.close()
        assert engine.tokens == prompt("e2b") + said
        assert engine.rows == len(engine.tokens) - 1
        if len(said) < 20:
            said += decode(engine, engine.tokens, 20 - len(said), num_draft_tokens=3, constraint=language)
        assert said == fresh


def test_a_dead_end_is_an_error_and_the_next_text_is_right():
    engine = decoder("e4b", drafter("e4b"), in_flight=1)
    with pytest.raises(MlxmtpError, match="goes on"):
        decode(engine, prompt("e4b"), 20, constraint=Language(lambda text, token: len(text) < 5), num_draft_tokens=3)
    assert engine.rows == len(engine.tokens) - 1
    assert decode(engine, prompt("e4b"), 20) == decode(decoder("e4b"), prompt("e4b"), 20)


@pytest.mark.parametrize("in_flight", [0, 1])
@pytest.mark.parametrize("drafts", [1, 3, 8, "auto"])
@pytest.mark.parametrize("drafting", [False, True])
def test_forced_tokens_are_drafts_that_need_no_drafter(drafting, drafts, in_flight):
    """Every fifth token is free, the others are not: where the target wants another spelling of them, it wins."""

    def allows(text, token):
        return len(text) % 5 == 0 or token == (7 * len(text) + text[-1]) % 128

    expected = by_definition("26b", allows, 14, SAMPLINGS[1])
    draft = drafter("26b") if drafting else None
    engine, language = decoder("26b", draft, in_flight=in_flight), Language(allows)
    options = {"num_draft_tokens": drafts, "sampling": SAMPLINGS[1], "constraint": language, "max_tokens": 14}
    rounds = list(engine.rounds(prompt("26b"), **options))
    assert tokens(rounds) == expected
    assert len(rounds) < 14
    assert any(round_.accepted == 4 for round_ in rounds) or language.asked > 5


def test_the_drafter_goes_on_behind_forced_tokens():
    """Two tokens are forced wherever one was free: a round has them and what the drafter knows of the free ones."""

    def allows(text, token):
        return len(text) % 3 == 0 or token == (7 * len(text) + text[-1]) % 128

    plain = decode(decoder("e2b"), prompt("e2b"), 28, constraint=Language(allows))
    engine = decoder("e2b", Oracle(prompt("e2b") + plain, 128), in_flight=0)
    for _ in range(30):  # it is known to be right
        engine.depth.observe(8, 8, 0.02)
    language = Language(allows)
    rounds = list(engine.rounds(prompt("e2b"), num_draft_tokens=8, constraint=language, max_tokens=28))
    assert tokens(rounds) == plain
    assert [len(one.tokens) for one in rounds] == [1, 9, 9, 9]


@pytest.mark.parametrize("in_flight", [0, 1])
@pytest.mark.parametrize("drafts", [0, 3, "auto"])
def test_a_text_that_is_forced_to_its_end(drafts, in_flight):
    """One document alone: fifteen of its tokens a round, in another order than any the target would choose."""
    document = [(17 * place + 5) % 128 for place in range(33)]
    language = Language(lambda text, token: token == document[len(text)] if len(text) < 33 else token == 1)
    options = {"num_draft_tokens": drafts, "constraint": language, "max_tokens": 50, "stop": [1]}
    rounds = list(decoder("31b", drafter("31b"), in_flight=in_flight).rounds(prompt("31b"), **options))
    assert tokens(rounds) == [*document, 1]
    assert len(rounds) == (34 if drafts == 0 else 4) or in_flight


@pytest.mark.parametrize("drafting", [False, True])
def test_a_round_says_how_many_of_its_drafts_were_forced(drafting):
    def allows(text, token):
        return len(text) % 3 == 0 or token == (7 * len(text) + text[-1]) % 128

    plain = decode(decoder("e2b"), prompt("e2b"), 28, constraint=Language(allows))
    engine = decoder("e2b", Oracle(prompt("e2b") + plain, 128) if drafting else None, in_flight=0)
    for _ in range(30):
        engine.depth.observe(8, 8, 0.02)
    constraint = Language(allows)
    played = engine.rounds(
        prompt("e2b"), max_tokens=28, num_draft_tokens=8 if drafting else "auto", constraint=constraint
    )
    rounds = [one for one in played if one.draft]
    assert rounds
    assert all(one.given == (2 if drafting else len(one.draft)) for one in rounds)


def test_forced_drafts_have_the_length_that_earns_most():
    run, every = list(range(100, 115)), (0, 1, 3, 8, 15)
    depth = DraftLength(limit=0)
    assert depth.beside_forced(run[:1], 0, 99, 15, (0,), every) == (1, run[:1])
    assert depth.beside_forced(run[:3], 0, 99, 15, (0,), every) == (3, run[:3])
    assert depth.beside_forced(run, 0, 99, 15, (0,), every) == (15, run)
    # Filled up, as long as another trace would cost more than it saves; one answer is too short for it.
    assert depth.beside_forced(run[:2], 0, 6, 15, (0,), (0, 3)) == (3, [100, 101, 101])
    assert depth.beside_forced(run, 0, 1, 15, {0}, every) == (0, [])  # there is room for one token
    depth = DraftLength()
    for _ in range(30):
        depth.observe(8, 8, 0.02)
        depth.observe(0, 0, 0.01)
    assert depth.beside_forced(run[:2], 8, 99, 15, (0, 8), every) == (8, run[:2])  # the drafter goes on
    assert depth.beside_forced(run, 8, 99, 15, (0, 8), every) == (15, run)  # it has nothing to do
    for _ in range(30):
        depth.observe(8, 0, 0.02)
    assert depth.beside_forced(run[:3], 8, 99, 15, (0, 8), every) == (3, run[:3])  # it is not worth its time
    for _ in range(30):
        depth.observe(15, 15, 0.3, given=15)
    assert depth.beside_forced(run, 0, 99, 15, (0, 8), every)[0] < 15  # nor are so many rows
    depth = DraftLength(fixed=3)
    assert depth.beside_forced(run[:1], 3, 99, 15, (0, 3, 8), every)[0] in (1, 3)


def test_rounds_with_given_drafts_say_nothing_of_the_drafter():
    depth = DraftLength()
    for _ in range(20):
        depth.observe(3, 3, 0.02)
    tokens = depth._accepted.tokens()
    for _ in range(20):
        depth.observe(8, 8, 0.02, given=8)
        depth.observe(3, 0, 0.02, given=2)  # the target spells the forced text in another way
    assert depth._accepted.tokens() == tokens
    depth.observe(3, 2, 0.02, given=2)
    assert depth._accepted.tokens() < tokens
