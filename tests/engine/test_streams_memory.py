"""Answers side by side within the memory that there is: who waits, who shares, what gives way."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from mlxmtp.decode.draft_length import DraftLength
from mlxmtp.decode.lane import Lane, Stream
from mlxmtp.engine.events import End
from mlxmtp.engine.model import Model
from mlxmtp.engine.params import Params
from mlxmtp.engine.seat import Seat
from mlxmtp.engine.streams import Streams
from mlxmtp.models.kv_cache import KVCache
from tests.engine.test_streams import DIGITS, LONG_FORM, PARAMS, QUESTIONS, Heard, alone, begin, messages, uncompiled

LONG = "word " * 1500
LASTING = Params(max_tokens=40, temp=0.0, stop=())


@pytest.fixture(scope="module")
def model() -> Any:
    yield from uncompiled()


@pytest.fixture(autouse=True)
def holds_no_texts(model: Model) -> Iterator[None]:
    model._decoder.begin_anew()
    yield
    model._decoder.texts = None


def used(streams: Streams) -> int:
    """Bytes of keys and values of all that runs."""
    decoders = [streams.decoder, *([] if streams.beside is None else [streams.beside])]
    return sum(one.live.nbytes for one in decoders) + sum(lane.nbytes for lane in streams._lanes)


def test_held_texts_give_way_to_answers(model):
    model._decoder.forget()
    model.hold_texts(2**30)
    streams, texts = Streams(model._decoder, 2), model._decoder.texts
    for question in ("word " * 400, "other " * 400):
        list(model.stream(messages(question), PARAMS[0]))
    last = model._decoder.live.nbytes
    streams._memory = last + 1000
    assert [streams._make_room(1000), len(list(texts)), model._decoder.rows > 0] == [True, 0, True]
    assert [streams._make_room(last + 1000), len(list(texts)), model._decoder.rows] == [True, 0, 0]
    assert not streams._make_room(last + 1001)


def wants(streams: Streams, model: Model, *about: Any) -> tuple[Seat, int]:
    """An answer that waits for a place, and the bytes of its lane with it."""
    seat = begin(streams, model, *about).seat
    streams._pull()
    return seat, streams._lane_of(seat).nbytes_with(seat.rows, 1)


def test_the_held_text_of_a_conversation_does_not_give_way_to_its_next_turn(model):
    model._decoder.forget()
    model.hold_texts(2**30)
    streams, texts = Streams(model._decoder, 2), model._decoder.texts
    for question in (LONG, "other " * 400):
        list(model.stream(messages(question), PARAMS[0]))
    [held] = texts
    seat, lane = wants(streams, model, LONG + "And?", PARAMS[0], 0)
    assert held.usable(seat.asked.prompt) > 1500
    needed = lane + max(0, streams._nbytes(seat.rows) - held.nbytes)
    streams._memory = needed + held.nbytes
    assert streams._fits(seat, reads=model._decoder)
    assert [text.cache for text in texts] == [held.cache]
    streams._memory -= 1
    assert not streams._fits(seat, reads=model._decoder)
    streams.close()


def test_a_prompt_that_is_read_in_a_copy_is_counted_as_a_whole(model):
    """It shares a beginning with a text that is kept as it is."""
    model._decoder.forget()
    model.hold_texts(2**30)
    streams, texts = Streams(model._decoder, 2), model._decoder.texts
    list(model.stream(messages(LONG), PARAMS[0], snapshot_at=[600]))
    live = model._decoder.live
    seat, lane = wants(streams, model, "word " * 800, PARAMS[0], 0)
    assert live.usable(seat.asked.prompt) == 600
    needed = lane + streams._nbytes(seat.rows)
    streams._memory = needed + live.nbytes
    assert streams._fits(seat, reads=model._decoder)
    assert model._decoder.rows == live.rows
    streams._memory -= 1
    assert streams._fits(seat, reads=model._decoder)
    assert (model._decoder.rows, list(texts)) == (0, [])
    streams._memory = needed - 1
    assert not streams._fits(seat, reads=model._decoder)
    streams.close()


def test_texts_that_are_there_already_are_not_taken_for_weights(model, monkeypatch):
    monkeypatch.setattr("mlxmtp.engine.streams.memory_limit", lambda: 2**36)
    model._decoder.forget()
    model.hold_texts(2**30)
    before = Streams(model._decoder, 2)._memory
    for question in (LONG, "other " * 1500):
        list(model.stream(messages(question), PARAMS[0]))
    there = sum(text.nbytes for text in (model._decoder.live, *model._decoder.texts))
    assert abs(Streams(model._decoder, 2)._memory - before) < there / 4


def test_a_conversation_in_lanes_is_held_once(model):
    model._decoder.forget()
    model.hold_texts(2**30)
    streams, heard = Streams(model._decoder, 2), Heard()
    talks = [messages("word " * 300), messages("other " * 300)]
    for turn in range(3):
        for tag, talk in enumerate(talks):
            streams.begin(partial(model._stream_at, talk, PARAMS[0]), (turn, tag))
        while streams.running:
            heard.take(streams.step())
        for tag, talk in enumerate(talks):
            end = heard.ends[turn, tag]
            assert isinstance(end, End)
            assert turn == 0 or end.stats.reused_tokens > 300
            talk += [{"role": "assistant", "content": heard.said[turn, tag]}, {"role": "user", "content": "So?"}]
    streams.close()
    held = list(model._decoder.texts)
    assert len(held) == 2
    assert all(list(text.snapshots) for text in held)


def test_answers_wait_for_memory_and_not_for_ever(model):
    """Beside a text that runs another comes only if there is memory for both; a lone one always runs."""
    wanted = {i: alone(model, *pair) for i, pair in enumerate(list(zip(QUESTIONS, PARAMS, strict=True))[:3])}
    streams, heard, most = Streams(model._decoder, 4), Heard(), 0
    streams._memory = 1.0
    for i, pair in enumerate(list(zip(QUESTIONS, PARAMS, strict=True))[:3]):
        begin(streams, model, *pair, i)
    while streams.running:
        heard.take(streams.step())
        most = max(most, len(streams._seats))
    streams.close()
    assert heard.said == wanted
    assert (most, streams.most) == (0, 1)  # one after another, in rounds of its own


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lengths of the texts that have joined a lane; all that there is then stays within the memory."""
    lengths: list[int] = []

    def join(lane: Lane, stream: Stream, text: KVCache, *about: Any, real: Any = Lane.join, **options: Any) -> None:
        real(lane, stream, text, *about, **options)
        lengths.append(len(stream.tokens))
        [streams] = [one for one in gc.get_objects() if isinstance(one, Streams) and lane in one._lanes]
        decoders = [streams.decoder, *([] if streams.beside is None else [streams.beside])]
        given_up = 0 if any(one.live.cache is text for one in decoders) else sum(one.nbytes for one in text.buffers)
        assert used(streams) + given_up <= streams._memory

    monkeypatch.setattr(Lane, "join", join)
    return lengths


