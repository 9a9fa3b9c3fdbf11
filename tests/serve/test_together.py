"""`serve --parallel`: answers side by side over HTTP are those of each alone, whoever goes away meanwhile."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import wait as all_of
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

import mlxmtp
from mlxmtp.app.open import Opener
from mlxmtp.engine.constraint import Constraint
from mlxmtp.engine.events import Text
from mlxmtp.engine.params import Params
from mlxmtp.serve.models import models_of
from mlxmtp.serve.server import Options, Server
from mlxmtp.settings import Settings, load_settings
from tests.serve.running import wait_until

QUESTIONS = ["What is a drafter?", "Hello!", "Who are you?", "word " * 300, "What is a KV cache?", "How do I stop?"]


@contextmanager
def serving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr("mlxmtp.decode.compile.Rounds.build", lambda *_: None)  # uncompiled, nothing is built
    opener = Opener(load_settings({}, {"MLXMTP_HOME": str(tmp_path), "HOME": str(tmp_path)}), tell=lambda _: None)
    told: list[str] = []
    server = Server(models_of(opener, Settings(model="pocket")), Options(port=0, parallel=3), told.append)
    thread = Thread(target=server.run, args=({},))
    thread.start()
    try:
        wait_until(lambda: bool(told))
        yield int(server.url.rpartition(":")[2].strip("/"))
    finally:
        server.stop()
        thread.join(20)


def ask(port: int, question: str, **more: Any) -> str:
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    body = {
        "messages": [{"role": "user", "content": question}],
        "max_tokens": 16,
        "seed": 3,
        "temperature": 1.0,
        **more,
    }
    connection.request("POST", "/v1/chat/completions", json.dumps(body))
    answer = json.loads(connection.getresponse().read())
    connection.close()
    content: str = answer["choices"][0]["message"]["content"]
    return content


def test_many_clients_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = mlxmtp.load("pocket")
    model._decoder.compiled = model._decoder._rounds._mode = "never"

    def alone(question: str, constraint: Constraint | None = None) -> str:
        params = Params(max_tokens=60 if constraint else 16, seed=3, temp=1.0, constraint=constraint)
        events = model.stream([{"role": "user", "content": question}], params)
        return "".join(event.text for event in events if isinstance(event, Text))

    wanted = [alone(question) for question in QUESTIONS]
    number = alone("A number", Constraint.schema({"enum": [42]}))
    model.close()
    with serving(tmp_path, monkeypatch) as port, ThreadPoolExecutor(8) as pool:
        endless = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4000, "stream": True}
        leaving = socket.create_connection(("127.0.0.1", port))
        data = json.dumps({**endless, "stop": None}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n"
        leaving.sendall(head.encode() + data)
        leaving.recv(100)
        asked = [pool.submit(ask, port, question) for question in QUESTIONS]
        form = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"enum": [42]}}}
        held = pool.submit(ask, port, "A number", response_format=form, max_tokens=60)
        leaving.close()
        all_of([*asked, held], 60)
        assert [one.result() for one in asked] == wanted
        assert held.result() == number
        assert ask(port, QUESTIONS[0]) == wanted[0]
