"""A text in a lane is the text it would have alone: whoever joins, leaves, is cancelled or comes back beside it."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import mlx.core as mx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxmtp.decode.compile import BatchRounds
from mlxmtp.decode.decoder import Decoder
from mlxmtp.decode.draft_length import DraftLength
from mlxmtp.decode.lane import Lane, Stream
from mlxmtp.decode.mixed_sampling import choices, choose_each, kind_of
from mlxmtp.decode.prefill import drained
from mlxmtp.decode.sampling import Sampling, choose, gumbel
from mlxmtp.decode.snapshots import CacheState
from mlxmtp.errors import DeviceFailed
from tests.golden import FAMILIES, load_golden
from tests.networks import decode, drafter, target

SAMPLINGS = (
    Sampling(),
    Sampling(temp=1.0, top_k=20, top_p=0.9, seed=3),
    Sampling(temp=1.3, min_p=0.05, seed=2**40 + 1),
    Sampling(temp=1.0, top_p=0.7, seed=5),
    Sampling(temp=1.5, seed=6),
    Sampling(temp=1.0, top_k=2**64, seed=7),
)
ROOT = Path(__file__).parents[2]
LENGTH = 16  # tokens of a text


@cache
def reader(family: str) -> Decoder:
    return Decoder(target(family), drafter(family), compiled="never")


@cache
def rounds(family: str, compiled: str = "never") -> BatchRounds:
    return BatchRounds(target(family), drafter(family), compiled)  # type: ignore[arg-type]


@cache
def prompt(family: str, length: int) -> tuple[int, ...]:
    return tuple((load_golden(family).records["long"].prompt * 3)[:length])


@cache
def alone(family: str, length: int, sampling: Sampling) -> list[int]:
    return decode(Decoder(target(family), compiled="never"), list(prompt(family, length)), LENGTH, sampling=sampling)


def join(lane: Lane, family: str, length: int, sampling: Sampling, limit: int | None = None) -> Stream:
    tokens = list(prompt(family, length))
    begun = drained(reader(family).read(tokens, sampling=sampling))
    stream = Stream([*tokens, begun.token], LENGTH - 1, sampling, (), limit)
    lane.join(stream, begun.cache, begun.hidden)
    return stream


def check(family: str, length: int, stream: Stream) -> None:
    assert stream.tokens[length:] == alone(family, length, stream.sampling)[: len(stream.tokens) - length]


@pytest.mark.few(3)
@pytest.mark.parametrize(
    ("family", "compiled"),
    [
        ("e2b", "never"),
        ("26b", "never"),
        ("12b", "always"),
        *(pytest.param(family, "never", marks=pytest.mark.slow) for family in FAMILIES if family not in ("e2b", "26b")),
    ],
)
def test_texts_of_all_settings_side_by_side(family, compiled):
    lane = Lane(rounds(family, compiled), in_flight=0)
    lengths = [5, 17, 80, 90, 33, 41]
    streams = [join(lane, family, n, s) for n, s in zip(lengths, SAMPLINGS, strict=True)]
    while any(not stream.over for stream in streams):
        lane.step()
    for n, stream in zip(lengths, streams, strict=True):
        check(family, n, stream)
        assert len(stream.tokens) == n + LENGTH


def test_a_text_that_leaves_late_keeps_what_others_have_taught():
    lane = Lane(rounds("e2b"), in_flight=0)
    late = join(lane, "e2b", 5, Sampling(), limit=0)
    early = join(lane, "e2b", 17, Sampling())
    for _ in range(20):
        early.acceptance.observe(3, 3)
    lane.leave(early)
    taught = lane.acceptance
    assert taught != late.acceptance.kinds
    lane.leave(late)
    assert lane.acceptance == taught


def test_the_choice_of_draft_lengths_that_made_the_last_answer_is_the_one_that_is_told():
    lane = Lane(rounds("e2b"), in_flight=0)
    streams = [join(lane, "e2b", n, Sampling()) for n in (5, 17)]
    while any(not stream.over for stream in streams):
        lane.step()
    depth = lane.depth
    for stream in streams:
        for _ in range(30):
            stream.acceptance.observe(8, 8)
        lane.leave(stream)
    assert lane.depth is depth
    assert (depth.accepted() or 0) > 0.5


def test_idle_time_is_neither_that_of_a_round_nor_the_price_of_a_trace(monkeypatch):
    now, wanted = [0.0], iter([3, 3, 3, 3, 3, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0])
    lane = Lane(rounds("e2b", "always"), in_flight=1)
    stream = join(lane, "e2b", 5, Sampling())

    def dispatch(real=lane._dispatch):
        now[0] += 1.0
        return real()

    lane._dispatch = dispatch  # type: ignore[method-assign]
    monkeypatch.setattr("mlxmtp.decode.lane.time.perf_counter", lambda: now[0])
    monkeypatch.setattr(BatchRounds, "built", lambda *_: True)
    monkeypatch.setattr(DraftLength, "choose", lambda *_: next(wanted))
    price = lane.depth._price
    for number in range(8):
        assert not stream.over
        now[0] += 60.0 * (number % 2)
        lane.step()
    assert lane.seconds == 1.0
    assert lane.depth._price <= price


ACTION = st.tuples(
    st.sampled_from(["join", "join", "step", "step", "step", "cancel", "return", "drafts"]),
    st.integers(0, 7),
    st.sampled_from([2, 16, 79, 81, 130]),
    st.sampled_from(SAMPLINGS),
    st.sampled_from([None, None, 0, 1, 4]),
)


@settings(max_examples=int(os.environ.get("MLXMTP_SCHEDULES", "5")), deadline=None)
@given(
    actions=st.lists(ACTION, min_size=5, max_size=40),
    in_flight=st.integers(0, 2),
    family=st.sampled_from(["e2b", "26b"]),
)
def test_random_schedules_of_joins_leaves_cancels_and_returns(actions, in_flight, family):
    """MLXMTP_SCHEDULES=400 plays more of them."""
    play(actions, in_flight, family)


def play(actions: list[tuple[str, int, int, Sampling, int | None]], in_flight: int, family: str) -> None:
    lane = Lane(rounds(family), in_flight=in_flight)
    here: list[tuple[int, Stream]] = []

    def step() -> None:
        lane.step()
        for item in [item for item in here if item[1].over]:
            lane.leave(item[1])
            here.remove(item)
            check(family, *item)

    for what, which, length, sampling, limit in actions:
        if what == "join" and len(here) < 4:
            here.append((length, join(lane, family, length, sampling, limit)))
        elif what in ("cancel", "return") and here:
            before, stream = here.pop(which % len(here))
            text = lane.leave(stream, keep=what == "return")
            check(family, before, stream)
            if text is not None:  # its keys and values go on elsewhere, and come back
                other = reader(family)
                other.import_state(CacheState(stream.tokens[:-1], text.newest, text.cut(stream.rows)))
                begun = drained(other.read(stream.tokens, sampling=stream.sampling))
                assert other.reused == stream.rows
                back = Stream([*stream.tokens, begun.token], stream.room - 1, stream.sampling)
                lane.join(back, begun.cache, begun.hidden)
                here.append((before, back))
        else:
            step()
    while here:
        step()
    assert lane.capacity == 0


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_noise_and_filters_are_those_of_a_single_text(sampling):
    """Rows of other settings beside it, and its own place among them, change no choice."""
    rows, vocab = 5, 4096
    logits = mx.random.normal((rows, vocab), key=mx.random.key(1)) * 3
    positions = mx.arange(rows) + 70
    kinds = sorted({kind_of(one.filters) for one in SAMPLINGS})
    for shift in range(len(SAMPLINGS)):
        settings_ = [SAMPLINGS[(i + shift) % len(SAMPLINGS)] for i in range(rows)]
        mixed = choose_each(logits, choices(settings_), positions, kinds).tolist()
        assert isinstance(mixed, list)
        for i, one in enumerate(settings_):
            alone_ = choose(logits[i : i + 1], one.key(), positions[i : i + 1], one.filters).item()
            assert mixed[i] == alone_
    keys = mx.stack([sampling.key()] * rows)
    ids = mx.arange(vocab)[None]
    assert mx.array_equal(gumbel(keys, positions, ids), gumbel(sampling.key(), positions, ids))


def test_slots_follow_the_number_of_texts_and_a_stop_token_ends_one(monkeypatch):
    monkeypatch.setattr("mlxmtp.decode.lane._PATIENCE", 2)
    lane = Lane(rounds("e2b"), in_flight=0)
    greedy = alone("e2b", 80, Sampling())
    streams = [join(lane, "e2b", n, Sampling()) for n in (80, 16, 81)]
    streams[0].stop = {greedy[7]}
    assert len(lane._streams) == 4
    while not streams[0].over:
        lane.step()
    assert streams[0].tokens[80:] == greedy[: greedy.index(greedy[7]) + 1]
    lane.leave(streams[0])
    while not streams[1].over:
        lane.step()
    assert len(lane._streams) == 2, "half of the slots have been empty for long"
    check("e2b", 16, streams[1])
    check("e2b", 81, streams[2])


def test_rows_that_only_a_long_text_needed_are_given_back(monkeypatch):
    """Every text attends to all of them, as long as anyone is here."""
    monkeypatch.setattr("mlxmtp.decode.lane._PATIENCE", 2)
    monkeypatch.setattr("mlxmtp.decode.lane.AHEAD", 4000)
    lane = Lane(rounds("e2b"), in_flight=2)
    short, long = join(lane, "e2b", 80, Sampling()), join(lane, "e2b", 33, Sampling())
    long.room = 3000
    again = join(lane, "e2b", 17, SAMPLINGS[1])
    lane._cache.reserve(3100)
    for _ in range(4):
        lane.step()
    assert lane.capacity >= 3000
    lane.leave(long)
    while not short.over or not again.over:
        lane.step()
    assert lane.capacity <= 512
    check("e2b", 80, short)
    check("e2b", 17, again)


def test_the_memory_of_a_text_that_joins_is_known_before():
    lane = Lane(rounds("e2b"), in_flight=0)
    for length in (5, 80, 17):
        told = lane.nbytes_with(length + LENGTH, 1)
        join(lane, "e2b", length, Sampling())
        assert lane.nbytes == told


_BITS = """
import mlx.core as mx  # before OpenBLAS: products are MLX's own, and a row's bits do not depend on the rows beside it
from mlxmtp.decode.lane import Lane
from mlxmtp.decode.sampling import Sampling
from tests.decode.test_lane import join, reader, rounds

