"""Servers of this machine that answer wrongly: each connection gets the next of some bytes, with pauses."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

Step = bytes | float
"""Bytes to send, or seconds to wait."""

STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
DONE = b"data: [DONE]\n\n"


def http(body: bytes, status: str = "200 OK", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", "Connection: close", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def said(text: str = "", *, reason: str | None = None, newline: bytes = b"\n", **more: object) -> bytes:
    """An event of a stream."""
    chunk = {"choices": [{"delta": {"content": text} if text else {}, "finish_reason": reason}], **more}
    return b"data: " + json.dumps(chunk).encode() + newline * 2


MODELS = http(json.dumps({"object": "list", "data": [{"id": "large"}]}).encode())
ANSWER = STREAM + said("From afar.") + said(reason="stop") + DONE


class Peer:
    """What was asked of it, one request a connection."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.requests: list[bytes] = []

    @property
    def bodies(self) -> list[dict[str, Any]]:
        """The bodies of those that had one."""
        return [json.loads(body) for one in self.requests if (body := one.partition(b"\r\n\r\n")[2])]


@contextmanager
def peer(*answers: Sequence[Step] | bytes, models: bytes = MODELS) -> Iterator[Peer]:
    """A server that answers one connection after the other; asked for its models it always says `models`."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server, waiting, over = Peer(listener.getsockname()[1]), list(answers), threading.Event()

        def answer(line: socket.socket) -> None:
            with line, suppress(OSError):
                request = _request(line)
                server.requests.append(request)
                steps: Sequence[Step] | bytes = models
                if b"/models" not in request.partition(b"\r\n")[0]:
                    steps = waiting.pop(0) if waiting else b""
                for step in [steps] if isinstance(steps, bytes) else steps:
                    if isinstance(step, bytes):
                        line.sendall(step)
                    elif over.wait(step):
                        return

        def run() -> None:
            with suppress(OSError):
                while True:
                    line, _ = listener.accept()
                    if over.is_set():
                        line.close()
                        return
                    threading.Thread(target=answer, args=(line,), daemon=True).start()

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            over.set()
            socket.create_connection(listener.getsockname()).close()  # the next listener may get the same descriptor
            thread.join(5)


def _request(line: socket.socket) -> bytes:
    """Read a request to its end."""
    data = b""
    while b"\r\n\r\n" not in data:
        if not (more := line.recv(65536)):
            return data
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    length = next(
        (int(one.split(b":")[1]) for one in head.split(b"\r\n") if one.lower().startswith(b"content-length")), 0
    )
    while len(body) < length:
        body += line.recv(65536)
    return head + b"\r\n\r\n" + body


@contextmanager
def refused() -> Iterator[str]:
    """An address at which nobody listens, or can begin to."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
