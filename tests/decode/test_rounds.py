"""Drafting never changes a text: against the reference, against plain decoding, after any interruption."""

import itertools

import mlx.core as mx
import pytest

from mlxmtp.decode.decoder import Decoder
from mlxmtp.decode.sampling import Sampling
from mlxmtp.errors import ContextOverflow
from mlxmtp.limits import STEP
from tests.golden import FAMILIES, PROMPTS, load_golden
from tests.networks import Adversary, Oracle, decode, drafter, target, tokens

SAMPLINGS = [
    Sampling(temp=0.7, top_k=20, top_p=0.9, seed=3),
    Sampling(temp=1.3, min_p=0.05, seed=2**40 + 1),
    Sampling(temp=1.0, top_p=0.7, seed=5),
]


def decoder(family: str, draft: object = None, **options: object) -> Decoder:
    options = {"compiled": "never"} | options
    return Decoder(target(family), draft, **options)  # type: ignore[arg-type]


def prompt(family: str, name: str = "long") -> list[int]:
    return load_golden(family).records[name].prompt


@pytest.mark.few(25)
@pytest.mark.parametrize("name", PROMPTS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("drafts", [0, 1, 2, 4, 8])
def test_greedy_text_equals_the_reference(family, name, drafts):
    record = load_golden(family).records[name]
    text = decode(decoder(family, drafter(family)), record.prompt, 40, num_draft_tokens=drafts)
    assert text == record.greedy
    assert record.assisted == record.greedy


@pytest.mark.parametrize("name", PROMPTS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("drafts", [1, 4])
def test_every_round_drafts_and_accepts_as_the_reference(family, name, drafts):
    record = load_golden(family).records[name]
    rounds = list(decoder(family, drafter(family)).rounds(record.prompt, max_tokens=40, num_draft_tokens=drafts))[1:]
    wanted = record.rounds[drafts]
    assert [(list(r.draft), r.accepted) for r in rounds][: len(wanted)] == [(w.draft, w.accepted) for w in wanted]
    for r in rounds[:-1]:
        assert len(r.tokens) == r.accepted + 1
        assert r.tokens[:-1] == r.draft[: r.accepted]


@pytest.mark.few(8)
@pytest.mark.parametrize("compiled", ["never", "always"])
@pytest.mark.parametrize("in_flight", [0, 1, 2])
@pytest.mark.parametrize("drafts", [0, 1, 5, "auto"])
def test_no_way_of_running_a_round_changes_the_text(drafts, in_flight, compiled):
    record = load_golden("e2b").records["long"]
    engine = decoder("e2b", drafter("e2b"), in_flight=in_flight, compiled=compiled)
    assert decode(engine, record.prompt, 40, num_draft_tokens=drafts) == record.greedy


@pytest.mark.few(5)
@pytest.mark.parametrize(
    ("family", "sampling"),
    [*((family, Sampling()) for family in FAMILIES), *zip(FAMILIES, [*SAMPLINGS, *SAMPLINGS], strict=False)],
    ids=str,
)
def test_trained_hostile_and_all_knowing_drafters_give_the_plain_text(family, sampling):
    plain = decode(decoder(family), prompt(family), 24, sampling=sampling)
    vocab = target(family).config.vocab_size
    hostile, knowing = Adversary(plain[1], vocab), Oracle(prompt(family) + plain, vocab)
    for draft, lengths in [(drafter(family), (1, 3, 8)), (hostile, (2, 8)), (knowing, (1, 8))]:
        for drafts in lengths:
            text = decode(decoder(family, draft), prompt(family), 24, num_draft_tokens=drafts, sampling=sampling)
            assert text == plain, (draft, drafts)


def test_an_all_knowing_drafter_is_accepted_whole_and_a_hostile_one_never():
    plain = decode(decoder("31b"), prompt("31b"), 60)
    known = Oracle(prompt("31b") + plain, 128)
    rounds = list(decoder("31b", known).rounds(prompt("31b"), max_tokens=60, num_draft_tokens=5))
    assert all(r.accepted == 5 for r in rounds[1:-1])
    never = next(token for token in range(128) if token not in plain)
    rounds = list(decoder("31b", Adversary(never, 128)).rounds(prompt("31b"), max_tokens=60, num_draft_tokens=5))
    assert all(r.accepted == 0 and len(r.tokens) == 1 for r in rounds)


def test_different_seeds_give_different_texts_and_the_same_seed_the_same():
    texts = [decode(decoder("12b"), prompt("12b"), 30, sampling=Sampling(temp=1.5, seed=seed)) for seed in (1, 2, 1)]
    assert texts[0] == texts[2] != texts[1]


def test_text_is_the_same_across_growth_of_the_buffers(monkeypatch):
    """The answer passes the capacity it began with, in ring and full layers."""
    monkeypatch.setattr("mlxmtp.decode.decoder.AHEAD", 1)
    long = (prompt("e4b") * 6)[: STEP - 30]
    plain = decode(decoder("e4b"), long, 80)
    assert decode(decoder("e4b", drafter("e4b")), long, 80, num_draft_tokens=4) == plain
    monkeypatch.undo()
    unbroken = Decoder(target("e4b"), compiled="never")
    unbroken._cache.reserve(4 * STEP)
    assert decode(unbroken, long, 80) == plain


@pytest.mark.parametrize("chunk", [1, 5, 16, 17, 512])
def test_the_size_of_prompt_chunks_does_not_matter(chunk):
    record = load_golden("26b").records["long"]
    assert decode(decoder("26b", chunk=chunk), record.prompt, 40) == record.greedy


@pytest.mark.few(2)
@pytest.mark.parametrize("in_flight", [0, 1])
@pytest.mark.parametrize("sampling", [Sampling(), SAMPLINGS[0]], ids=["greedy", "sampled"])
def test_closing_after_every_round_and_going_on_equals_a_fresh_run(sampling, in_flight):
    family, options = "e2b", {"num_draft_tokens": 4, "sampling": sampling}
    fresh = decode(decoder(family, drafter(family)), prompt(family), 24, **options)
    for stop_after in range(1, 12):
        engine = decoder(family, drafter(family), in_flight=in_flight)
        rounds = engine.rounds(prompt(family), max_tokens=24, **options)
        kept = tokens(itertools.islice(rounds, stop_after))
        rounds.close()
        assert engine.tokens == prompt(family) + kept
        assert engine.rows == len(engine.tokens) - 1
        if len(kept) < 24:
            assert kept + decode(engine, engine.tokens, 24 - len(kept), **options) == fresh
            assert engine.reused == len(prompt(family)) + len(kept) - 1


def test_ctrl_c_at_any_moment_leaves_a_decoder_that_goes_on():
    """KeyboardInterrupt out of every call the loop makes: the text so far plus the rest is the whole text."""
    family = "e2b"
    fresh = decode(decoder(family), prompt(family), 30)
    for moment in range(1, 40, 3):
        engine = decoder(family, drafter(family), in_flight=1)
        calls = 0

        def interrupted(*arguments: object, real=engine._rounds.get, at=moment, **options: object) -> object:
            nonlocal calls
            calls += 1
            if calls == at:
                raise KeyboardInterrupt
            return real(*arguments, **options)

        engine._rounds.get = interrupted  # type: ignore[method-assign, assignment]
        kept: list[int] = []
        try:
            for round_ in engine.rounds(prompt(family), max_tokens=30, num_draft_tokens=2):
                kept += round_.tokens
        except KeyboardInterrupt:
            pass
        assert engine.tokens == prompt(family) + kept
        rest = decode(engine, engine.tokens, 30 - len(kept)) if len(kept) < 30 else []
        assert kept + rest == fresh


@pytest.mark.parametrize("moment", [0, 10, 20, 30])
def test_interrupted_reading_of_a_prompt_keeps_what_was_read(moment):
    engine = decoder("31b", chunk=10)
    seen = []

    def stop_at(done: int, total: int) -> None:
        assert total == len(prompt("31b"))
        assert done <= engine.rows
        seen.append(done)
        if done == moment:
            raise KeyboardInterrupt

    if moment:
        with pytest.raises(KeyboardInterrupt):
            list(engine.rounds(prompt("31b"), max_tokens=5, on_prefill=stop_at))
        assert sorted(set(seen)) == list(range(0, moment + 1, 10))
        assert engine.rows == moment + 10  # the next chunk is on its way by then
        assert engine.tokens == prompt("31b")[: engine.rows]
    kept = engine.rows
    assert (
        decode(engine, prompt("31b"), 40, on_prefill=lambda done, _: seen.append(done))
        == load_golden("31b").records["long"].greedy
    )
    assert engine.reused == kept
    assert seen[-1] == len(prompt("31b"))


@pytest.mark.parametrize("layers", [1, 4, 7, 12])
def test_what_is_raised_after_a_layer_ends_the_reading_there(layers, monkeypatch):
    engine, send, sent, called = decoder("31b", chunk=10), mx.async_eval, [], []

    def counted(*arrays):
        sent.append(arrays)
        send(*arrays)

    def stop_there(done: int, total: int) -> None:
        called.append(done)
        if len(called) == layers:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(mx, "async_eval", counted)
        with pytest.raises(KeyboardInterrupt):
            list(engine.rounds(prompt("31b"), max_tokens=5, on_prefill=stop_there))
        assert len(sent) == layers
    kept = engine.rows
    assert decode(engine, prompt("31b"), 40) == load_golden("31b").records["long"].greedy
    assert (engine.reused, kept > called[-1]) == (kept, True)


def test_the_next_turn_reads_only_what_is_new_and_an_edited_one_is_right():
    engine = decoder("12b", drafter("12b"))
    first = decode(engine, prompt("12b"), 10)
    longer = prompt("12b") + first + [7, 8, 9]
    second = decode(engine, longer, 10)
    assert engine.reused == len(prompt("12b")) + 9
    assert second == decode(decoder("12b"), longer, 10)
    edited = [*longer[:40], 3, *longer[41:]]
    assert decode(engine, edited, 10) == decode(decoder("12b"), edited, 10)
    assert decode(engine, prompt("12b", "short"), 40) == load_golden("12b").records["short"].greedy


@pytest.mark.parametrize("in_flight", [0, 1])
def test_a_stop_token_is_the_last_one_kept(in_flight):
    record = load_golden("e2b").records["long"]
    stop = record.greedy[20]
    wanted = record.greedy[: record.greedy.index(stop) + 1]
    for drafts in (0, 3, 8):
        engine = decoder("e2b", drafter("e2b"), in_flight=in_flight)
        assert decode(engine, record.prompt, 40, num_draft_tokens=drafts, stop={stop}) == wanted
        assert engine.tokens == record.prompt + wanted


@pytest.mark.parametrize("count", [1, 2, 5, 9])
def test_never_more_tokens_than_asked_for(count):
    record = load_golden("e2b").records["short"]
    engine = decoder("e2b", drafter("e2b"), in_flight=1)
    assert decode(engine, record.prompt, count, num_draft_tokens=8) == record.greedy[:count]


def test_the_context_limit_ends_the_text_and_refuses_a_longer_prompt():
    limit = target("e2b").config.max_positions
    near = (prompt("e2b") * 20)[: limit - 6]
    assert len(decode(decoder("e2b", drafter("e2b")), near, 100, num_draft_tokens=4)) == 6
    with pytest.raises(ContextOverflow, match=str(limit)):
        decoder("e2b").rounds([5] * limit, max_tokens=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt_ids": []}, "at least one token"),
        ({"max_tokens": 0}, "at least one token"),
        ({"num_draft_tokens": 9}, "num_draft_tokens"),
        ({"num_draft_tokens": -1}, "num_draft_tokens"),
        ({"draft_from": ()}, "draft_from"),
        ({"draft_from": ("mpt",)}, "draft_from"),
        ({"prompt_ids": [5, 128]}, "0 .. 127"),
        ({"prompt_ids": [-1]}, "0 .. 127"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused_before_anything_runs(arguments, message):
    with pytest.raises(ValueError, match=message):
        decoder("e2b").rounds(**({"prompt_ids": [5], "max_tokens": 3} | arguments))


def test_rounds_that_another_request_has_overtaken_say_so():
    engine = decoder("e2b", drafter("e2b"))
    first = engine.rounds(prompt("e2b"), max_tokens=20, num_draft_tokens=2)
    second = engine.rounds(prompt("e2b", "short"), max_tokens=20, num_draft_tokens=2)
    next(first)
    next(second)
    with pytest.raises(RuntimeError, match="another request"):
        next(first)
    assert len(tokens(second)) == 19