for family in ("e2b", "26b"):
    several, lanes = Lane(rounds(family), in_flight=0), [Lane(rounds(family), in_flight=0) for _ in range(3)]
    lengths = (80, 5, 33)
    for length, lane in zip(lengths, lanes):
        for one in (several, lane):
            reader(family).forget()  # what is read row by row has other bits than what is read at once
            join(one, family, length, Sampling(temp=1.0, seed=length), 0)
    for _ in range(5):
        several.step()
        for slot, lane in enumerate(lanes):
            lane.step()
            assert several.streams[slot].tokens == lane.streams[0].tokens
            assert mx.array_equal(several._state.hidden[slot], lane._state.hidden[0]), (family, slot)
print("same bits")
"""


def test_a_text_has_the_same_bits_in_any_slot_with_the_reference_blas():
    """Without OpenBLAS any difference is a wrong mask, position or ring: no tolerance."""
    done = subprocess.run([sys.executable, "-c", _BITS], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.stdout == "same bits\n", done.stderr


def test_a_limit_of_drafts_holds_for_its_text_alone():
    lane = Lane(rounds("e2b"), in_flight=0)
    free, plain = join(lane, "e2b", 80, Sampling()), join(lane, "e2b", 80, Sampling(), 0)
    steps = []
    for _ in range(6):
        steps += lane.step()
        lane._depth(2).fixed = 3
    assert all(len(one.tokens) == 1 and one.accepted == 0 for stream, one in steps if stream is plain)
    assert len(free.tokens) >= len(plain.tokens)


def test_what_the_device_fails_to_compute_empties_the_lane(monkeypatch):
    lane = Lane(rounds("e2b"), in_flight=0)
    stream = join(lane, "e2b", 16, Sampling())

    def fail(*_: object) -> object:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(lane, "_dispatch", fail)
    with pytest.raises(DeviceFailed, match="out of memory"):
        lane.step()
    assert not lane.streams
    assert not stream.here
    monkeypatch.undo()
    again = join(lane, "e2b", 16, Sampling())
    while not again.over:
        lane.step()
    check("e2b", 16, again)


def test_eight_texts_of_middling_drafts_stay_plain():
    """What most of them accept is no sign that drafting pays for all, and a trace for a probe has its price."""
    lane, traced = Lane(rounds("e2b"), in_flight=0), {0}
    depth = lane._depth(8)
    chosen = []
    for _ in range(200):
        k = depth.choose(1000, traced)
        chosen.append(k)
        traced.add(k)
        depth.observe(k, 0, 0.04 * (1.0, 1.64, 2.4, 3.1)[k])
    assert sum(map(bool, chosen)) <= 2
    assert chosen[:100] == [0] * 100
    assert lane._depth(2).choose(1000, {0, 1, 3}) > 0, "two share a round as one alone does"