@pytest.mark.parametrize("share", [1.0, 1.5, 4.0])
@pytest.mark.parametrize("constrained", [False, True])
def test_a_long_text_is_not_doubled_where_there_is_no_memory_for_it(model, joined, share, constrained):
    other = LONG_FORM if constrained else PARAMS[1]
    wanted = [alone(model, LONG, LASTING), alone(model, QUESTIONS[1], other)]
    model._decoder.begin_anew()
    streams, heard = Streams(model._decoder, 2), Heard()
    begin(streams, model, LONG, LASTING, 0)
    for _ in range(3):
        heard.take(streams.step())
    streams._memory = share * used(streams)
    begin(streams, model, QUESTIONS[1], other, 1)
    while streams.running:
        heard.take(streams.step())
        assert used(streams) <= streams._memory
    streams.close()
    assert [heard.said[0], heard.said[1]] == wanted
    assert any(length > 1500 for length in joined) == (share == 4.0)


@pytest.mark.parametrize("share", [1.2, 4.0])
def test_a_prompt_that_began_alone_is_read_once_and_goes_on_alone_if_it_would_not_fit_twice(model, joined, share):
    wanted = alone(model, LONG, LASTING)
    list(model.stream(messages(LONG), LASTING))
    size = model._decoder.live.nbytes
    model._decoder.begin_anew()
    streams, heard = Streams(model._decoder, 2), Heard()
    streams._memory = share * size
    read: list[int] = []

    def come(done: int, total: int) -> None:
        if not read:
            begin(streams, model, QUESTIONS[1], PARAMS[1], 1)
        read.append(done)

    begin(streams, model, LONG, LASTING, 0, on_prefill=come)
    while streams.running:
        heard.take(streams.step())
        assert used(streams) <= streams._memory
    streams.close()
    assert [heard.said[0], heard.said[1]] == [wanted, alone(model, QUESTIONS[1], PARAMS[1])]
    assert read == sorted(read)
    assert any(length > 1500 for length in joined) == (share == 4.0)


