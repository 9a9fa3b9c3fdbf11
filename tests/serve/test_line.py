"""The line before the model: waiting, loading, going away, failing, signs of life."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from mlxmtp.app.open import OpenModel
from mlxmtp.app.prompt_cache import PromptCache
from mlxmtp.decode.round import Round
from mlxmtp.engine.answer import OnPrefill
from mlxmtp.engine.events import End
from mlxmtp.engine.events import Event as Said
from mlxmtp.engine.kv_file import unfinished
from mlxmtp.engine.model import Model
from mlxmtp.engine.streams import Running as Beside
from mlxmtp.errors import LoadError
from mlxmtp.serve.models import Models, Served
from mlxmtp.serve.routes import Limits
from mlxmtp.serve.scheduler import Job, Scheduler
from mlxmtp.serve.server import Options, Server, options_of
from mlxmtp.settings import load_settings
from tests.serve.running import Json, Running, call, running, wait_until

CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"
BODY: Json = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4000}


def send(server: Running, path: str, body: Json) -> socket.socket:
    """A request on a socket that stays open."""
    data = json.dumps(body).encode()
    peer = socket.create_connection(("127.0.0.1", server.port))
    peer.settimeout(20)
    peer.sendall(f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)
    return peer


def until(peer: socket.socket, mark: bytes) -> bytes:
    got = b""
    while mark not in got:
        part = peer.recv(65536)
        assert part, got
        got += part
    return got


SIGNS = {
    CHAT: b": still working\n\n",
    MESSAGES: b'event: ping\ndata: {"type":"ping"}',
    RESPONSES: b'event: response.in_progress\ndata: {"type":"response.in_progress"',
}
"""What each protocol sends while there is nothing to say; Codex takes only events for a sign of life."""
LAST_CHUNK = b"\r\n0\r\n\r\n"


@pytest.mark.parametrize("path", SIGNS)
def test_a_stream_begins_before_the_model_is_there_and_shows_that_it_lives(tmp_path: Path, path: str) -> None:
    loads = Event()
    with running(tmp_path, Options(port=0, limits=Limits(heartbeat=0.05)), loads=loads) as server:
        assert server.get("/health")["status"] == "loading"
        server.say("x<turn|>")
        with send(server, path, {**BODY, "input": "Hi", "stream": True}) as peer:
            first = {CHAT: b'"role":"assistant"', MESSAGES: b"message_start"}.get(path, b"response.created")
            until(peer, first)
            for _ in range(3):  # the first event of this kind belongs to the beginning of a response
                until(peer, SIGNS[path])
            loads.set()
            until(peer, b'"x"')
        assert server.get("/health")["status"] == "ok"
        assert len(server.told) == 1


def test_signs_of_life_come_by_the_clock_while_a_prompt_is_read(tmp_path: Path) -> None:
    with running(tmp_path, Options(port=0, limits=Limits(heartbeat=0.1))) as server:
        seen = Event()

        def on_read(begin: Any) -> Any:
            def start(opened: OpenModel, on_prefill: OnPrefill) -> Any:
                while not seen.wait(0.01):  # chunks are read more often than signs come
                    on_prefill(1, 2)
                return begin(opened, on_prefill)

            return start

        submit = Scheduler.submit

        def submitted(self: Scheduler, job: Job) -> None:
            job.begin = on_read(job.begin)
            submit(self, job)

        server.say("x<turn|>")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Scheduler, "submit", submitted)
            with send(server, CHAT, {**BODY, "stream": True}) as peer:
                until(peer, b": still working\n\n")
                until(peer, b": still working\n\n")
                seen.set()
                until(peer, b"[DONE]")


def test_signs_of_life_are_numbered_among_the_events_of_a_response(tmp_path: Path) -> None:
    loads = Event()
    with running(tmp_path, Options(port=0, limits=Limits(heartbeat=0.05)), loads=loads) as server:
        server.say("x<turn|>")
        with send(server, RESPONSES, {"input": "Hi", "stream": True}) as peer:
            got = b"".join(until(peer, SIGNS[RESPONSES]) for _ in range(3))
            loads.set()
            got += until(peer, LAST_CHUNK)
    numbers = [int(one) for one in re.findall(rb'"sequence_number":(\d+)', got)]
    assert numbers == list(range(len(numbers)))
    assert b"event: response.completed" in got


def test_signs_of_life_while_a_call_is_written_come_after_the_text_before_it(tmp_path: Path) -> None:
    tool = {"type": "function", "name": "f", "parameters": {"type": "object", "properties": {}}}
    goes_on = Event()

    def before_round(number: int) -> None:
        if number == 2:  # the round before it ended the text and began the call
            goes_on.wait(60)

    with running(tmp_path, Options(port=0, limits=Limits(heartbeat=0.1))) as server:
        server.decoder.before_round = before_round
        server.say("ab" + call("f{}") + "<|tool_response>")
        with send(server, RESPONSES, {"input": "Hi", "tools": [tool], "stream": True}) as peer:
            got = until(peer, b'"delta":"a"')
            got += b"".join(until(peer, SIGNS[RESPONSES]) for _ in range(3))
            goes_on.set()
            got += until(peer, LAST_CHUNK)
    numbers = [int(one) for one in re.findall(rb'"sequence_number":(\d+)', got)]
    assert numbers == list(range(len(numbers)))


def test_signs_of_life_can_be_left_out() -> None:
    assert options_of(load_settings({"heartbeat": 0.0})).limits.heartbeat is None  # some read no comments


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", [CHAT, MESSAGES])
def test_who_goes_away_frees_the_model(tmp_path: Path, path: str, stream: bool) -> None:
    with running(tmp_path) as server:
        server.say("x" * 4000, "Next.<turn|>")
        rounds: list[int] = []

        def slowly(number: int) -> None:
            if len(server.decoder.requests) == 1:
                rounds.append(number)
                time.sleep(0.03)

        server.decoder.before_round = slowly
        peer = send(server, path, {**BODY, "stream": stream})
        wait_until(lambda: len(server.decoder.requests) == 1)
        if stream:
            until(peer, b"xxx")
        peer.close()
        assert server.post(CHAT, **BODY)["choices"][0]["message"]["content"] == "Next."
        assert b"mlxmtp_answers_total 2" in server.request("GET", "/metrics")[2]
        wait_until(lambda: server.decoder.closed == 2)
        assert rounds[-1] < 1000  # of 1334, which take 40 s
        assert server.decoder.answers == type(server.decoder.answers)()


def test_a_prompt_that_was_not_read_to_its_end_is_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = Event()

    def read_for_ever(ids: Sequence[int], *, on_prefill: OnPrefill, **more: Any) -> Iterator[Round]:
        while True:
            reads.set()
            on_prefill(1, 2)  # ends it when nobody waits any more
            time.sleep(0.01)
            yield from ()

    with running(tmp_path) as server:
        monkeypatch.setattr(server.decoder, "rounds", read_for_ever)
        with send(server, CHAT, BODY):
            assert reads.wait(60)
        wait_until(lambda: b"mlxmtp_answers_total 1\n" in server.request("GET", "/metrics")[2])
        numbers = server.request("GET", "/metrics")[2]
    assert b"mlxmtp_prompt_tokens_total 0\n" in numbers
    assert b"mlxmtp_time_to_first_token_seconds_count 0\n" in numbers


def test_a_half_closed_client_does_not_keep_the_model(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        server.say("Next.<turn|>", "Next.<turn|>")
        with send(server, CHAT, {**BODY, "stream": True}) as peer:
            peer.shutdown(socket.SHUT_WR)
        assert server.post(CHAT, **BODY)["choices"][0]["message"]["content"] == "Next."
        assert server.get("/health")["waiting"] == 0


def test_the_line_has_an_end_and_keeps_its_order(tmp_path: Path) -> None:
    goes_on = Event()
    with running(tmp_path, Options(port=0, waiting=2)) as server, ThreadPoolExecutor(4) as pool:
        server.decoder.before_round = lambda _: wait_until(goes_on.is_set)
        server.say(*(f"{number}.<turn|>" for number in range(3)))
        answers = []
        for number in range(3):
            answers.append(pool.submit(server.post, CHAT, **BODY))
            wait_until(lambda: server.decoder.requests != [])  # the first is running: others wait
            wait_until(lambda number=number: server.get("/health")["waiting"] == number)  # type: ignore[misc]
        status, headers, data = server.request("POST", CHAT, BODY)
        assert (status, headers["retry-after"]) == (503, "2")
        assert json.loads(data)["error"]["type"] == "overloaded_error"
        status, headers, data = server.request("POST", MESSAGES, BODY)
        assert (status, json.loads(data)["error"]["type"]) == (503, "overloaded_error")
        goes_on.set()
        said = [answer.result(20)["choices"][0]["message"]["content"] for answer in answers]
        assert said == ["0.", "1.", "2."]


class Side:
    """Answers side by side, a step of each at a time, whatever their decoder."""

    def __init__(self, *_: object) -> None:
        self.running: list[Beside] = []

    def begin(self, ask: Any, tag: Any) -> None:
        self.running.append(Beside(ask(None), None, tag))  # type: ignore[arg-type]

    def cancel(self, running: Beside) -> None:
        self.running.remove(running)
        running.answer.close()

    def close(self) -> None:
        assert not self.running

    def step(self) -> list[tuple[Beside, Said]]:
        came = [(one, next(one.answer)) for one in self.running]
        self.running = [one for one, event in came if not isinstance(event, End)]
        return came


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Model, "streams", Side)
    monkeypatch.setattr(Model, "seated", lambda model, _: model)


@pytest.mark.usefixtures("beside")
@pytest.mark.parametrize("parallel", [1, 2])
def test_without_a_line_there_is_an_answer_while_a_place_is_free(tmp_path: Path, parallel: int) -> None:
    goes_on = Event()
    options = Options(port=0, waiting=0, parallel=parallel)
    with running(tmp_path, options) as server, ThreadPoolExecutor(parallel) as pool:
        server.decoder.before_round = lambda _: wait_until(goes_on.is_set)
        server.say(*["Yes.<turn|>"] * (parallel + 1))
        answers = []
        for number in range(parallel):
            answers.append(pool.submit(server.post, CHAT, **BODY))
            wait_until(lambda number=number: in_work(server) == number + 1)  # type: ignore[misc]
        assert server.request("POST", CHAT, BODY)[0] == 503
        goes_on.set()
        assert [answer.result(60)["http"] for answer in answers] == [200] * parallel
        assert server.post(CHAT, **BODY)["choices"][0]["message"]["content"] == "Yes."


def in_work(server: Running) -> int:
    """Answers that have begun."""
    metrics = server.request("GET", "/metrics")[2].decode()
    return int(metrics.partition("\nmlxmtp_requests_running ")[2].split()[0])


class Store:
    """Texts on disk."""

    def __init__(self) -> None:
        self.kept = 0

    def extend(self, model: Model, ids: Sequence[int]) -> None:
        pass

    def keep(self, model: Model) -> None:
        self.kept += 1


@pytest.mark.usefixtures("beside")
@pytest.mark.parametrize("stops", [1, 2])
@pytest.mark.parametrize("parallel", [1, 4])
def test_an_answer_ends_with_the_server_and_texts_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], parallel: int, stops: int
) -> None:
    monkeypatch.setattr("mlxmtp.serve.server._PATIENCE", 0.3)
    store, rounds = Store(), list[int]()

    def slowly(number: int) -> None:
        rounds.append(number)
        time.sleep(0.01)

    with running(tmp_path, Options(port=0, parallel=parallel), cache=store) as server:
        server.decoder.before_round = slowly
        server.say("x" * 4000)
        with send(server, CHAT, {**BODY, "stream": True}) as peer:
            until(peer, b"xxx")
            for _ in range(stops - 1):
                server.server.stop()
            server.stop()
        assert rounds[-1] < 1000  # of 1334
        assert (server.decoder.closed, store.kept, server.decoder.let_go) == (1, 1, True)
        assert len(server.told) == 1  # that it serves
    assert capfd.readouterr().err == ""


def test_texts_that_take_long_to_be_written_can_be_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlxmtp.serve.server._SILENT", 0.01)
    keeps, goes_on = Event(), Event()

    class Slow(PromptCache):
        def keep(self, model: Model) -> None:
            self.folder.mkdir()
            (self.folder / "whole.safetensors").touch()
            unfinished(self.folder / "text.safetensors").touch()
            keeps.set()
            goes_on.wait(60)

    with running(tmp_path, cache=Slow(tmp_path / "prompts", 2**30)) as server:
        wait_until(lambda: len(server.told) == 1)  # that it serves
        server.server.stop()
        assert keeps.wait(60)
        wait_until(lambda: len(server.told) == 2)
        assert "Ctrl-C leaves them" in server.told[1]
        server.stop()
        assert "Not all conversations were written" in server.told[2]
        assert [path.name for path in (tmp_path / "prompts").iterdir()] == ["whole.safetensors"]
        goes_on.set()


def test_who_waits_and_goes_away_is_never_asked_for(tmp_path: Path) -> None:
    goes_on = Event()
    with running(tmp_path) as server:
        server.decoder.before_round = lambda _: wait_until(goes_on.is_set)
        server.say("One.<turn|>", "Two.<turn|>")
        with send(server, CHAT, BODY) as first:
            wait_until(lambda: len(server.decoder.requests) == 1)
            send(server, CHAT, BODY).close()
            second = send(server, MESSAGES, BODY)
            wait_until(lambda: server.get("/health")["waiting"] == 1)
            goes_on.set()
            assert b"One." in until(first, b"One.")
        assert b"Two." in until(second, b"Two.")
        second.close()
        assert len(server.decoder.requests) == 2


@pytest.mark.parametrize("path", [CHAT, MESSAGES, "/v1/responses", "/api/chat"])
def test_a_failure_after_the_first_byte_is_an_event_and_before_it_a_status(tmp_path: Path, path: str) -> None:
    def fails(_: int) -> None:
        raise RuntimeError("no kernel")

    with running(tmp_path) as server:
        server.decoder.before_round = fails
        server.say("One.<turn|>", "Two.<turn|>", "Three.<turn|>")
        body = {**BODY, "input": "Hi", "model": "fake"}
        status, _, data = server.request("POST", path, {**body, "stream": True})
        assert status == 200
        assert b"no kernel" in data
        assert b"error" in data
        assert b"[DONE]" not in data
        answer = server.post(path, **{**body, "stream": False})
        assert answer["http"] == 500
        assert "no kernel" in json.dumps(answer)
        server.decoder.before_round = lambda _: None
        assert server.post(CHAT, **BODY)["choices"][0]["message"]["content"] == "Three."
        told = "Unexpected RuntimeError: no kernel. This is a bug in mlxmtp; --debug shows where."
        assert server.told[1:] == [told, told]


def test_failures_are_told_with_their_places_if_that_is_wanted(tmp_path: Path) -> None:
    def fails(_: int) -> None:
        raise RuntimeError("no kernel")

    with running(tmp_path, replace(options_of(load_settings({"debug": True})), port=0, parallel=1)) as server:
        server.decoder.before_round = fails
        server.say("One.<turn|>")
        assert server.post(CHAT, **BODY)["http"] == 500
        assert "in fails" in server.told[1]


def test_a_model_that_cannot_be_read_ends_the_server(tmp_path: Path) -> None:
    def read() -> None:
        raise LoadError("The weights are damaged.")

    sides: Any = {"read": lambda _: read(), "read_tokenizer": lambda: None, "media": None}
    server = Server(Models(Served("fake", frozenset({"fake"}), 9, has_drafter=False, **sides)), Options(port=0), print)
    with pytest.raises(LoadError, match="damaged"):
        server.run({})


def test_numbers_for_prometheus(tmp_path: Path) -> None:
    def fails(_: int) -> None:
        raise RuntimeError("no kernel")

    with running(tmp_path) as server:
        server.say("One.<turn|>")
        server.post(CHAT, **BODY)
        server.post(CHAT, messages=5)
        server.decoder.before_round = fails
        server.say("Two.<turn|>")
        assert server.post(CHAT, **BODY)["http"] == 500
        _, headers, data = server.request("GET", "/metrics")
        assert headers["content-type"].startswith("text/plain; version=0.0.4")
        lines = data.decode().splitlines()
        values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        assert values['mlxmtp_requests_total{path="/v1/chat/completions",status="200"}'] == "1"
        assert values['mlxmtp_requests_total{path="/v1/chat/completions",status="400"}'] == "1"
        assert values['mlxmtp_requests_total{path="/v1/chat/completions",status="500"}'] == "1"
        assert (values["mlxmtp_answers_total"], values["mlxmtp_generated_tokens_total"]) == ("1", "5")
        for line in lines:
            if not line.startswith("#"):
                name = line.split("{")[0].split(" ")[0]
                base = name.removesuffix("_sum").removesuffix("_count")
                assert any(one.startswith(f"# TYPE {base} ") for one in lines)
