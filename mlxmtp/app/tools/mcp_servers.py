"""Tool servers (Model Context Protocol) while a command lasts: started, listed, called and ended.

All of it happens on a thread with a loop of its own. Whatever a server says is a stranger's: it is bounded here, and
cleaned where it is shown or read (`toolbox.cleaned`, the tokenizer).
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from shutil import which
from threading import Event, Thread
from typing import TYPE_CHECKING, Any, Self

from mlxmtp.app.tools.processes import Groups, Tail
from mlxmtp.app.tools.server_list import ServerEntry
from mlxmtp.app.tools.toolbox import LONGEST, Running, Tool, ToolError, cleaned
from mlxmtp.engine.declarations import declaration, unwritable
from mlxmtp.errors import ConfigError, UsageError
from mlxmtp.version import installed_version

if TYPE_CHECKING:
    from mcp import Client
    from mcp.types import CallToolResult

START, RENEW, CLOSE = 30.0, 5.0, 1.5
"""Seconds that servers have to start and list their tools, to list them again, and to end."""
_OLDEST = (2, 3)
_MOST_TOOLS, _MOST_PAGES, _LARGEST_SCHEMA, _MOST_ITEMS = 200, 50, 64_000, 1000
_TOOL_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]{0,127}")
_CHANGED = "notifications/tools/list_changed"


def require_library() -> None:
    """Raise UsageError unless the library that speaks to tool servers is there."""
    found = installed_version("mcp", "0") if find_spec("mcp") is not None else "0"
    if tuple(int(part) for part in re.findall(r"\d+", found)[:2]) < _OLDEST:
        raise UsageError("Tool servers need the library mcp, 2.3 or newer. Run: pip install 'mlxmtp[mcp]'")


@dataclass(eq=False)
class Server:
    """One server and what is known of it."""

    entry: ServerEntry  # with the values of variables
    tail: Tail
    shown: str = ""  # its address as the file has it: a variable may hold a key
    tools: Sequence[Tool] = ()
    title: str = ""  # as it calls itself, with its version
    left_out: list[str] = field(default_factory=list)  # tools that cannot be offered, with the reason
    failure: str = ""
    seconds: float = 0.0  # until its tools were listed
    ready: Event = field(default_factory=Event)  # it has listed its tools, or failed
    changed: bool = False  # it says that its tools are others now
    listing: asyncio.Lock = field(default_factory=asyncio.Lock)  # calls side by side wait for one to learn of a change
    client: Client | None = None
    task: asyncio.Task[None] | None = None

    @classmethod
    def of(cls, entry: ServerEntry) -> Self:
        """Return a server with the environment's values, which fails if one is not set."""
        try:
            return cls(entry.filled(), Tail(), entry.url)
        except ConfigError as error:
            server = cls(entry, Tail(), entry.url)
            server.fail(error)
            server.ready.set()
            return server

    @property
    def complaint(self) -> str:
        """A sentence on why there is nothing of it, with the last words that it wrote for people; empty if there is."""
        late = "" if self.ready.is_set() or not self.seconds else "it has not listed its tools again so far"
        if not (failure := self.failure or late):
            return ""
        last = self.tail.text.rsplit("\n", 1)[-1][:200]
        more = f" It wrote: {last}" if last else ""
        return f"The tool server '{self.entry.name}' does not work: {failure}.{more}"

    def fail(self, error: BaseException) -> None:
        """Keep why it does not work, as the end of a sentence; the first reason stands."""
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        text = str(error).split("For further information")[0].removeprefix(f"The tool server '{self.entry.name}' ")
        text = text.replace(self.entry.url, self.shown) if self.entry.url else text
        said = " ".join(cleaned(text, 300).split()).rstrip(".")
        said = (said or type(error).__name__) + (f" ({self.shown})" if self.shown else "")
        if isinstance(error, FileNotFoundError):
            folder = f", or no folder {self.entry.cwd}" if self.entry.cwd else ""
            said = f"there is no program '{self.entry.command}'{folder}"
        self.failure = self.failure or said

    def as_table(self) -> dict[str, Any]:
        """Return what is known of it, ready for JSON."""
        return {
            "name": self.entry.name,
            "title": self.title,
            "works": not self.failure,
            "failure": self.failure,
            "seconds": round(self.seconds, 3),
            "tools": [{"name": one.name, "description": one.description} for one in self.tools],
            "left_out": self.left_out,
            "stderr": self.tail.text,
        }