@pytest.mark.parametrize("holds", [False, True])
def test_the_text_of_an_idle_decoder_gives_way(model, holds):
    if holds:
        model.hold_texts(2**30)
    streams, heard = Streams(model._decoder, 3), Heard()
    begin(streams, model, QUESTIONS[1], LONG_FORM, 0)
    begin(streams, model, LONG, Params(max_tokens=99, temp=0.0, stop=()), 1)
    while not streams._seats:
        heard.take(streams.step())
    begin(streams, model, LONG + "And?", Params(max_tokens=3, temp=0.0, constraint=DIGITS), 2)
    while streams.running:
        heard.take(streams.step())
    assert streams.beside is not None
    streams._memory, streams.most = used(streams), 0
    for tag in (3, 4):
        begin(streams, model, QUESTIONS[tag], LASTING, tag)
    while streams.running:
        heard.take(streams.step())
    streams.close()
    assert streams.most == 2
    assert all(isinstance(end, End) for end in heard.ends.values())


def test_held_texts_give_way_to_a_lane_that_grows(model, monkeypatch):
    monkeypatch.setattr("mlxmtp.decode.lane.AHEAD", 8)
    model.hold_texts(2**30)
    list(model.stream(messages(LONG), PARAMS[0]))
    list(model.stream(messages("other " * 1500), PARAMS[0]))
    texts, streams, heard = model._decoder.texts, Streams(model._decoder, 2), Heard()
    assert len(list(texts)) == 1
    begin(streams, model, "word " * 200, Params(max_tokens=300, temp=0.0, stop=()), 0)
    begin(streams, model, QUESTIONS[1], Params(max_tokens=300, temp=0.0, stop=()), 1)
    while len(streams._seats) < 2:
        heard.take(streams.step())
    held = sum(text.nbytes for text in texts)
    streams._memory = used(streams) + held
    while streams.running:
        heard.take(streams.step())
        if streams._seats:
            assert used(streams) + sum(text.nbytes for text in texts) <= streams._memory
    streams.close()


def test_what_was_read_beside_a_lone_answer_is_found_and_is_held_at_the_end(model, monkeypatch):
    known: list[Any] = []
    monkeypatch.setattr(DraftLength, "learned", lambda _: {"kinds": []})
    monkeypatch.setattr(DraftLength, "start_from", lambda _, learned: known.append(learned))
    model._decoder.begin_anew()
    model.hold_texts(2**30)
    streams, heard = Streams(model._decoder, 3), Heard()
    monkeypatch.setattr(model, "_streams", streams)
    begin(streams, model, QUESTIONS[1], LONG_FORM, 0)
    begin(streams, model, "word " * 300, Params(max_tokens=1, temp=0.0), 1)
    while 1 not in heard.ends:
        heard.take(streams.step())
    prompt = model.tokenizer.prompt_ids(messages("word " * 300))
    assert model.reusable(prompt) > 256
    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(streams, "busy", lambda alone: [streams.beside] * alone)
        assert model.reusable(prompt) < 256, "nothing can go on from a text that is being decoded"
    first = streams.decoder.live.tokens
    assert first
    assert streams.running, "the first is being decoded, and gives its text to no other"
    assert model.reusable([*first, 5]) < len(first)
    streams.close()
    assert model.reusable(prompt) > 256
    assert known == [{"kinds": []}], "it began with what the other decoder has learned"
