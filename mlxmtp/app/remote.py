"""A running server as a program sees it: OpenAI's chat completions over HTTP, by the standard library alone.

Servers differ in small things, all of which are read: comments and CRLF in streams, no `[DONE]`, usage in a chunk of
its own, with the last words or nowhere, one JSON object where a stream was asked for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from socket import SHUT_RDWR, socket
from typing import Any
from urllib.parse import quote, urlsplit

from mlxmtp.engine.calls import strict_json
from mlxmtp.environment import SERVER_KEY
from mlxmtp.errors import EndpointFailed, MlxmtpError, ModelNotFound, UsageError

DEFAULT_URL = "http://127.0.0.1:8765"
_CONNECT, _SILENT = 3.0, 30.0  # seconds: until a connection stands, and between two pieces of what comes
FIRST_BYTE = 600.0  # seconds until an answer begins: some servers are silent while they read a prompt
_LARGEST = 16 * 2**20  # bytes of a body that is no stream
_TRANSIENT = (408, 429)  # and 5xx: the same request may be answered later
_FOREIGN = "it speaks another protocol"
_UNLISTED = ("404", "405", "501", _FOREIGN)  # reasons why a list of models cannot be read where answers can
_TEMPLATE = "chat_template_kwargs"  # a field that many servers know, and some refuse, each in its own words
_COUNTS = ("stream_options", "include_usage")  # a field that nearly all know, and what is asked for in it
_INVALID = ("400", "422")  # of a request: a field that is not known may be why
_VERSIONED = re.compile(r"/v\d\w*(/|$)")


@dataclass(frozen=True, slots=True)
class RemoteModel:
    """A model that a server has; `context` 0: it does not say.

    `ours`: the server is an mlxmtp. `sees`: the model reads pictures.
    """

    name: str
    context: int = 0
    ours: bool = False
    sees: bool = False

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> RemoteModel:
        """Return a model as a server lists it."""
        context = said.get("max_model_len")
        tokens = max(0, context) if isinstance(context, int) and not isinstance(context, bool) else 0
        reads = said.get("input_modalities")
        sees = isinstance(reads, list) and "image" in reads
        return cls(str(said["id"]), tokens, said.get("owned_by") == "mlxmtp", sees)


class Remote:
    """A server's address. `key` is sent to it and shown to nobody."""

    def __init__(
        self, url: str, key: str | None = None, key_from: str | None = SERVER_KEY, first_byte: float = FIRST_BYTE
    ) -> None:
        """`key_from`: the variable that holds the key, None if no key is for this server. `first_byte`: seconds until
        an answer must have begun. Raise UsageError for what is no address.
        """
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            port = parts.port
        except ValueError:
            raise UsageError(f"{url} is no address of a server: write it as {DEFAULT_URL}.") from None
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
            raise UsageError(f"{url} is no address of a server: write it as {DEFAULT_URL}.")
        if key is not None and not (key.isascii() and key.isprintable()):
            told = "has a line break or another character that no header holds"
            raise UsageError(f"The key for {parts.hostname} {told}: set {key_from or SERVER_KEY} anew.")
        self._connection = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        self._port = self._connection.default_port if port is None else port  # http.client reads `::1` as a host's port
        self._key: str | None = key
        self._key_from: str | None = key_from
        self.host, self._first_byte = parts.hostname, first_byte
        self.refused: frozenset[str] = frozenset()  # fields that it has shown not to know
        self.takes_template = False  # it has shown that it knows that field
        path = parts.path.rstrip("/")
        self._path = path if _VERSIONED.search(path) else f"{path}/v1"
        self.url = f"{parts.scheme}://{parts.netloc}{path.removesuffix('/v1')}"

    @property
    def keyed(self) -> bool:
        """True if a key is sent."""
        return self._key is not None

    def forget_key(self) -> None:
        """Send no key: none is for this server."""
        self._key = self._key_from = None

    def models(self) -> list[RemoteModel]:
        """Return the models that the server names, at least one. Raises MlxmtpError."""
        with closing(self.connection()) as connection, closing(self.response(connection, "GET", "/models")) as said:
            listed = self.table(said).get("data")
        if not isinstance(listed, list) or not all(isinstance(one, dict) and "id" in one for one in listed):
            raise self.foreign()
        return [RemoteModel.of(one) for one in listed]

    def model(self, name: str | None = None) -> RemoteModel:
        """Return the model of that name, by default the server's first. Raises MlxmtpError, ModelNotFound.

        Other servers than ours may know names that they do not list, and some list none.
        """
        try:
            models = self.models()
        except EndpointFailed as error:
            if name is None and error.reason in _UNLISTED:
                told = f"The server at {self.url} lists no models: name one, --url {self.url} -m NAME."
                raise EndpointFailed(told, error.reason, counts=False) from None
            if name is None or error.reason not in _UNLISTED:
                raise
            models = []
        found = next((one for one in models if name in (None, one.name)), None)
        if found is None and name is not None:
            found = self._by_other_name(name) if any(one.ours for one in models) else RemoteModel(name)
        if found is None:
            there = ", ".join(one.name for one in models) or "none"
            raise ModelNotFound(f"The server at {self.url} has no model '{name or ''}': it has {there}.")
        return found

    def lists(self, name: str) -> bool:
        """Return whether the server has a model of that name, as far as it says; one that lists none may have it.

        Raises EndpointFailed.
        """
        try:
            models = self.models()
        except EndpointFailed as error:
            if error.reason not in _UNLISTED:
                raise
            return True
        listed = any(one.name == name for one in models)
        if listed or not any(one.ours for one in models):
            return listed
        with suppress(EndpointFailed):  # it cannot be read there
            return self._by_other_name(name) is not None
        return False

    def _by_other_name(self, name: str) -> RemoteModel | None:
        """Return a model of ours by a name under which it is not listed. Raises EndpointFailed if it cannot be read."""
        path = f"/models/{quote(name)}"
        try:
            with closing(self.connection()) as connection, closing(self.response(connection, "GET", path)) as said:
                return RemoteModel.of({"id": name, **self.table(said)})
        except EndpointFailed as error:
            if error.reason != "404":
                raise
            return None

    def chat(self, body: Mapping[str, Any]) -> Chunks:
        """Ask for a chat completion. Raises nothing yet."""
        return Chunks(self, {**body, "stream": True})

    def connection(self) -> HTTPConnection:
        """Return a connection that stands. Raises EndpointFailed."""
        connection = self._connection(self.host, self._port, timeout=_CONNECT)
        with self._reaching():
            connection.connect()
            connection.sock.settimeout(_SILENT)
        return connection

    def response(self, connection: HTTPConnection, method: str, path: str, body: object = None) -> HTTPResponse:
        """Return the response to a request that was carried out. Raises EndpointFailed."""
        headers = {"Accept": "application/json, text/event-stream"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        data = None
        if body is not None:
            data, headers["Content-Type"] = json.dumps(body).encode(), "application/json"
        with self._reaching():
            connection.request(method, self._path + path, data, headers)
            line = connection.sock
            line.settimeout(_SILENT if body is None else self._first_byte)
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
            told = f"No server answers at {self.url} ({reason}): start one with mlxmtp serve, or name another one."
            raise EndpointFailed(told, reason) from error

    def _refusal(self, response: HTTPResponse) -> EndpointFailed:
        status, lasting = response.status, not (response.status in _TRANSIENT or response.status >= 500)
        if status == 401 and self._key is None:
            way = f"set {self._key_from} to it"
            if self._key_from is None:
                way = f"name it in the config, as [endpoint.NAME] with key_env, or set MLXMTP_URL beside {SERVER_KEY}"
            return EndpointFailed(f"The server at {self.url} wants its key: {way}.", f"{status}", counts=False)
        try:
            said = _message(self.table(response))
        except MlxmtpError:
            said = f"{status} {response.reason}"
        told, wait = f"The server at {self.url} refuses: {said}", _wait(response)
        return EndpointFailed(told, f"{status}", counts=not lasting, retry_after=wait)

    def table(self, response: HTTPResponse) -> dict[str, Any]:
        """Return the object of a response that is no stream. Raises EndpointFailed."""
        try:
            value = json.loads(response.read(_LARGEST))
        except (OSError, HTTPException, ValueError, RecursionError):
            raise self.foreign() from None
        if not isinstance(value, dict):
            raise self.foreign()
        return value

    def foreign(self) -> EndpointFailed:
        told = f"What answers at {self.url} does not speak OpenAI's protocol: name another server."
        return EndpointFailed(told, _FOREIGN)

    def broken_off(self) -> EndpointFailed:
        told = f"The server at {self.url} broke off its answer: look there for the reason, and ask again."
        return EndpointFailed(told, "it broke off")


class Chunks:
    """The chunks of a chat completion. `close`, from any thread, ends it: the server stops, too."""

    def __init__(self, remote: Remote, body: Mapping[str, Any]) -> None:
        self.remote, self._body = remote, {**body}
        self._socket: socket | None = None
        self._closed = False

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield them up to the last. Raises EndpointFailed, also if the server breaks off."""
        for name in self.remote.refused:
            self._body.pop(name, None)
        left_out: set[str] = set()
        while True:
            try:
                for chunk in self._asked():
                    self.remote.refused |= left_out  # and nothing else was wrong
                    self.remote.takes_template |= _TEMPLATE in self._body
                    yield chunk
                return
            except EndpointFailed as error:
                if (field := self._unknown(error)) is None:
                    raise
            del self._body[field]
            left_out.add(field)

    def _unknown(self, error: EndpointFailed) -> str | None:
        """Return the field of the body that the server may have refused, None if it was something else."""
        if error.reason not in _INVALID:
            return None
        if _COUNTS[0] in self._body and any(name in str(error) for name in _COUNTS):
            return _COUNTS[0]
        return _TEMPLATE if _TEMPLATE in self._body and not self.remote.takes_template else None

    def _asked(self) -> Iterator[dict[str, Any]]:
        with closing(self.remote.connection()) as connection:
            self._socket = connection.sock
            with closing(self.remote.response(connection, "POST", "/chat/completions", self._body)) as response:
                if self._closed:
                    return
                if response.headers.get_content_type() == "application/json":  # it does not stream
                    yield self._checked(self.remote.table(response))
                    return
                ended = False
                for data, whole in self._events(response):
                    if data == b"[DONE]" or self._closed:
                        return
                    try:
                        chunk = self._checked(json.loads(data))
                    except (ValueError, RecursionError):
                        raise (self.remote.foreign() if whole else self.remote.broken_off()) from None
                    ended = ended or any(one.get("finish_reason") for one in chunk["choices"])
                    begun = any(v for one in chunk["choices"] for name, v in one["delta"].items() if name != "role")
                    if begun and not self._body.get("tools"):  # a long call comes whole, after a silence
                        with suppress(OSError):  # it has ended with this line
                            self._socket.settimeout(_SILENT)  # before it, some servers send a head and read a prompt
                    yield chunk
        if not ended and not self._closed:
            raise self.remote.broken_off()

    @property
    def closed(self) -> bool:
        """True once nobody waits for more."""
        return self._closed

    def close(self) -> None:
        """End it."""
        self._closed = True
        if self._socket is not None:
            with suppress(OSError):  # it has ended
                self._socket.shutdown(SHUT_RDWR)

    def _events(self, response: HTTPResponse) -> Iterator[tuple[bytes, bool]]:
        """Yield the data of events, and whether their line is whole; all else is passed over. Raises EndpointFailed."""
        try:
            for line in iter(lambda: response.readline(_LARGEST), b""):
                if line.startswith(b"data:") and (data := line.removeprefix(b"data:").strip()):
                    yield data, line.endswith(b"\n")
        except (OSError, HTTPException) as error:
            raise self.remote.broken_off() from error

    def _checked(self, chunk: Any) -> dict[str, Any]:
        """Return a chunk whose `choices` are objects with an object `delta`. Raises EndpointFailed."""
        if not isinstance(chunk, dict):
            raise self.remote.foreign()
        if chunk.get("error"):
            told = f"The server at {self.remote.url} could not answer: {_message(chunk)}"
            raise EndpointFailed(told, "it could not answer")
        choices = chunk.get("choices") or []
        if not isinstance(choices, list) or not all(isinstance(one, dict) for one in choices):
            raise self.remote.foreign()
        deltas = [one.get("delta") or one.get("message") or {} for one in choices]
        if not all(isinstance(one, dict) and _is_list_of_calls(one.get("tool_calls")) for one in deltas):
            raise self.remote.foreign()
        return {**chunk, "choices": [{**one, "delta": delta} for one, delta in zip(choices, deltas, strict=True)]}


def _wait(response: HTTPResponse) -> float | None:
    """Return the seconds for which a server asks to be left alone: a number, or a date, which its own clock counts."""
    said = response.headers.get("Retry-After", "").strip()
    if said.isascii() and said.isdecimal() and len(said) < 10:
        return float(said)
    if (until := _moment(said)) is None:
        return None
    now = _moment(response.headers.get("Date", "")) or datetime.now(UTC)
    return max(0.0, (until - now).total_seconds())


def _moment(date: str) -> datetime | None:
    try:
        found = parsedate_to_datetime(date)
        return found if found.tzinfo is not None else found.replace(tzinfo=UTC)  # as HTTP has it
    except (ValueError, OverflowError):
        return None


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
    """Return the arguments of a call that a server sent. Raises EndpointFailed."""
    try:
        value = strict_json(text or "{}")
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        told = "The server's model wrote a call whose arguments are no JSON object: ask again."
        raise EndpointFailed(told, "it wrote a call that cannot be read", counts=False)
    return value


def _is_list_of_calls(calls: object) -> bool:
    if calls is None:
        return True
    return isinstance(calls, list) and all(
        isinstance(one, dict) and isinstance(one.get("function") or {}, dict) for one in calls
    )


def _message(body: Mapping[str, Any]) -> str:
    """Return why a server refuses: OpenAI's `error`, else the `detail` of FastAPI, or a `message` of others."""
    error = body.get("error") or body.get("detail") or body.get("message")
    said = error.get("message") if isinstance(error, dict) and "message" in error else error
    told = said if isinstance(said, str) else json.dumps(said)
    return told[:1000] if said else "it does not say why."