class Servers:
    """Servers on a thread of their own, from here on until `close`."""

    def __init__(self, entries: Sequence[ServerEntry]) -> None:
        """Begin to start them; `wait` waits for it. Raises UsageError without the library."""
        require_library()
        self.all = [Server.of(one) for one in entries]
        for one in self.all:
            command = one.entry.command
            if command and "/" not in command and which(command, path=one.entry.env.get("PATH")) is None:
                one.fail(FileNotFoundError())  # known at once, before anything is imported
                one.ready.set()
        self._groups = Groups()
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(lambda *_: None)  # told where somebody waits; nothing else writes to stderr
        for name in ("mcp", "client", "asyncio", "httpx2"):
            logging.getLogger(name).addHandler(logging.NullHandler())
        self._over = asyncio.Event()
        self._thread = Thread(target=self._run, name="mlxmtp-tool-servers", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Wait until every server has listed its tools, has failed or is given up."""
        deadline = time.monotonic() + START
        for one in self.all:
            if not one.ready.wait(max(0.0, deadline - time.monotonic())):
                one.failure = _late()
                one.ready.set()
                if one.task is not None:
                    self._loop.call_soon_threadsafe(one.task.cancel)

    def renew(self) -> None:
        """List the tools of all servers again; one that has ended is started again, each time once. After `wait`.

        One that takes long for that is there with a later call.
        """

        async def restart(server: Server) -> None:
            if (task := server.task) is not None:
                task.cancel()
                await asyncio.wait([task])
            if server.task is not task:  # a question before has waited for the same end
                return
            server.failure = ""
            server.ready.clear()
            server.task = asyncio.create_task(self._serve(server))

        ended = [one for one in self.all if one.seconds and one.task is not None and one.task.done()]
        waiting = [(one, self._begin(self._list(one))) for one in self.all if one.client is not None]
        deadline = time.monotonic() + RENEW
        for server, listing in waiting:
            try:
                listing.result(max(0.0, deadline - time.monotonic()))
            except NotYet:  # its tools stay as they were; a call will tell what is wrong
                listing.cancel()
            except Exception:  # noqa: BLE001  (its end, told if there is no other beginning)
                ended.append(server)
        again = [(server, self._begin(restart(server))) for server in ended]
        deadline = time.monotonic() + RENEW
        for server, beginning in again:
            with suppress(NotYet):  # its `complaint` says so
                beginning.result(max(0.0, deadline - time.monotonic()))
                server.ready.wait(max(0.0, deadline - time.monotonic()))

    def close(self) -> None:
        """End all servers in order, or soon without."""
        with suppress(RuntimeError):  # the loop has ended with the last of them
            self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(CLOSE)
        self.kill()

    def kill(self) -> None:
        """End all servers at once; for a signal's handler, too."""
        self._groups.end(0.3)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)

        async def serve_all() -> None:
            for one in self.all:
                one.task = None if one.failure else asyncio.create_task(self._serve(one))
            await self._over.wait()
            await asyncio.gather(*(one.task for one in self.all if one.task is not None), return_exceptions=True)

        try:
            self._loop.run_until_complete(serve_all())
        finally:
            self._loop.close()

    def _begin(self, work: Coroutine[Any, Any, Any]) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _serve(self, server: Server) -> None:
        """Speak to one server until all is over or it ends."""
        from mcp import Client
        from mcp.types import Implementation

        from mlxmtp.app.tools.transports import over_http, spoken_to

        began, entry = time.monotonic(), server.entry

        async def noticed(message: Any) -> None:
            server.changed = server.changed or getattr(message, "method", "") == _CHANGED

        async def unchecked(name: str, result: CallToolResult) -> None:
            """Take a result as it is."""

        about, patience = Implementation(name="mlxmtp", version=installed_version()), asyncio.timeout(START)
        try:
            speaks = over_http(entry) if entry.url else spoken_to(entry, server.tail, self._groups)
            async with (
                patience,
                Client(speaks, client_info=about, message_handler=noticed, cache=None) as client,
            ):
                # It would check results by the server's own expressions, and one that never ends stops every thread.
                setattr(client.session, "validate_tool_result", unchecked)  # noqa: B010
                info = client.server_info
                server.title = "" if info is None else cleaned(f"{info.name} {info.version}", 80)
                server.client = client
                await self._list(server)
                patience.reschedule(None)
                server.seconds = time.monotonic() - began
                server.ready.set()
                await self._over.wait()
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001  (told where somebody waits)
            server.fail(ToolError(_late()) if patience.expired() else error)
        finally:
            server.client, server.tools = None, ()
            server.ready.set()

    async def _list(self, server: Server) -> None:
        """Take in a server's tools as they are now."""
        client = server.client
        assert client is not None
        changed, cursor, found, left_out = server.changed, None, list[Tool](), list[str]()
        server.changed = False
        try:
            for _ in range(_MOST_PAGES):
                page = await client.list_tools(cursor=cursor)
                for one in page.tools[: _MOST_TOOLS - len(found)]:
                    try:
                        found.append(self._tool(server, one, left_out))
                    except ValueError as error:
                        left_out.append(str(error))
                if len(found) >= _MOST_TOOLS:
                    left_out.append(f"all behind the first {_MOST_TOOLS}")
                cursor = page.next_cursor
                if not cursor or len(found) >= _MOST_TOOLS:
                    break
        except BaseException:  # the next call has to look
            server.changed = server.changed or changed
            raise
        server.tools, server.left_out = found, left_out

    def _tool(self, server: Server, told: Any, left_out: list[str]) -> Tool:
        """Return a tool as a server tells of it; `left_out` gets arguments that no call can have.

        Raises ValueError for one that cannot be offered.
        """
        if not _TOOL_NAME.fullmatch(told.name):
            raise ValueError(f"{cleaned(told.name, 40)!r} (no usable name)")
        declared: dict[str, Any] | None = None
        with suppress(UsageError, RecursionError):
            if len(json.dumps(told.input_schema)) <= _LARGEST_SCHEMA:
                declared = declaration(told.name, "", told.input_schema, told.name)
        if declared is None:
            raise ValueError(f"{told.name} (its schema is too large)")
        if lost := [*unwritable(declared["function"]["parameters"])]:
            names = cleaned(", ".join(dict.fromkeys(name for name, _ in lost))[:100])
            if any(needed for _, needed in lost):
                raise ValueError(f"{told.name} (no call can have its arguments {names})")
            left_out.append(f"arguments of {told.name} that no call can have ({names})")
        entry, description = server.entry, told.description or told.title or ""
        tool = Tool(entry.name, told.name, description, told.input_schema, lambda *_: "", origin=entry.origin)
        return replace(tool, run=partial(self._call, server, tool.fingerprint, told.name))

    def _call(self, server: Server, agreed: str, name: str, arguments: Mapping[str, Any], running: Running) -> str:
        """Call a tool, if it is still the one that was agreed to, until it answers or nobody waits any more."""
        coming = self._begin(self._answer(server, agreed, name, arguments, running))
        running.on_stop = coming.cancel  # the server is told
        if running.over:  # since before that
            coming.cancel()
        return str(coming.result())

    async def _answer(
        self, server: Server, agreed: str, name: str, arguments: Mapping[str, Any], running: Running
    ) -> str:
        from mcp import MCPError

        client = server.client
        if client is None:
            raise ToolError(server.complaint or f"The tool server '{server.entry.name}' has ended.")
        async with server.listing:
            if server.changed:
                await self._list(server)
        if agreed not in {one.fingerprint for one in server.tools}:
            raise ToolError(f"{name} is another tool now than the one that was declared, so it was not run.")

        async def progressed(progress: float, total: float | None, message: str | None) -> None:
            running.progress = cleaned(f"{progress:g}{f' of {total:g}' if total else ''} {message or ''}".strip(), 100)

        try:
            result = await client.call_tool(name, dict(arguments), progress_callback=progressed)
        except MCPError as error:
            raise ToolError(f"The tool server '{server.entry.name}' failed: {error}") from error
        text = "\n".join(texts_of(result))
        if result.is_error:
            raise ToolError(text or "It failed, and does not say why.")
        return text


def _late() -> str:
    return f"it did not list its tools within {START:.0f} seconds"


def texts_of(result: CallToolResult) -> Iterator[str]:
    """Yield the texts of a result; of all else a line that says what it is."""
    for one in result.content[:_MOST_ITEMS]:
        inner = getattr(one, "resource", None)
        text = getattr(one, "text", getattr(inner, "text", None))
        where = getattr(one, "uri", None) or getattr(inner, "uri", None)
        kind = getattr(one, "mime_type", None) or getattr(inner, "mime_type", None)
        about = ", ".join(str(part) for part in (kind, where) if part)
        yield text if isinstance(text, str) else f"[{one.type}{f': {about}' if about else ''}]"
    if len(result.content) > _MOST_ITEMS:
        yield f"[{len(result.content) - _MOST_ITEMS} more]"
    if not result.content and result.structured_content is not None:
        yield json.dumps(result.structured_content, ensure_ascii=False)[: 2 * LONGEST]
