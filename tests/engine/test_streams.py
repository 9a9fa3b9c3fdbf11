"""Answers side by side equal answers alone, whenever they come, go or share the model with one that cannot share."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest

import mlxmtp
from mlxmtp.decode.lane import Lane, Stream
from mlxmtp.decode.texts import HeldText
from mlxmtp.engine.constraint import Constraint
from mlxmtp.engine.events import End, Event, Text, Thinking
from mlxmtp.engine.model import Model
from mlxmtp.engine.params import Params
from mlxmtp.engine.pieces import Pace
from mlxmtp.engine.streams import Running, Streams
from mlxmtp.engine.tokenizer import Message
from mlxmtp.errors import ContextOverflow, DeviceFailed

DIGITS = Constraint("regex", "[0-9]{3}")
LONG_FORM = Params(max_tokens=60, temp=0.0, constraint=Constraint("regex", "[0-9]{60}"))
QUESTIONS = [
    "What is a drafter?",
    "Hello!",
    "How do I install a model?",
    "What does mlxmtp bench measure? " * 12,
    "Who are you?",
    "Explain speculative decoding.",
]
PARAMS = [
    Params(max_tokens=24, temp=0.0),
    Params(max_tokens=30, seed=3),
    Params(max_tokens=20, temp=1.2, top_k=0, top_p=1.0, min_p=0.05, seed=4),
    Params(max_tokens=28, temp=0.0, num_draft_tokens=0),
    Params(max_tokens=24, seed=5, stop_strings=("a",)),
    Params(max_tokens=1, temp=0.0),
]


def uncompiled() -> Iterator[Model]:
    """The built-in model, until it is asked for again."""
    opened = mlxmtp.load("pocket")
    opened._decoder.compiled = "never"
    opened._decoder._rounds._mode = "never"
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def model() -> Any:
    yield from uncompiled()


@pytest.fixture(autouse=True)
def holds_no_texts(model: Model) -> Iterator[None]:
    yield
    model._decoder.texts = None


def messages(question: str) -> list[Message]:
    return [{"role": "user", "content": question}]


class Heard:
    """What came of answers, by tag."""

    def __init__(self) -> None:
        self.said: dict[Any, str] = {}
        self.ends: dict[Any, End | Exception] = {}

    def take(self, found: list[tuple[Running, Event | Exception]]) -> None:
        for running, event in found:
            if isinstance(event, Text | Thinking):
                self.said[running.tag] = self.said.get(running.tag, "") + event.text
            elif isinstance(event, End | Exception):
                self.ends[running.tag] = event


alone_texts: dict[tuple[str, Params], str] = {}


def alone(model: Model, question: str, params: Params) -> str:
    if (question, params) not in alone_texts:
        model._decoder.forget()
        events = model.stream(messages(question), params)
        alone_texts[question, params] = "".join(e.text for e in events if isinstance(e, Text | Thinking))
    return alone_texts[question, params]


def begin(streams: Streams, model: Model, question: str, params: Params, tag: Any, **options: Any) -> Running:
    return streams.begin(lambda seat: model.seated(seat).stream(messages(question), params, **options), tag)


@cache
def _pairs() -> list[tuple[str, Params]]:
    return list(zip(QUESTIONS, PARAMS, strict=True))


@pytest.mark.few(2)
@pytest.mark.parametrize("parallel", [1, 3, 8])
def test_every_answer_is_the_one_it_would_be_alone(model, parallel):
    wanted = {i: alone(model, *pair) for i, pair in enumerate(_pairs())}
    streams, heard = Streams(model._decoder, parallel), Heard()
    for i, (question, params) in enumerate(_pairs()):
        begin(streams, model, question, params, i)
    while streams.running:
        heard.take(streams.step())
    streams.close()
    assert heard.said == {i: text for i, text in wanted.items() if text}
    assert all(isinstance(end, End) and end.stats.generation_tokens for end in heard.ends.values())
    assert set(heard.ends) == set(wanted)


@pytest.mark.parametrize("params", [Params(max_tokens=7, temp=0.0), Params(max_tokens=90, temp=0.0)])
def test_another_may_begin_after_any_step_of_the_only_one(model, params):
    """Also when its last token has come and nobody has heard of its end yet."""
    wanted, steps, ended = alone(model, "Hello!", params), 0, False
    while not ended:
        steps += 1
        streams, heard = Streams(model._decoder, 2), Heard()
        model._decoder.forget()
        begin(streams, model, "Hello!", params, 0)
        for _ in range(steps):
            heard.take(streams.step())
        ended = 0 in heard.ends
        begin(streams, model, "Who are you?", Params(max_tokens=3, temp=0.0), 1)
        while streams.running:
            heard.take(streams.step())
        streams.close()
        assert heard.said[0] == wanted, steps
        assert isinstance(heard.ends[1], End)
    assert steps > 1


def test_one_after_another_joins_and_some_are_cancelled(model):
    streams, heard = Streams(model._decoder, 4), Heard()
    running = []
    for i, pair in enumerate(_pairs()):
        running.append(begin(streams, model, *pair, i))
        for _ in range(2):
            heard.take(streams.step())
        if i in (1, 3):
            streams.cancel(running[i])
    while streams.running:
        heard.take(streams.step())
    streams.close()
    for i, pair in enumerate(_pairs()):
        whole = alone(model, *pair)
        assert whole.startswith(heard.said.get(i, ""))
        if i not in (1, 3):
            assert heard.said.get(i, "") == whole


def test_an_answer_in_a_form_runs_beside_the_others(model):
    form = Params(max_tokens=12, temp=0.0, constraint=DIGITS)
    pairs = [(QUESTIONS[0], PARAMS[0]), (QUESTIONS[1], form), (QUESTIONS[2], PARAMS[1]), (QUESTIONS[4], form)]
    wanted = {i: alone(model, *pair) for i, pair in enumerate(pairs)}
    streams, heard = Streams(model._decoder, 3), Heard()
    for i, pair in enumerate(pairs):
        begin(streams, model, *pair, i)
    while streams.running:
        heard.take(streams.step())
    streams.close()
    assert heard.said == wanted


def test_a_thought_over_its_budget_goes_on_in_the_lane(model):
    think = Params(max_tokens=40, temp=0.0, think=True, think_tokens=3)
    wanted = alone(model, QUESTIONS[0], think)
    streams, heard = Streams(model._decoder, 2), Heard()
    begin(streams, model, QUESTIONS[0], think, 0)
    begin(streams, model, QUESTIONS[2], PARAMS[0], 1)
    while streams.running:
        heard.take(streams.step())
    streams.close()
    assert heard.said[0] == wanted


def test_what_came_before_a_thought_was_over_its_budget_is_not_read_again(model):
    think, heard = Params(max_tokens=40, temp=0.0, think=True, think_tokens=3), Heard()
    wanted = {question: alone(model, question, think) for question in ("word " * 300, "other " * 300)}
    streams = Streams(model._decoder, 2)
    running = [begin(streams, model, question, think, question) for question in wanted]
    while streams.running:
        heard.take(streams.step())
    streams.close()
    assert heard.said == wanted
    assert all(one.seat.reused > 300 for one in running)


def test_no_memory_for_a_thought_that_goes_on_ends_its_answer_as_the_devices_failure(model, monkeypatch):
    think, heard = Params(max_tokens=40, temp=0.0, think=True, think_tokens=3), Heard()
    wanted = alone(model, QUESTIONS[2], PARAMS[0])
    streams = Streams(model._decoder, 2)
    begin(streams, model, "word " * 300, think, 0)
    begin(streams, model, QUESTIONS[2], PARAMS[0], 1)

    def fill(*_: object) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(HeldText, "of", fill)
    while streams.running:
        heard.take(streams.step())
    streams.close()
    assert isinstance(heard.ends[0], DeviceFailed)
    assert heard.said[1] == wanted


@pytest.mark.parametrize("form", [None, DIGITS])
def test_an_answer_that_has_begun_goes_on_before_others_begin(model, form):
    """A thought that has reached its budget asks for rounds again: none but those that run come before it."""
    parallel = 1 if form is None else 2
    think = Params(max_tokens=12, temp=0.0, think=True, think_tokens=3, top_logprobs=0)
    other = Params(max_tokens=20, temp=0.0, constraint=form)
    wanted = alone(model, QUESTIONS[0], think)
    streams, heard = Streams(model._decoder, parallel), Heard()
    begin(streams, model, QUESTIONS[0], think, 0)
    begin(streams, model, QUESTIONS[1], other, 1)
    while 0 not in heard.ends:
        heard.take(streams.step())
        assert 0 in heard.ends or 1 not in heard.said
    streams.close()
    assert heard.said[0] == wanted


def test_what_the_device_cannot_compute_ends_the_lane_and_not_the_rest(model, monkeypatch):
    streams, heard = Streams(model._decoder, 2), Heard()
    endless = Params(max_tokens=200, temp=0.0, stop=())
    begin(streams, model, QUESTIONS[0], endless, 0)
    begin(streams, model, QUESTIONS[1], endless, 1)
    begin(streams, model, *_pairs()[2], 2)
    while len(streams._seats) < 2:
        heard.take(streams.step())

    def fail(*_: object) -> object:
        raise RuntimeError("no memory")

    lane = streams._lanes[0]
    with monkeypatch.context() as patch:
        patch.setattr(lane, "_dispatch", fail)
        heard.take(streams.step())
    assert sorted(heard.ends) == [0, 1]
    assert all(isinstance(error, DeviceFailed) for error in heard.ends.values())
    while streams.running:
        heard.take(streams.step())
    streams.close()
    assert heard.said[2] == alone(model, *_pairs()[2])


def test_a_lane_that_fails_as_one_leaves_ends_the_others(model, monkeypatch):
    """To keep a text its keys and values are copied, which may be too much for the memory."""
    streams, heard = Streams(model._decoder, 3), Heard()
    short, endless = Params(max_tokens=6, temp=0.0), Params(max_tokens=200, temp=0.0, stop=())
    for tag, params in enumerate((short, endless, endless)):
        begin(streams, model, QUESTIONS[tag], params, tag)

    def leave(lane: Lane, stream: Stream, **_: object) -> None:
        with lane._computing():
            raise RuntimeError("no memory")

    monkeypatch.setattr(Lane, "leave", leave)
    for _ in range(100):
        if not streams.running:
            break
        heard.take(streams.step())
    streams.close()
    assert isinstance(heard.ends.pop(0), End)
    assert [type(error) for error in heard.ends.values()] == [DeviceFailed, DeviceFailed]


@pytest.mark.parametrize("form", [None, DIGITS])
def test_every_other_answer_has_a_round_between_two_pieces_of_a_long_prompt(model, monkeypatch, form):
    """Counted, not timed: `scripts/benchmarks/joining.py` times it."""
    params = Params(max_tokens=4, temp=0.0, constraint=form)
    wanted = alone(model, "word " * 500, params)
    model._decoder.forget()
    streams, heard = Streams(model._decoder, 4), Heard()
    endless = Params(max_tokens=2000, temp=0.0, stop=())
    others = [begin(streams, model, question, endless, question) for question in QUESTIONS[:3]]
    while len(streams._seats) < 3:
        heard.take(streams.step())
    monkeypatch.setattr("mlxmtp.engine.pieces._LONGEST", 96)
    long = begin(streams, model, "word " * 500, params, "long")
    reads, rows = [], 0
    while "long" not in heard.ends:
        before, had = streams._done, len_of(others)
        heard.take(streams.step())
        rows += streams._done - before
        if all(now > then for now, then in zip(len_of(others), had, strict=True)):
            reads.append(rows)
            rows = 0
    streams.close()
    assert len([rows for rows in reads if rows]) > 3
    assert max(reads) <= 2 * 96, "the others are not kept waiting for long"
    assert heard.said["long"] == wanted
    assert long.answer.stats.reused_tokens < 32, "what was read for it in pieces is nothing that was there before"


def test_a_prompt_in_a_form_that_began_alone_is_read_in_pieces_when_others_come(model):
    form, endless = Params(max_tokens=4, temp=0.0, constraint=DIGITS), Params(max_tokens=40, temp=0.0, stop=())
    wanted = alone(model, "word " * 500, form), alone(model, QUESTIONS[0], endless)
    model._decoder.forget()
    streams, heard = Streams(model._decoder, 2), Heard()

    def on_prefill(done: int, total: int) -> None:
        if done >= total // 2 and len(streams.running) == 1:
            begin(streams, model, QUESTIONS[0], endless, 1)

    first = begin(streams, model, "word " * 500, form, 0, on_prefill=on_prefill)
    heard.take(streams.step())
    assert streams._solo is None
    while streams.running:
        heard.take(streams.step())
    streams.close()
    assert heard.said == dict(enumerate(wanted))
    assert first.answer.stats.reused_tokens == 0


def test_how_fast_a_prompt_is_read_beside_a_lone_answer_in_a_form_follows_its_rounds(model, monkeypatch):
    streams, known = Streams(model._decoder, 2), []
    monkeypatch.setattr(Pace, "observe", lambda _, seconds, rows, rounds: known.append(rounds) if rows else None)
    begin(streams, model, QUESTIONS[0], LONG_FORM, 0)
    for _ in range(4):
        streams.step()
    begin(streams, model, "word " * 100, PARAMS[0], 1)
    for _ in range(3):
        streams.step()
    streams.close()
    assert [rounds > 0 for rounds in known] == [True] * 3


def test_the_text_of_a_form_is_found_again_wherever_it_was_decoded(model):
    """With the decoder there come its statistics."""
    form = Params(max_tokens=3, temp=0.0, constraint=DIGITS)
    wanted, streams, heard = alone(model, "word " * 300, form), Streams(model._decoder, 3), Heard()
    model._decoder.forget()
    begin(streams, model, QUESTIONS[1], LONG_FORM, 0)
    begin(streams, model, "word " * 300, Params(max_tokens=99, temp=0.0, stop=()), 1)
    while not streams._seats:
        streams.step()
    second = begin(streams, model, "word " * 300, form, 2)
    while 2 not in heard.ends:
        heard.take(streams.step())
    assert heard.said[2] == wanted
    assert streams.beside is not None
    assert second.seat.depth is streams.beside.depth
    assert second.answer.stats.reused_tokens > 256
    streams.close()


def test_a_lane_has_slots_for_those_that_may_share_it(model):
    streams = Streams(model._decoder, 4)
    for tag in range(3):
        begin(streams, model, QUESTIONS[tag], LONG_FORM, tag)
    begin(streams, model, QUESTIONS[4], PARAMS[0], 3)
    while not streams._seats:
        streams.step()
    assert len(streams._lanes[0]._streams) == 1
    streams.close()


def test_answers_that_are_asked_for_together_begin_together(model, monkeypatch):
    """Rounds with empty slots would cost as much as full ones."""
    streams, heard = Streams(model._decoder, 4), Heard()
    params = Params(max_tokens=12, temp=0.0, num_draft_tokens=0, stop=())
    lane, texts = streams._lanes[0], []
    step = lane.step

    def counted() -> Any:
        texts.append(len(lane.streams))
        return step()

    monkeypatch.setattr(lane, "step", counted)
    for i, question in enumerate(("Hello!", "Who are you?", "What is MTP?", "What is a drafter?")):
        begin(streams, model, question, params, i)
    while streams.running:
        heard.take(streams.step())
    streams.close()
    assert texts == [4] * 11


def len_of(answers: list[Running]) -> list[int]:
    return [len(running.answer.tokens) for running in answers]


def test_a_text_from_disk_changes_nothing_of_one_that_is_being_read(model, tmp_path, monkeypatch):
    monkeypatch.setattr("mlxmtp.engine.pieces._LONGEST", 64)  # rows of a piece
    path, long = tmp_path / "kept.safetensors", "word " * 400
    other = model.tokenizer.prompt_ids(messages("other words " * 200))
    model._decoder.forget()
    list(model.stream_ids(other, Params(max_tokens=1, temp=0.0)))
    model.save_cache(path)
    wanted, short = alone(model, long, PARAMS[0]), alone(model, QUESTIONS[0], PARAMS[0])
    model._decoder.forget()
    model.hold_texts(2**30)
    streams, heard = Streams(model._decoder, 2), Heard()
    begin(streams, model, QUESTIONS[0], PARAMS[0], "short")
    begin(streams, model, long, PARAMS[0], "long")
    while streams._reading is None or streams._reading.decoder.rows < 64:
        heard.take(streams.step())
        assert streams.running
    model.load_cache(path)
    assert model.reusable(other) > 300, "it is held for those who ask for it"
    while streams.running:
        heard.take(streams.step())
    streams.close()
    assert heard.said == {"short": short, "long": wanted}


def test_stream_many_answers_all_and_raises_what_one_of_them_raises(model):
    wanted = [alone(model, question, PARAMS[0]) for question in QUESTIONS[:3]]
    said = ["", "", ""]
    for index, event in model.stream_many(map(messages, QUESTIONS[:3]), PARAMS[0], parallel=2):
        if isinstance(event, Text):
            said[index] += event.text
    assert said == wanted
    too_long = [messages(QUESTIONS[0]), messages("word " * 40_000)]
    with pytest.raises(ContextOverflow):
        list(model.stream_many(too_long, PARAMS[0]))
    assert alone(model, QUESTIONS[1], PARAMS[0]), "the model goes on"


def test_what_rounds_of_several_taught_is_known_at_the_next_start(model):
    streams = model.streams(2)
    for i, question in enumerate(QUESTIONS[:2]):
        begin(streams, model, question, Params(max_tokens=40, temp=0.0, stop=()), i)
    while streams.running:
        streams.step()
    streams.close()
    model.streams(2)  # in which nothing is timed
    learned = json.loads(json.dumps(model.learned()))
    assert set(learned["together"]) == {"2"}
    model.start_from(learned)
    known, taught = model.streams(2)._lanes[0]._depth(2), learned["together"]["2"]
    assert [[kind.texts, list(kind.shares)] for kind in known.acceptance()] == taught["kinds"]
    assert taught["costs"].keys() & {"1", "3"}, "what drafts cost was measured"
    bad = {"kinds": [[1, [2.0] * 8]], "costs": {}, "price": 1, "rows": 1}
    damages: list[Any] = [{"x": {}}, [], {"2": {"costs": 1}}, {"4": bad}]
    for damaged in damages:
        with pytest.raises(ValueError, match="learned"):
            model.start_from({"together": damaged})
