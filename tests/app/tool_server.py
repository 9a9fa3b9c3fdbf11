"""A tool server for the tests: `tool_server.py [http PORT]`; over pipes without."""

from __future__ import annotations

import asyncio
import os
import sys
import time

from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError

server = MCPServer("kitchen", version="1.2")


@server.tool()
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@server.tool()
def say(text: str, times: int = 1) -> str:
    """Say a text."""
    return text * times


@server.tool()
def fail(why: str) -> str:
    """Fail."""
    raise ToolError(why)


@server.tool()
async def slow(seconds: float, ctx: Context) -> str:
    """Take its time."""
    began = time.monotonic()
    try:
        while (spent := time.monotonic() - began) < seconds:
            await ctx.report_progress(spent, seconds, "stirring")
            await asyncio.sleep(0.05)
    except asyncio.CancelledError:
        sys.stderr.write("cancelled\n")
        raise
    return "done"


@server.tool()
def where() -> str:
    """Say which process this is."""
    return str(os.getpid())


if __name__ == "__main__":
    sys.stderr.write("serving\n")
    if sys.argv[1:2] == ["http"]:
        server.run("streamable-http", port=int(sys.argv[2]))
    else:
        server.run("stdio")
