"""A request that comes while another is read or decoded: that one ends with an error, and nothing is mixed up."""

from __future__ import annotations

import gc
import weakref
from contextlib import suppress
from functools import partial
from typing import Any

import pytest

from mlxmtp.decode.decoder import Decoder
from mlxmtp.engine.events import Text
from mlxmtp.engine.model import Model
from mlxmtp.engine.params import Params
from mlxmtp.engine.streams import Streams
from mlxmtp.engine.tokenizer import Message
from tests.engine.test_streams import QUESTIONS, Heard, alone, begin, messages, uncompiled
from tests.golden import load_golden
from tests.networks import decode, target

SHORT = Params(max_tokens=24, temp=0.0)
LONG = "What does the bench measure? " * 40
ANOTHER = "another request has begun"


@pytest.fixture(scope="module")
def model() -> Any:
    yield from uncompiled()


def system(text: str) -> list[Message]:
    return [{"role": "system", "content": "Answer in one sentence. " * 10}, {"role": "user", "content": text}]


def test_a_question_within_stream_many_ends_the_reading_and_leaves_no_wrong_rows(model: Model) -> None:
    wanted = ["".join(e.text for e in model.stream(system(q), SHORT) if isinstance(e, Text)) for q in QUESTIONS]
    model._decoder.begin_anew()
    heard, asked = list[int](), False
    with pytest.raises(RuntimeError, match=ANOTHER):  # noqa: PT012  (wherever it is met)
        for index, _ in model.stream_many([messages("Hello!"), system(LONG)], SHORT, parallel=2):
            heard.append(index)
            if not asked and model._streams is not None and model._streams._done > 0:  # a piece has been read
                asked = bool(list(model.stream(messages(QUESTIONS[4] * 9), SHORT)))
    assert asked
    assert set(heard) == {0}
    after = ["".join(e.text for e in model.stream(system(q), SHORT) if isinstance(e, Text)) for q in QUESTIONS]
    assert after == wanted


@pytest.mark.parametrize("pause", [1, 2, 3])
def test_reading_in_pieces_ends_where_another_request_came(pause: int) -> None:
    """The last pause comes before what is left to do once everything has been read."""
    decoder, prompts = Decoder(target("e2b"), compiled="never", chunk=20), load_golden("e2b").records
    long, short = (prompts["long"].prompt * 2)[:60], prompts["short"].prompt
    reading = decoder.read(long, sampling=Params().sampling({}, 0), snapshot_at=[60])
    assert [next(reading) for _ in range(pause)] == [20, 40, 60][:pause]
    said = decode(decoder, short, 4)
    with pytest.raises(RuntimeError, match=ANOTHER):
        next(reading)
    assert (decoder.tokens, decoder.rows) == ([*short, *said], len(short) + 3)
    fresh = Decoder(target("e2b"), compiled="never", chunk=20)
    assert decode(decoder, long, 4) == decode(fresh, long, 4)


def test_a_request_within_the_telling_of_another_ends_that_one() -> None:
    decoder, prompts = Decoder(target("e2b"), compiled="never", chunk=20), load_golden("e2b").records
    long, short = (prompts["long"].prompt * 2)[:60], prompts["short"].prompt
    said: list[int] = []

    def ask(done: int, _: int) -> None:
        if done == 20 and not said:
            said.extend(decode(decoder, short, 4))

    with pytest.raises(RuntimeError, match=ANOTHER):
        decode(decoder, long, 4, on_prefill=ask)
    assert decoder.tokens == [*short, *said]


def test_an_only_answer_that_others_join_goes_on_from_its_own_text(model: Model) -> None:
    """Not from that of a question which came between."""
    lasting = Params(max_tokens=40, temp=0.0, stop=())
    wanted = alone(model, QUESTIONS[0], lasting)
    streams, heard = Streams(model._decoder, 2), Heard()
    begin(streams, model, QUESTIONS[0], lasting, 0)
    while not heard.said.get(0):
        heard.take(streams.step())
    list(model.stream(messages(QUESTIONS[4]), SHORT))
    begin(streams, model, QUESTIONS[1], lasting, 1)
    while streams.running:
        heard.take(streams.step())
    streams.close()
    assert heard.said[0] == wanted


class Closed(RuntimeError):
    """What an event loop raises that is closed."""


@pytest.mark.parametrize("error", [Closed("Event loop is closed"), RecursionError(), KeyError("no MLX here")])
@pytest.mark.parametrize("pieces", [False, True])
def test_what_on_prefill_raises_is_no_failure_of_the_device(error: Exception, pieces: bool) -> None:
    decoder, prompt = Decoder(target("e2b"), compiled="never", chunk=20), load_golden("e2b").records["long"].prompt
    decoder.hold_texts(2**30)
    held = (prompt * 9)[:300][::-1]
    decode(decoder, held, 4)

    def tell(done: int, _: int) -> None:
        if done >= 20:
            raise error

    rounds: Any = (
        partial(decoder.read, sampling=Params().sampling({}, 0)) if pieces else partial(decoder.rounds, max_tokens=4)
    )
    with pytest.raises(type(error)) as caught:
        list(rounds(prompt, on_prefill=tell))
    assert caught.value is error
    decode(decoder, held, 4)
    assert decoder.reused > 250, "texts that are held stay"
    assert decode(decoder, prompt, 4) == decode(Decoder(target("e2b"), compiled="never", chunk=20), prompt, 4)


class _Held:
    """Something that a callback has."""


@pytest.mark.parametrize("error", [KeyError, OSError])
def test_a_reading_that_a_callback_ends_leaves_nothing_of_its_chunk_behind(error: type[Exception]) -> None:
    """A second reference to keys and values would have MLX copy them."""
    decoder, prompt = Decoder(target("e2b"), compiled="never", chunk=20), load_golden("e2b").records["long"].prompt
    held: list[weakref.ref[_Held]] = []

    def end(*_: int) -> None:
        mine = _Held()
        held.append(weakref.ref(mine))
        raise error("enough")

    gc.disable()
    try:
        with suppress(error):
            list(decoder.rounds(prompt, max_tokens=4, on_prefill=end))
        assert [one() for one in held] == [None]
    finally:
        gc.enable()
