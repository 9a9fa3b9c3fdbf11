"""The built-in model behind `serve`, in this process: answers side by side, and who goes away meanwhile."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import wait as all_of
from contextlib import contextmanager
from dataclasses import replace
from http.client import HTTPConnection
from pathlib import Path
from threading import Event, Thread
from typing import Any

import mlx.core as mx
import pytest

import mlxmtp
from mlxmtp.app.open import Opener
from mlxmtp.decode.prefill import read_in_chunks
from mlxmtp.engine.constraint import Constraint
from mlxmtp.engine.events import Text
from mlxmtp.engine.params import Params
from mlxmtp.hub.store import built_in
from mlxmtp.machine.chip import this_machine
from mlxmtp.serve.models import models_of
from mlxmtp.serve.scheduler import Job, Scheduler
from mlxmtp.serve.server import Options, Server
from mlxmtp.serve.service import Service
from mlxmtp.settings import Settings, load_settings
from tests.serve.running import wait_until

QUESTIONS = ["What is a drafter?", "Hello!", "word " * 300, "How do I stop?"]


@contextmanager
def serving(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, model: str = "pocket", parallel: int = 3
) -> Iterator[int]:
    monkeypatch.setattr("mlxmtp.decode.compile.Rounds.build", lambda *_: None)  # uncompiled, nothing is built
    opener = Opener(load_settings({}, {"MLXMTP_HOME": str(tmp_path), "HOME": str(tmp_path)}), tell=lambda _: None)
    told: list[str] = []
    server = Server(models_of(opener, Settings(model=model)), Options(port=0, parallel=parallel), told.append)
    thread = Thread(target=server.run, args=({},))
    thread.start()
    try:
        wait_until(lambda: bool(told))
        yield int(server.url.rpartition(":")[2].strip("/"))
    finally:
        server.stop()
        thread.join(20)


def test_a_model_is_one_whatever_it_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of one folder are one model, which is read once; a file that an alias names keeps nobody from starting."""
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    shutil.copytree(built_in("target"), tmp_path / "copy")
    names = {"mine": "pocket", "two": str(tmp_path / "copy"), "three": str(tmp_path / "copy")}
    toml = "\n".join(f'{name} = "{of}"' for name, of in {**names, "bad": str(tmp_path / "a.gguf")}.items())
    (tmp_path / "config.toml").write_text(f"[aliases]\n{toml}\n")
    loaded = load_settings({}, {"MLXMTP_HOME": str(tmp_path), "HOME": str(tmp_path)})
    opener = Opener(loaded, tell=lambda _: None)
    models = models_of(opener, Settings(model="pocket", draft_model=str(built_in("drafter"))))
    assert models.find("mine") is models.find("pocket") is models.find("") is models.first
    assert models.find("two") is models.find("three")
    assert [one.name for one in models.listed()] == ["pocket", "two"]
    assert models.first.has_drafter
    assert not models.find("two").has_drafter, "that of the first is its own"
    tuned = models_of(opener, Settings(model=str(tmp_path / "copy")))
    assert tuned.find("copy") is tuned.find("two") is tuned.first
    (tmp_path / "tuned").mkdir()
    (tmp_path / "copy").rename(tmp_path / "tuned" / "pocket")
    tuned = models_of(opener, Settings(model=str(tmp_path / "tuned" / "pocket")))
    assert tuned.find("pocket").has_drafter, "the built-in one, which has that name already"
    assert not tuned.first.has_drafter
    monkeypatch.setattr(
        "mlxmtp.app.open.this_machine", lambda: replace(this_machine(), memory=2**30, usable=300_000_000)
    )
    small = models_of(opener, Settings(model="pocket")).first.context
    assert 8192 <= small < models.first.context


def ask(port: int, question: str, **more: Any) -> str:
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    body = {
        "messages": [{"role": "user", "content": question}],
        "max_tokens": 12,
        "seed": 3,
        "temperature": 1.0,
        **more,
    }
    connection.request("POST", "/v1/chat/completions", json.dumps(body))
    answer = json.loads(connection.getresponse().read())
    connection.close()
    content: str = answer["choices"][0]["message"]["content"]
    return content


