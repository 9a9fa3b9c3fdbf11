"""Answers of a server that sends faster than anybody reads, or numbers that are none."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from mlxmtp.app.remote import Chunks, Remote
from mlxmtp.app.remote_model import RemoteAnswer, ServedModel
from mlxmtp.engine.constraint import Constraint
from mlxmtp.engine.events import End, Text
from mlxmtp.engine.params import Params
from tests.app.faulty import DONE, STREAM, peer, said

HI = [{"role": "user", "content": "Hi"}]
MANY = 20_000


class Fast(Chunks):
    """Chunks that are all there at once; `given` is how many have been taken, by the thread `reader`."""

    def __init__(self) -> None:
        super().__init__(Remote("http://127.0.0.1:1"), {})
        self.given = 0
        self.reader = threading.current_thread()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self.reader = threading.current_thread()
        for _ in range(MANY):
            if self._closed:
                return
            self.given += 1
            yield {"choices": [{"delta": {"content": "x"}}]}


def test_a_server_is_read_only_a_little_ahead_and_left_at_once() -> None:
    chunks = Fast()
    answer = RemoteAnswer(chunks, None, Params())
    events = iter(answer)
    assert next(events) == Text("x")
    chunks.reader.join(1.0)  # who does not pause is through by then, if the machine is not very busy
    assert chunks.reader.is_alive()
    assert chunks.given < 1000
    for _ in range(2000):  # it goes on as it is read
        next(events)
    assert 2000 < chunks.given < 3000
    answer.leave()
    chunks.reader.join(60)
    assert not chunks.reader.is_alive()
    assert len([*events]) < 1000


def test_an_answer_that_is_closed_leaves_no_reader() -> None:
    chunks = Fast()
    answer = RemoteAnswer(chunks, None, Params())
    assert next(iter(answer)) == Text("x")
    answer.close()
    chunks.reader.join(60)
    assert not chunks.reader.is_alive()


def test_whoever_reads_slowly_gets_everything() -> None:
    chunks = Fast()
    *texts, end = RemoteAnswer(chunks, None, Params())
    assert len(texts) == MANY
    assert isinstance(end, End)


NUMBERS: dict[str, object] = {
    "400 digits": 10**400, "below zero": -(10**400), "far": 1e308, "a week of tokens": 10**15, "text": "7",
    "true": True, "null": None, "list": [1], "table": {"a": 1}, "-3": -3,
}  # fmt: skip


@pytest.mark.parametrize("number", NUMBERS.values(), ids=NUMBERS)
def test_a_number_that_is_none_counts_as_nothing(number: object) -> None:
    usage = {"prompt_tokens": number, "completion_tokens": number, "prompt_tokens_details": {"cached_tokens": number}}
    more = dict.fromkeys(("passes", "drafted", "accepted", "tokens_per_pass", "seed"), number)
    sent = [said("Hello"), said(" there"), said(reason="stop", usage=usage, mlxmtp=more), DONE]
    with peer([STREAM, *sent]) as server:
        *_, end = ServedModel(Remote(server.url), "m").stream(HI)
    assert isinstance(end, End)
    assert end.finish_reason == "stop"
    stats = end.stats
    assert (stats.prompt_tokens, stats.reused_tokens, stats.generation_tokens) == (0, 0, 2)
    assert (stats.rounds, stats.drafted, stats.accepted, stats.tokens_per_pass, stats.seed) == (0, 0, 0, 0, 0)


def test_a_call_that_the_limit_cut_ends_the_answer_as_any_text_would() -> None:
    half = {"index": 0, "id": "call_0", "function": {"name": "write", "arguments": '{"text": "Once'}}
    chunk = {"choices": [{"delta": {"tool_calls": [half]}, "finish_reason": None}]}
    with peer([STREAM, b"data: " + json.dumps(chunk).encode() + b"\n\n", said(reason="length"), DONE]) as server:
        answer = ServedModel(Remote(server.url), "m", ours=False).stream(
            HI, Params(constraint=Constraint("regex", "a"))
        )
        [end] = answer
    assert isinstance(end, End)
    assert (end.finish_reason, answer.complete) == ("length", False)
