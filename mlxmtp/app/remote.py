"""A running server as a program sees it: OpenAI's chat completions over HTTP, by the standard library alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from socket import SHUT_RDWR, socket
from typing import Any
from urllib.parse import urlsplit

from mlxmtp.errors import MlxmtpError, ModelNotFound, UsageError

DEFAULT_URL = "http://127.0.0.1:8765"
_CONNECT_SECONDS, _SILENT_SECONDS = 5.0, 60.0  # a server that lives sends a sign every ten seconds
_LARGEST = 16 * 2**20  # bytes of a body that is no stream


@dataclass(frozen=True, slots=True)
class RemoteModel:
    """A model that a server has; `context` 0: it does not say. `sees`: it reads pictures."""

    name: str
    context: int = 0
    sees: bool = False


class Remote:
    """A server's address. `key` is sent to it and shown to nobody."""

    def __init__(self, url: str, key: str | None = None) -> None:
        """Raise UsageError for what is no address."""
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            self._port = parts.port
        except ValueError:
            raise UsageError(f"{url} is no address of a server: write it as {DEFAULT_URL}.") from None
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
            raise UsageError(f"{url} is no address of a server: write it as {DEFAULT_URL}.")
        self._connection = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        self._host, self._key = parts.hostname, key
        self._path = parts.path.rstrip("/").removesuffix("/v1")
        self.url = f"{parts.scheme}://{parts.netloc}{self._path}"

    def model(self, name: str | None = None) -> RemoteModel:
        """Return the model of that name, by default the server's first. Raises MlxmtpError, ModelNotFound."""
        with closing(self.connection()) as connection, closing(self.response(connection, "GET", "/v1/models")) as said:
            listed = self._json(said).get("data")
        if not isinstance(listed, list) or not all(isinstance(one, dict) and "id" in one for one in listed):
            raise self.foreign()
        models = {str(one["id"]): one for one in listed}
        if not models or (name is not None and name not in models):
            there = ", ".join(models) or "none"
            raise ModelNotFound(f"The server at {self.url} has no model '{name or ''}': it has {there}.")
        found = next(iter(models)) if name is None else name
        context, reads = models[found].get("max_model_len"), models[found].get("input_modalities")
        sees = isinstance(reads, list) and "image" in reads
        return RemoteModel(found, context if isinstance(context, int) and context > 0 else 0, sees)

    def chat(self, body: Mapping[str, Any]) -> Chunks:
        """Ask for a chat completion. Raises nothing yet."""
        return Chunks(self, {**body, "stream": True})

    def connection(self) -> HTTPConnection:
        """Return a connection that stands. Raises MlxmtpError."""
        connection = self._connection(self._host, self._port, timeout=_CONNECT_SECONDS)
        with self._reaching():
            connection.connect()
            connection.sock.settimeout(_SILENT_SECONDS)
        return connection

    def response(self, connection: HTTPConnection, method: str, path: str, body: object = None) -> HTTPResponse:
        """Return the response to a request that was carried out. Raises MlxmtpError."""
        headers = {"Accept": "application/json, text/event-stream"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        data = None
        if body is not None:
            data, headers["Content-Type"] = json.dumps(body).encode(), "application/json"
        with self._reaching():
            connection.request(method, self._path + path, data, headers)
            response = connection.getresponse()
        if response.status == 200:
            return response
        with closing(response):
            raise self._refusal(response)

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except (OSError, HTTPException) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise MlxmtpError(
                f"No server answers at {self.url} ({reason}): start one with mlxmtp serve, or name it with --url."
            ) from error

    def _refusal(self, response: HTTPResponse) -> MlxmtpError:
        if response.status == 401:
            return MlxmtpError(f"The server at {self.url} wants its key: set MLXMTP_API_KEY to it.")
        try:
            said = _message(self._json(response))
        except MlxmtpError:
            said = f"{response.status} {response.reason}"
        return MlxmtpError(f"The server at {self.url} refuses: {said}")

    def _json(self, response: HTTPResponse) -> dict[str, Any]:
        try:
            value = json.loads(response.read(_LARGEST))
        except (OSError, HTTPException, ValueError, RecursionError):
            raise self.foreign() from None
        if not isinstance(value, dict):
            raise self.foreign()
        return value

    def foreign(self) -> MlxmtpError:
        return MlxmtpError(
            f"What answers at {self.url} does not speak OpenAI's protocol: name another server with --url."
        )

    def broken_off(self) -> MlxmtpError:
        return MlxmtpError(f"The server at {self.url} broke off its answer: look there for the reason, and ask again.")


class Chunks:
    """The chunks of a streamed chat completion. `close`, from any thread, ends it: the server stops, too."""

    def __init__(self, remote: Remote, body: Mapping[str, Any]) -> None:
        self._remote, self._body = remote, body
        self._socket: socket | None = None
        self._closed = False

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield them up to the last. Raises MlxmtpError, also if the server breaks off."""
        with closing(self._remote.connection()) as connection:
            self._socket = connection.sock
            with closing(self._remote.response(connection, "POST", "/v1/chat/completions", self._body)) as response:
                for line in self._lines(response):
                    data = line.removeprefix(b"data:").strip()
                    if data == b"[DONE]" or self._closed:
                        return
                    if line.startswith(b"data:"):
                        yield self._chunk(data)
        raise self._remote.broken_off()

    def close(self) -> None:
        """End it."""
        self._closed = True
        if self._socket is not None:
            with suppress(OSError):  # it has ended
                self._socket.shutdown(SHUT_RDWR)

    def _lines(self, response: HTTPResponse) -> Iterator[bytes]:
        try:
            yield from iter(lambda: response.readline(_LARGEST), b"")
        except (OSError, HTTPException) as error:
            raise self._remote.broken_off() from error

    def _chunk(self, data: bytes) -> dict[str, Any]:
        try:
            chunk = json.loads(data)
        except (ValueError, RecursionError):
            raise self._remote.foreign() from None
        if not isinstance(chunk, dict):
            raise self._remote.foreign()
        if "error" in chunk:
            raise MlxmtpError(f"The server at {self._remote.url} could not answer: {_message(chunk)}")
        return chunk


def sent(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a message as the protocol has it: arguments of calls are a text there."""
    if not message.get("tool_calls"):
        return message
    calls = [
        {**one, "function": {**one["function"], "arguments": json.dumps(one["function"]["arguments"])}}
        for one in message["tool_calls"]
    ]
    return {**message, "tool_calls": calls}


def arguments_in(text: str) -> dict[str, Any]:
    """Return the arguments of a call that a server sent. Raises MlxmtpError."""
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise MlxmtpError("The server's model wrote a call whose arguments are no JSON object: ask again.")
    return value


def _message(body: Mapping[str, Any]) -> str:
    error = body.get("error")
    said = error.get("message") if isinstance(error, dict) else error
    return str(said) if said else "it does not say why."
