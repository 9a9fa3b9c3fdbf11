"""The endpoints, and the way of a request through one of them."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from hashlib import sha256
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from mlxmtp.errors import LoadError
from mlxmtp.serve import chat_completions, messages, ollama, responses
from mlxmtp.serve.answers import EVENT_STREAM, About, Ending, Writer
from mlxmtp.serve.fields import Fields, Refused, read_json
from mlxmtp.serve.http import Door, Gate, Json, NoResponse, Outgoing, error_response, read_body
from mlxmtp.serve.models import Served
from mlxmtp.serve.request import AnswerRequest
from mlxmtp.serve.scheduler import Job
from mlxmtp.serve.service import AnswerFailed, Prepared, Service
from mlxmtp.version import installed_version


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A protocol's way to ask: how a body is read, and how the answer to it is written."""

    path: str
    read: Callable[[Fields], AnswerRequest]
    writer: Callable[[About, Fields], Writer]
    call_ids: str = "call_"
    too_long: Callable[[About, Fields, Refused], bytes] | None = None
    """A stream for a prompt that the context cannot hold, where clients heed that and no status."""


ENDPOINTS = (
    Endpoint("/v1/chat/completions", chat_completions.read, chat_completions.ChatStream),
    Endpoint("/v1/completions", chat_completions.read_plain, chat_completions.PlainStream),
    Endpoint("/v1/responses", responses.read, responses.ResponseStream, too_long=responses.too_long),
    Endpoint("/v1/messages", messages.read, messages.MessageStream, "toolu_"),
    Endpoint("/api/chat", ollama.read_chat, partial(ollama.OllamaStream, chat=True)),
    Endpoint("/api/generate", ollama.read_generate, partial(ollama.OllamaStream, chat=False)),
)


@dataclass(frozen=True, slots=True)
class Limits:
    """Bytes of a body, and seconds after which a stream without news says that it lives; None: never."""

    body: int = 32 * 2**20
    heartbeat: float | None = 10.0


class Answering(Response):
    """The answer to a request; a client that goes away ends it."""

    def __init__(
        self,
        service: Service,
        endpoint: Endpoint,
        prepared: Prepared,
        writer: Writer,
        jobs: Sequence[Job],
        limits: Limits,
    ) -> None:
        self._service, self._endpoint, self._limits = service, endpoint, limits
        self._prepared, self._writer, self._jobs = prepared, writer, jobs
        self.status_code = 200
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        write = self._stream(send) if self._prepared.request.stream else self._whole(scope, receive, send)
        tasks = [asyncio.ensure_future(write), asyncio.ensure_future(_disconnected(receive))]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._service.cancel(self._jobs)
            for task in tasks:
                task.cancel()
        with suppress(asyncio.CancelledError, OSError):  # the client is gone: there is nobody to tell
            await tasks[0]

    async def _stream(self, send: Send) -> None:
        writer = self._writer
        out = Outgoing(send, lambda: writer.heartbeat, self._limits.heartbeat)
        self._service.metrics.requests[self._endpoint.path, 200] += 1
        try:
            out.add(writer.start())
            await out.begin(writer.content_type)
            for index, job in enumerate(self._jobs):
                async for piece in self._service.pieces(job, self._prepared, self._endpoint.call_ids):
                    if isinstance(piece, Ending):
                        out.add(writer.end(index, piece))
                        continue
                    out.add(writer.piece(index, piece))
                    if job.events.empty():
                        await out.flush()
            out.add(writer.close())
            await out.end()
        except AnswerFailed as failed:
            out.add(writer.error(str(failed)))
            await out.end()
        finally:
            out.close()

    async def _whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            answers = await self._service.collect(self._jobs, self._prepared, self._endpoint.call_ids)
            response: Response = Json(self._writer.whole(answers))
        except AnswerFailed as failed:
            response = error_response(scope["path"], Refused(str(failed), status=500))
        self._service.metrics.requests[self._endpoint.path, response.status_code] += 1
        await response(scope, receive, send)


async def _disconnected(receive: Receive) -> None:
    """Return when the client has gone away."""
    while (await receive())["type"] != "http.disconnect":
        pass