def begin(port: int, question: str) -> socket.socket:
    """A long answer as a stream, on a socket that stays open."""
    data = json.dumps({"messages": [{"role": "user", "content": question}], "max_tokens": 4000, "stream": True})
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n"
    peer = socket.create_connection(("127.0.0.1", port))
    peer.settimeout(60)
    peer.sendall((head + data).encode())
    return peer


def test_many_clients_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = mlxmtp.load("pocket")
    model._decoder.compiled = model._decoder._rounds._mode = "never"

    def alone(question: str, constraint: Constraint | None = None) -> str:
        params = Params(max_tokens=30 if constraint else 12, seed=3, temp=1.0, constraint=constraint)
        events = model.stream([{"role": "user", "content": question}], params)
        return "".join(event.text for event in events if isinstance(event, Text))

    wanted = [alone(question) for question in QUESTIONS]
    number = alone("A number", Constraint.schema({"enum": [42]}))
    model.close()
    with serving(tmp_path, monkeypatch) as port, ThreadPoolExecutor(8) as pool:
        leaving = begin(port, "Hi")
        leaving.recv(100)
        asked = [pool.submit(ask, port, question) for question in QUESTIONS]
        form = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"enum": [42]}}}
        held = pool.submit(ask, port, "A number", response_format=form, max_tokens=30)
        leaving.close()
        all_of([*asked, held], 60)
        assert [one.result() for one in asked] == wanted
        assert held.result() == number
        assert ask(port, QUESTIONS[0]) == wanted[0]


class Layers:
    """Counts the layers of a long prompt that are sent to the device; the fifth waits until `cancelled` is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, self.after = 0, 0
        self.fifth, self.cancelled = Event(), Event()
        self._reads = False
        self._really, self._steps = mx.async_eval, read_in_chunks
        monkeypatch.setattr(mx, "async_eval", self._send)
        monkeypatch.setattr("mlxmtp.decode.decoder.read_in_chunks", self._read)
        cancel = Scheduler.cancel

        def cancelled(scheduler: Scheduler, job: Job) -> None:
            cancel(scheduler, job)
            if self.fifth.is_set() and not self.cancelled.is_set():
                self.after = self.count
                self.cancelled.set()

        monkeypatch.setattr(Scheduler, "cancel", cancelled)

    def _send(self, *arrays: Any) -> None:
        self._really(*arrays)
        if self._reads:
            self.count += 1
            if self.count == 5:
                self.fifth.set()
                assert self.cancelled.wait(30)

    def _read(self, target: Any, cache: Any, tokens: list[int], *more: Any) -> Generator[int, None, Any]:
        steps = self._steps(target, cache, tokens, *more)
        while True:
            self._reads = len(tokens) > 1000
            try:
                done = next(steps)
            except StopIteration as over:
                return over.value
            finally:
                self._reads = False
            yield done


@pytest.mark.parametrize(("parallel", "beside"), [(1, False), (3, False), (3, True)])
def test_who_goes_away_ends_the_reading_of_a_long_prompt_within_a_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parallel: int, beside: bool
) -> None:
    params = Service._params
    unstopped = staticmethod(lambda *given: replace(params(*given), stop=()))  # `other` goes on
    monkeypatch.setattr(Service, "_params", unstopped)
    with serving(tmp_path, monkeypatch, parallel=parallel) as port:
        other = begin(port, "Hi") if beside else None
        if other is not None:
            other.recv(100)
            until_text(other)
        with monkeypatch.context() as patch:
            layers = Layers(patch)
            leaving = begin(port, "word " * 3000)
            assert layers.fifth.wait(30)
            assert running(port) == 1 + beside
            leaving.close()
            assert layers.cancelled.wait(30)
            if other is not None:
                other.close()
            wait_until(lambda: running(port) == 0)
            assert layers.count - layers.after <= 1
        assert ask(port, QUESTIONS[0])


def until_text(peer: socket.socket) -> None:
    """Read a stream until a piece of its answer has come."""
    got = b""
    while got.count(b'"content":"') < 2:  # the first chunk has an empty one
        part = peer.recv(4096)
        assert part, got
        got += part


def running(port: int) -> int:
    """Answers that are being written."""
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/metrics")
    metrics = connection.getresponse().read().decode()
    connection.close()
    return int(metrics.partition("\nmlxmtp_requests_running ")[2].split()[0])
