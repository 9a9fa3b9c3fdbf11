"""Connections that are kept open: a body that was announced, refused and never comes holds none of them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import h11
import pytest

from mlxmtp.serve.connections import TimedProtocol
from mlxmtp.serve.http import Door, Outgoing
from mlxmtp.serve.server import Options
from tests.serve.running import Running, running, wait_until

CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(Path(tmp_path_factory.mktemp("locked")), Options(port=0, door=Door(key="secret"))) as server:
        yield server


def asked(server: Running, head: str) -> tuple[socket.socket, int]:
    """A connection on which a head was sent and the whole answer has come, and the status of that."""
    line = socket.create_connection(("127.0.0.1", server.port), timeout=30)
    line.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\n{head}\r\n".encode())
    answer = HTTPResponse(line)  # head and body may come one after the other
    answer.begin()
    answer.read()
    return line, answer.status


def ends(line: socket.socket) -> bool:
    """Whether the other side ends the connection before the time limit of a read."""
    try:
        while line.recv(65536):
            pass
    except ConnectionError:  # what had come and was not read
        return True
    except TimeoutError:
        return False
    return True


@pytest.mark.parametrize("length", ["Content-Length: 1000", "Transfer-Encoding: chunked"])
def test_a_refused_body_that_never_comes_ends_the_connection(locked: Running, length: str) -> None:
    line, status = asked(locked, f"{length}\r\n")
    with line:
        assert status == 401
        line.sendall(b"1")
        assert ends(line)


def test_a_body_that_is_too_large_and_never_comes_ends_the_connection(locked: Running) -> None:
    line, status = asked(locked, f"Authorization: Bearer secret\r\nContent-Length: {10**12}\r\n")
    with line:
        assert status == 413
        line.sendall(b"{")
        assert ends(line)


def test_after_a_refused_body_that_has_come_the_next_request_is_answered(locked: Running) -> None:
    with socket.create_connection(("127.0.0.1", locked.port), timeout=30) as line:
        refused = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{{}}"
        line.sendall(f"{refused}GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        data = b""
        while more := line.recv(65536):
            data += more
    assert [one[:3] for one in data.split(b"HTTP/1.1 ")[1:]] == [b"401", b"200"]


def test_after_a_refused_body_that_came_late_the_next_request_has_its_time(
    locked: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    connections: list[TimedProtocol] = []
    completed = TimedProtocol.on_response_complete

    def complete(connection: TimedProtocol) -> None:
        connections.append(connection)
        completed(connection)

    monkeypatch.setattr(TimedProtocol, "on_response_complete", complete)
    monkeypatch.setattr("mlxmtp.serve.connections._REFUSED_SECONDS", 600.0)
    line, status = asked(locked, "Content-Length: 2\r\n")
    with line:
        assert status == 401
        line.sendall(f"{{}}POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n".encode())
        line.sendall(b"Authorization: Bearer secret\r\n\r\n{")
        wait_until(
            lambda: bool(connections) and connections[0].conn.our_state is h11.SEND_RESPONSE
        )  # the second head has come
        connections[0].loop.call_soon_threadsafe(connections[0]._end_refused)  # its time is over
        line.sendall(b"    ")
        assert line.recv(65536).startswith(b"HTTP/1.1 400")  # it was read: `{    ` is no JSON


def test_a_connection_outlives_a_pause_of_its_client(locked: Running) -> None:
    uvicorn = locked.server._uvicorn
    assert uvicorn is not None
    assert uvicorn.config.timeout_keep_alive == 30


def test_a_stream_that_begins_with_nothing_has_its_first_sign_of_life_in_time() -> None:
    sent: list[bytes] = []

    async def answer() -> None:
        async def send(message: Any) -> None:
            sent.append(message.get("body", b""))

        out = Outgoing(send, lambda: b"sign.", 60.0)
        await out.begin("text/plain")
        await asyncio.sleep(0.01)
        out.add(b"rest.")
        await out.end()

    asyncio.run(answer())
    assert sent == [b"", b"rest."]


def test_a_sign_of_life_to_a_slow_reader_is_sent_whole_and_before_the_end() -> None:
    """The answer ends while the sign still waits for the reader."""
    sent: list[bytes] = []

    async def answer() -> None:
        slow = asyncio.Event()

        async def send(message: Any) -> None:
            if message.get("body") == b"sign.":
                await slow.wait()
            sent.append(message.get("body", b""))

        out = Outgoing(send, lambda: b"sign.", 0.001)
        out.add(b"begun.")
        await out.begin("text/plain")
        while not out._sending.locked():
            await asyncio.sleep(0.001)
        out.add(b"rest.")
        ending = asyncio.create_task(out.end())
        for _ in range(10):
            await asyncio.sleep(0.001)
        slow.set()
        await ending

    asyncio.run(answer())
    assert sent == [b"", b"begun.", b"sign.", b"rest."]
