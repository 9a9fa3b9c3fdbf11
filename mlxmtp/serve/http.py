"""Between the network and the protocols: who may ask, bodies, and errors in the form of each protocol."""

import asyncio
import hmac
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlxmtp.serve.answers import json_bytes
from mlxmtp.serve.fields import Refused

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_OPEN = frozenset({"/", "/health"})  # no key is asked for: they say nothing
_BODY_SECONDS = 30.0
_TYPES = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error"}
_TYPES |= {413: "request_too_large", 429: "rate_limit_error", 503: "overloaded_error"}


class Json(JSONResponse):
    """JSON as the streams write it."""

    def render(self, content: Any) -> bytes:
        return json_bytes(content)


class NoResponse(Response):
    """No answer, for a client that has gone away."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send nothing."""


def error_response(path: str, error: Refused) -> Response:
    """Return an error as the protocol of a path has it."""
    message = str(error)
    kind = _TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    if path.startswith("/api/"):
        body: dict[str, Any] = {"error": message}
    elif path.startswith("/v1/messages"):
        body = {"type": "error", "error": {"type": kind, "message": message}}
    else:
        body = {"error": {"message": message, "type": kind, "param": error.param, "code": error.code}}
    headers = {"Retry-After": str(error.retry)} if error.retry else {}
    return Json(body, error.status, headers)


async def read_body(request: Request, limit: int) -> bytes:
    """Return a request's body. Raises Refused if it is too large or takes too long."""
    too_large = Refused(f"The body is larger than the limit of {limit} bytes.", status=413)
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and int(length) > limit:
        raise too_large
    found = bytearray()
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for part in request.stream():
                found += part
                if len(found) > limit:
                    raise too_large
    except TimeoutError:
        raise Refused(f"The body did not come within {_BODY_SECONDS:.0f} seconds.", status=408) from None
    return bytes(found)


class Outgoing:
    """A streamed answer on its way to the client, through one buffer; a `sign()` of life comes after `seconds` without
    a byte (None: never)."""

    def __init__(self, send: Send, sign: Callable[[], bytes], seconds: float | None) -> None:
        self._send, self._sign, self._seconds = send, sign, seconds
        self._clock = asyncio.get_running_loop().time
        self._last = 0.0
        self._waiting = bytearray()
        self._sending = asyncio.Lock()
        self._beating: asyncio.Task[None] | None = None

    async def begin(self, content_type: str) -> None:
        """Send the head and what waits."""
        headers = [(b"content-type", content_type.encode()), (b"cache-control", b"no-cache")]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        await self.flush()
        self._last = self._clock()  # also where nothing waited
        if self._seconds is not None:
            self._beating = asyncio.create_task(self._beat(self._seconds))

    def add(self, data: bytes) -> None:
        """Append bytes, to be sent together with what comes until `flush`."""
        self._waiting += data

    async def flush(self, *, more: bool = True) -> None:
        """Send what waits."""
        async with self._sending:
            data = bytes(self._waiting)
            self._waiting.clear()
            if data or not more:
                self._last = self._clock()
                await self._send({"type": "http.response.body", "body": data, "more_body": more})

    async def end(self) -> None:
        """Send the rest."""
        async with self._sending:  # a sign that is being sent is not broken off
            self.close()
        await self.flush(more=False)

    def close(self) -> None:
        """Give no more signs of life."""
        if self._beating is not None:
            self._beating.cancel()

    async def _beat(self, seconds: float) -> None:
        while True:
            await asyncio.sleep(self._last + seconds - self._clock())
            if self._clock() - self._last >= seconds:
                if not (sign := self._sign()):
                    return  # the protocol has none
                self.add(sign)
                await self.flush()


@dataclass(frozen=True, slots=True)
class Door:
    """Says who may ask: with `key` None whoever names one of `hosts`; pages in a browser only if of `origins`."""

    key: str | None = None
    hosts: frozenset[str] = LOOPBACK
    origins: frozenset[str] = field(default_factory=frozenset)

    def refusal(self, path: str, headers: Headers) -> Refused | None:
        """Return why a request is turned away, before anything of it is looked at."""
        host = _host(headers.get("host", ""))
        # A page whose name was made to point to this machine has no key, so with one the name does not matter.
        if self.key is None and host not in self.hosts:
            return Refused(
                f"Requests for the host '{host}' are refused: use localhost, or start the server with a key.",
                status=403,
            )
        origin = headers.get("origin")
        if origin is not None and origin not in self.origins:
            return Refused(f"Pages of {origin} are not allowed here: mlxmtp serve --origins allows them.", status=403)
        if self.key is None or path in _OPEN:
            return None
        given = headers.get("authorization", "").removeprefix("Bearer ").strip(), headers.get("x-api-key", "")
        if any(hmac.compare_digest(one.encode("latin-1", "replace"), self.key.encode()) for one in given):
            return None
        return Refused("The API key is missing or wrong.", status=401, code="invalid_api_key")


class Gate:
    """An application behind a door; it answers preflights of allowed pages itself."""

    def __init__(self, app: ASGIApp, door: Door) -> None:
        self._app, self._door = app, door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers, path = Headers(scope=scope), scope["path"]
        origin = headers.get("origin")
        preflight = scope["method"] == "OPTIONS" and "access-control-request-method" in headers
        refused = self._door.refusal("/" if preflight else path, headers)
        if refused is not None:
            if origin is not None and origin in self._door.origins:  # else a page sees no status, only a failure
                send = _with(send, _cors(origin))
            await error_response(path, refused)(scope, receive, send)
        elif preflight and origin is not None:
            asked = headers.get("access-control-request-headers", "")
            allowed = {"Access-Control-Allow-Methods": "GET, POST", "Access-Control-Allow-Headers": asked}
            await Response(status_code=204, headers={**allowed, **_cors(origin)})(scope, receive, send)
        else:
            await self._app(scope, receive, send if origin is None else _with(send, _cors(origin)))


def _cors(origin: str) -> dict[str, str]:
    return {"Access-Control-Allow-Origin": origin, "Vary": "Origin"}


def _with(send: Send, headers: dict[str, str]) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(headers)
        await send(message)

    return sending


def _host(header: str) -> str:
    """Return the name in a Host header, without the port, in lower case."""
    try:
        return urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return ""


def origins_of(names: Iterable[str]) -> frozenset[str]:
    """Return origins as browsers send them."""
    return frozenset(name.strip().rstrip("/") for name in names if name.strip())
