"""Several texts on one decoder: each goes on where it was, and says what a decoder of its own would say."""

from __future__ import annotations

import random

import mlx.core as mx
import pytest

from mlxmtp.decode import snapshots, texts
from mlxmtp.decode.decoder import Decoder
from mlxmtp.models.kv_cache import KVCache
from tests.golden import load_golden
from tests.networks import decode, drafter, target

ENOUGH = 1 << 30


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """The goldens' texts are short: a few tokens are worth keeping."""
    monkeypatch.setattr(texts, "WORTH", 8)
    monkeypatch.setattr(snapshots, "APART", 8)


def decoder(family: str, limit: int | None = None) -> Decoder:
    found = Decoder(target(family), drafter(family), compiled="never")
    if limit is not None:
        found.hold_texts(limit)
    return found


def prompts(family: str) -> tuple[list[int], list[int]]:
    """Two prompts with nothing in common."""
    first = load_golden(family).records["long"].prompt
    return first, [first[0] + 1, *reversed(first)]


@pytest.mark.parametrize("family", ["e2b", "26b"])
def test_two_conversations_take_turns_and_read_only_what_is_new(family: str) -> None:
    engine = decoder(family, ENOUGH)
    talks = [list(prompt) for prompt in prompts(family)]
    for turn in range(2):
        for talk in talks:
            before = len(talk)
            said = decode(engine, talk, 12, num_draft_tokens=3, snapshot_at=[len(talk)])
            assert said == decode(decoder(family), talk, 12)
            assert engine.reused == (0 if turn == 0 else before - 4)  # the last token of an answer is not read yet
            talk += [*said, 5 + turn, 6, 7]


def test_a_beginning_that_is_shared_is_read_once_and_stays_with_both() -> None:
    family = "e2b"
    engine, (first, other) = decoder(family, ENOUGH), prompts(family)
    shared = len(first) - 9
    second = [*first[:shared], *other[:12]]
    said = decode(engine, first, 12, snapshot_at=[shared, len(first)])
    assert decode(engine, second, 12, snapshot_at=[shared, len(second)]) == decode(decoder(family), second, 12)
    assert engine.reused == shared
    following = [*first, *said, 5, 6]
    assert decode(engine, following, 12) == decode(decoder(family), following, 12)
    assert engine.reused == len(following) - 3


def test_two_agents_with_one_beginning_read_every_token_once() -> None:
    engine, (first, other) = decoder("e2b", ENOUGH), prompts("e2b")
    beginning = (first * 3)[:300]  # long enough to be kept for its own sake
    talks = [[*beginning, *first[:9]], [*beginning, *other[:9]]]
    read = [0, 0]
    for number in range(6):
        for agent, talk in enumerate(talks):
            said = decode(engine, talk, 8, num_draft_tokens=3, snapshot_at=[len(beginning), len(talk)])
            read[agent] += len(talk) - engine.reused
            talk += [*said, 5 + number, 6, 7]  # a call and its result
    # All that was said is in the cache, but for the last token of an answer; behind it come three.
    assert read == [len(beginning) + 9 + 5 * 4, 9 + 5 * 4]


def test_a_beginning_stays_what_it_is_when_several_texts_have_gone_on_from_it() -> None:
    """Their own parts fill whole rings: what one of them writes must not come back to the next."""
    engine, (first, other) = decoder("e2b", ENOUGH), prompts("e2b")
    beginning, parts = (first * 5)[:400], [(other * 4)[:300], (first[1:] * 4)[:300], other[3:23]]
    for part in parts:
        text = [*beginning, *part]
        said = decode(engine, text, 8, snapshot_at=[len(beginning)])
        assert said == decode(decoder("e2b"), text, 8)
    assert engine.reused == len(beginning)


def test_a_state_can_be_gone_on_from_twice() -> None:
    first, other = prompts("e2b")
    text, more = (first * 5)[:400], (other * 4)[:300]
    giver = decoder("e2b")
    decode(giver, text, 1, snapshot_at=[len(text)])
    state = giver.export_state(len(text))
    decode(giver, [*text, *more], 4)
    for part in (more, other[3:23]):
        taker = decoder("e2b")
        taker.import_state(state)
        assert decode(taker, [*text, *part], 8) == decode(decoder("e2b"), [*text, *part], 8)
        assert taker.reused == len(text)


