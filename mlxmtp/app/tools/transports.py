"""Messages to and from tool servers, over pipes or HTTP, in bounded amounts. Imports the library, half a second."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from subprocess import PIPE
from typing import Any

import anyio
import anyio.to_thread
import httpx2
from anyio.abc import ByteReceiveStream, Process
from mcp.client.stdio import get_default_environment
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.message import SessionMessage
from mcp.types import jsonrpc_message_adapter

from mlxmtp.app.tools.processes import Groups, Tail
from mlxmtp.app.tools.server_list import ServerEntry

MOST = 32 * 2**20
"""Bytes of an answer over HTTP, or of what a process may write between two messages of ours."""
_GRACE, _PATIENCE = 0.2, 0.5  # seconds to end by itself, and then after SIGTERM
_REAPED = 5.0  # seconds in which a process that was killed is gone, however busy the machine

Streams = tuple[Any, Any]


@asynccontextmanager
async def spoken_to(entry: ServerEntry, tail: Tail, groups: Groups) -> AsyncGenerator[Streams, None]:
    """Start a server and yield the streams of its messages; it has ended when this is left. Raises OSError."""
    process = await anyio.open_process(
        [entry.command, *entry.args],
        env={**get_default_environment(), **entry.env},
        cwd=entry.cwd,
        stderr=PIPE,
        start_new_session=True,  # Ctrl+C at the terminal ends an answer, not the servers
    )
    groups.add(process.pid)
    from_server, received = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    to_send, to_server = anyio.create_memory_object_stream[SessionMessage](0)
    talk = _Talk(process, tail)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(talk.listen, from_server)
        tasks.start_soon(talk.speak, to_server)
        tasks.start_soon(talk.keep_stderr)
        try:
            yield received, to_send
        finally:
            with anyio.CancelScope(shield=True):
                await _ended(process, groups)
            tasks.cancel_scope.cancel()
    for stream in (from_server, received, to_send, to_server):
        stream.close()


class _Talk:
    """The pipes of one server."""

    def __init__(self, process: Process, tail: Tail) -> None:
        self._process, self._tail = process, tail
        self._unasked = 0

    async def listen(self, messages: Any) -> None:
        """Hand on its messages; what is none goes to the tail. One that floods us is heard no longer."""
        pipe = self._process.stdout
        assert pipe is not None
        with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):  # nobody takes them any more
            async with messages:
                async for line in self._lines(pipe):
                    try:
                        message = jsonrpc_message_adapter.validate_json(line, by_name=False)
                    except ValueError:  # many print a greeting
                        self._tail.add(b"\nno message: " + line[:200] + b"\n" if line.strip() else b"")
                    else:
                        await messages.send(SessionMessage(message))
        async for _ in pipe:  # a full pipe would keep it from ending
            pass

    async def _lines(self, pipe: ByteReceiveStream) -> AsyncIterator[bytes]:
        parts: list[bytes] = []
        async for chunk in pipe:
            self._unasked += len(chunk)
            if self._unasked > MOST:
                self._tail.add(b"\nmlxmtp: it wrote more than 32 MB without being asked, so it was ended.")
                self._process.kill()
                return
            parts.append(chunk)
            if b"\n" in chunk:
                *lines, rest = b"".join(parts).split(b"\n")
                parts = [rest]
                for line in lines:
                    yield line

    async def speak(self, messages: Any) -> None:
        assert self._process.stdin is not None
        async with messages:
            async for message in messages:
                self._unasked = 0
                text = message.message.model_dump_json(by_alias=True, exclude_unset=True)
                try:
                    await self._process.stdin.send(f"{text}\n".encode())
                except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                    return  # it has ended, which `listen` tells

    async def keep_stderr(self) -> None:
        assert self._process.stderr is not None
        async for chunk in self._process.stderr:
            self._tail.add(chunk)


async def _ended(process: Process, groups: Groups) -> None:
    """Close its input, wait for it, and end what is left of its group."""
    if process.stdin is not None:
        await process.stdin.aclose()
    await _over(process, _GRACE)
    await anyio.to_thread.run_sync(groups.end, _PATIENCE, [process.pid])
    await _over(process, _REAPED)
    with anyio.move_on_after(_PATIENCE):  # so that its pipes are closed here, too
        await process.wait()
    if (transport := getattr(getattr(process, "_process", None), "_transport", None)) is not None:
        transport.close()  # a process that left the group may hold a pipe; nothing public lets go of it
        await anyio.sleep(0.01)


async def _over(process: Process, patience: float) -> None:
    """Wait until it has ended, for so many seconds; its pipes, which a child of its may hold, are left alone."""
    with anyio.move_on_after(patience):
        while process.returncode is None:
            await anyio.sleep(0.01)


@asynccontextmanager
async def over_http(entry: ServerEntry) -> AsyncGenerator[Streams, None]:
    """Yield the streams of messages with a server that speaks HTTP, whose answers are bounded."""

    async def bounded(response: httpx2.Response) -> None:
        if response.headers.get("content-encoding", "identity") != "identity":
            raise ValueError("it compresses its answers, though asked not to")
        response.stream = _Bounded(response.stream)

    headers = {"Accept-Encoding": "identity", **entry.headers}
    timeout = httpx2.Timeout(10.0, read=300.0)
    hooks: dict[str, list[Callable[..., Any]]] = {"response": [bounded]}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=timeout, event_hooks=hooks) as client,
        streamable_http_client(entry.url, http_client=client) as streams,
    ):
        yield streams


class _Bounded(httpx2.AsyncByteStream):
    """A body that breaks off where it becomes too large."""

    def __init__(self, inner: Any) -> None:
        self._inner, self._left = inner, MOST

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._inner:
            self._left -= len(chunk)
            if self._left < 0:
                raise ValueError("its answer is larger than 32 MB")
            yield chunk

    async def aclose(self) -> None:
        await self._inner.aclose()