class Routes:
    """The application: every endpoint on one service."""

    def __init__(self, service: Service, limits: Limits) -> None:
        self._service, self._limits = service, limits

    def app(self, door: Door) -> ASGIApp:
        """Return all of it behind a door."""
        routes = [Route(one.path, self._asking(one), methods=["POST"]) for one in ENDPOINTS]
        routes += [
            Route("/", self._home),
            Route("/health", self._health),
            Route("/metrics", self._metrics),
            Route("/v1/models", self._models),
            Route("/v1/models/{name:path}", self._model),
            Route("/v1/messages/count_tokens", self._count, methods=["POST"]),
            Route("/api/version", self._version),
            Route("/api/tags", self._tags),
            Route("/api/ps", self._ps),
            Route("/api/show", self._show, methods=["POST"]),
        ]
        handlers: dict[Any, Any] = {
            HTTPException: _http_error,
            Refused: _refused,
            ClientDisconnect: _silent,
            Exception: _unexpected,
        }
        return Gate(Starlette(routes=routes, exception_handlers=handlers), door)

    def _asking(self, endpoint: Endpoint) -> Callable[[Request], Any]:
        async def ask(request: Request) -> Response:
            try:
                body = await self._fields(request)
                wanted = endpoint.read(body)
                if not wanted.messages and wanted.raw is None:  # Ollama's way to have a model loaded
                    return await self._load(endpoint, wanted, body)
                prepared = await self._service.prepare(wanted)
                about = About(prepared.served.name, len(prepared.ids))
                writer = endpoint.writer(about, body)  # it may refuse the body, so before there are jobs
                jobs = self._service.submit(prepared)
            except Refused as error:
                self._service.metrics.requests[endpoint.path, error.status] += 1
                if error.code == "context_length_exceeded" and endpoint.too_long is not None and wanted.stream:
                    return Response(endpoint.too_long(about, body, error), media_type=EVENT_STREAM)
                raise
            return Answering(self._service, endpoint, prepared, writer, jobs, self._limits)

        return ask

    async def _fields(self, request: Request) -> Fields:
        return Fields(read_json(await read_body(request, self._limits.body)))

    async def _load(self, endpoint: Endpoint, wanted: AnswerRequest, body: Fields) -> Response:
        """Answer when the model is in memory; with a `keep_alive` of 0 it is freed instead, if nobody uses it."""
        if ends := body.table.get("keep_alive") in (0, "0", "0s"):
            served = await self._service.found(wanted.model)
            self._service.scheduler.release(served)
        else:
            served = await self._service.load(wanted.model)
        self._service.metrics.requests[endpoint.path, 200] += 1
        writer = ollama.OllamaStream(About(served.name), body, chat=endpoint.path == "/api/chat")
        return Json(writer.without_answer("unload" if ends else "load"))

    async def _count(self, request: Request) -> Response:
        wanted = messages.read(await self._fields(request), counting=True)
        prepared = await self._service.prepare(wanted)
        return Json({"input_tokens": len(prepared.ids)})

    async def _home(self, _: Request) -> Response:
        name = self._service.models.first.name
        return PlainTextResponse(f"mlxmtp serves {name}. The endpoints are in docs/server.md.\n")

    async def _health(self, _: Request) -> Response:
        scheduler = self._service.scheduler
        there = scheduler.in_memory
        found = {"status": scheduler.state, "model": self._service.models.first.name, "waiting": scheduler.waiting}
        found["loaded"] = None if there is None else there.name
        return Json(found, 503 if scheduler.state == "failed" else 200)

    async def _metrics(self, _: Request) -> Response:
        scheduler = self._service.scheduler
        text = self._service.metrics.text(waiting=scheduler.waiting, running=scheduler.running)
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    async def _models(self, _: Request) -> Response:
        listed = [_described(one) for one in await asyncio.to_thread(self._service.models.listed)]
        ends = {"first_id": listed[0]["id"], "last_id": listed[-1]["id"], "has_more": False}
        return Json({"object": "list", "data": listed, **ends})

    async def _model(self, request: Request) -> Response:
        return Json(_described(await self._service.found(request.path_params["name"])))

    async def _version(self, _: Request) -> Response:
        return Json({"version": ollama.VERSION, "mlxmtp": installed_version(missing="0.0.0")})

    async def _tags(self, _: Request) -> Response:
        return Json({"models": [_tag(one) for one in await asyncio.to_thread(self._service.models.listed)]})

    async def _ps(self, _: Request) -> Response:
        there = self._service.scheduler.in_memory
        return Json({"models": [] if there is None else [_tag(there)]})

    async def _show(self, request: Request) -> Response:
        body = await self._fields(request)
        served = await self._service.found(body.text("model", "") or body.text("name", ""))
        about = {"general.architecture": "gemma4", "general.basename": served.name}
        info = {**about, "gemma4.context_length": served.context}
        details = {"format": "mlx", "family": "gemma4", "families": ["gemma4"]}
        tokenizer = await self._service.tokenizer(served)
        capabilities = ["completion", *(["tools"] if tokenizer.declares_tools else []), "thinking", *_senses(served)]
        return Json({"details": details, "model_info": info, "capabilities": capabilities, "template": ""})


_MODALITIES = {"vision": "image", "audio": "audio"}


def _senses(served: Served) -> list[str]:
    """Return what a model reads beside text, in Ollama's words; nothing if its weights are not there yet."""
    with suppress(LoadError):
        read = {"vision": served.media.sees and "image" not in served.refused}
        read |= {"audio": served.media.hears and "audio" not in served.refused}
        return [name for name, reads in read.items() if reads]
    return []


def _described(served: Served) -> dict[str, Any]:
    return {
        "id": served.name,
        "object": "model",
        "type": "model",
        "display_name": served.name,
        "created": served.created,
        "created_at": _time(served.created),
        "owned_by": "mlxmtp",
        "max_model_len": served.context,
        "input_modalities": ["text", *(_MODALITIES[one] for one in _senses(served))],
    }


def _tag(served: Served) -> dict[str, Any]:
    name = served.name if ":" in served.name else f"{served.name}:latest"
    details = {"format": "mlx", "family": "gemma4", "families": ["gemma4"]}
    digest = sha256(served.name.encode()).hexdigest()  # Ollama's own client shows twelve of it, and ends without
    model = {"name": name, "model": name, "modified_at": _time(served.created), "size": 0, "digest": digest}
    return {**model, "details": {**details, "parameter_size": "", "quantization_level": ""}}


def _time(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


async def _refused(request: Request, error: Refused) -> Response:
    return error_response(request.url.path, error)


async def _silent(request: Request, error: ClientDisconnect) -> Response:
    return NoResponse()


async def _unexpected(request: Request, error: Exception) -> Response:
    """Answer for a fault of ours; what it was is told where the server runs."""
    return error_response(request.url.path, Refused("The server failed: its log says why.", status=500))


async def _http_error(request: Request, error: HTTPException) -> Response:
    """Answer for a path that is none, and for another method."""
    refused = Refused(f"{request.method} {request.url.path}: {error.detail}.", status=error.status_code)
    return error_response(request.url.path, refused)