@pytest.mark.parametrize("limit", [0, 200_000, ENOUGH])
@pytest.mark.parametrize("family", ["12b"])
def test_whatever_is_asked_in_whatever_order_the_texts_are_the_same(family: str, limit: int) -> None:
    chance = random.Random(limit)
    engine, pool = decoder(family, limit), [list(prompt) for prompt in prompts(family)]
    for _ in range(6):
        prompt = list(chance.choice(pool))
        if chance.random() < 0.5:
            prompt = prompt[: chance.randrange(4, len(prompt))] + [chance.randrange(9, 12) for _ in range(5)]
        marks = sorted(chance.sample(range(1, len(prompt) + 1), 2))
        count = chance.choice([1, 9, 20])
        said = decode(engine, prompt, count, num_draft_tokens=chance.choice([0, 3]), snapshot_at=marks)
        assert said == decode(decoder(family), prompt, count)
        pool.append([*prompt, *said, 5])


def test_what_is_held_stays_within_its_limit() -> None:
    engine, (first, other) = decoder("e2b", 0), prompts("e2b")
    said = decode(engine, first, 20)
    decode(engine, other, 20)
    decode(engine, [*first, *said, 5], 20)
    assert engine.reused == 0


@pytest.mark.parametrize(("newest", "held"), [(-1, [30]), (10_000, [20, 30])])
def test_a_text_is_held_instead_of_one_that_it_contains_and_can_go_back_to(newest: int, held: list[int]) -> None:
    spec, tokens, kept = target("e2b").cache_spec, list(range(40)), texts.HeldTexts(ENOUGH)
    whole, begun = (texts.HeldText(KVCache(spec, mx.float32), tokens[:rows], rows) for rows in (30, 20))
    whole.cache.newest = newest  # beyond its rings, and without a snapshot, all would be read again
    kept.add(begun)
    kept.add(whole)
    assert [text.rows for text in kept] == held
    kept.add(texts.HeldText(KVCache(spec, mx.float32), tokens[:20], 20))
    assert [text.rows for text in kept if text is not begun] == [30]
    kept.keep_within(-1)
    assert list(kept) == []


@pytest.mark.parametrize("same", [0, 1, 511, 512, 513, 1100])
def test_the_beginning_that_a_text_shares_with_a_prompt_is_exact(same: int) -> None:
    tokens = list(range(1500))
    held = texts.HeldText(KVCache(target("e2b").cache_spec, mx.float32), [*tokens, 9], 1200)
    other = [*tokens[:same], 7777, *tokens[same + 1 :]]
    assert held.shared(other) == same
    assert held.shared(tokens[:same]) == same
    assert held.shared(tokens) == 1200  # as many as it has keys and values for


@pytest.mark.parametrize("later", [False, True])
def test_a_text_that_is_too_large_by_itself_drives_no_other_out(later: bool) -> None:
    """Where it is to be held, and where answers take the memory later."""
    made = []
    for first, rows in ((0, 256), (100, 256), (50, 2048)):
        cache = KVCache(target("e2b").cache_spec, mx.float32)
        cache.reserve(rows)
        made.append(texts.HeldText(cache, list(range(first, first + 40)), 40))
    *small, large = made
    limit = sum(text.nbytes for text in small)
    assert large.nbytes > limit
    kept = texts.HeldTexts(ENOUGH if later else limit)
    for text in made:
        kept.add(text)
    if later:
        kept.keep_within(limit)
    assert list(kept) == small


def test_a_text_that_is_too_large_replaces_none() -> None:
    spec, tokens = target("e2b").cache_spec, list(range(40))
    begun, whole = (texts.HeldText(KVCache(spec, mx.float32), tokens[:rows], rows) for rows in (20, 40))
    whole.cache.reserve(2048)
    kept = texts.HeldTexts(whole.nbytes - 1)
    kept.add(begun)
    kept.add(whole)
    assert list(kept) == [begun]
