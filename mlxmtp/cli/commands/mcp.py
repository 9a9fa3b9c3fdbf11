"""`mlxmtp mcp`: tool servers for chat and ask."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from mlxmtp.cli.options import Json, begin, takes
from mlxmtp.cli.terminal.output import Output, show_table
from mlxmtp.errors import MlxmtpError, UsageError
from mlxmtp.settings import Loaded

if TYPE_CHECKING:
    from mlxmtp.app.tools.mcp_servers import Server
    from mlxmtp.app.tools.server_list import ServerList

app = typer.Typer(rich_markup_mode=None, invoke_without_command=True)

Name = Annotated[str, Argument(metavar="NAME", help="What --tools calls it.")]
_AS_IT_IS = {"allow_interspersed_args": False}  # options behind the command are the command's


@app.callback()
@takes("mcp", "... no_color debug")
def mcp(ctx: typer.Context, json: Json = False) -> None:
    """Tool servers (Model Context Protocol) that chat and ask may use: without a command, list them.

    \b
    Examples:
      mlxmtp mcp add notes npx -y @modelcontextprotocol/server-filesystem ~/notes
      mlxmtp mcp add far https://tools.example.com/mcp
      mlxmtp mcp check
      mlxmtp ask --tools notes "What did I plan for May?"
    """
    if ctx.invoked_subcommand is None:
        _list(ctx, json=json)
    elif json:
        raise UsageError("--json stands behind the command: mlxmtp mcp ls --json.")


@app.command("ls", short_help="List them.")
@takes("mcp ls", "... no_color debug")
def ls(ctx: typer.Context, json: Json = False) -> None:
    """List the tool servers, without starting them.

    \b
    Examples:
      mlxmtp mcp ls
      mlxmtp mcp ls --json | jq -r '.servers[].name'

    They stand in mcp.json beside the config file, in the form that other programs use:
    what a server's page says about "mcpServers" can be pasted there.
    """
    _list(ctx, json=json)


@app.command("add", short_help="Name one.", context_settings=_AS_IT_IS)
@takes("mcp add", "name words ... no_color debug")
def add(
    ctx: typer.Context,
    name: Name,
    words: Annotated[list[str], Argument(metavar="COMMAND|URL", help="The program that serves, or an address.")],
    env: Annotated[
        list[str] | None, Option("-e", "--env", metavar="KEY=VALUE", help="For the program; can be repeated.")
    ] = None,
    header: Annotated[
        list[str] | None, Option("--header", metavar="'KEY: VALUE'", help="For the address; can be repeated.")
    ] = None,
    force: Annotated[bool, Option("--force", help="In place of one with that name.")] = False,
) -> None:
    """Name a tool server; options come before its name. Nothing is started yet.

    \b
    Examples:
      mlxmtp mcp add time uvx mcp-server-time
      mlxmtp mcp add -e 'API_KEY=${API_KEY}' search npx -y some-search-server
      mlxmtp mcp add --header 'Authorization: Bearer ${TOKEN}' far https://tools.example.com/mcp

    ${NAME} is replaced by the environment's value when the server is started, so that no key stands in the file.
    """
    from mlxmtp.app.tools.approval import Approvals
    from mlxmtp.app.tools.chosen import BUILT_IN, approvals_file
    from mlxmtp.app.tools.server_list import ServerEntry

    loaded, out = begin(ctx, repairs=True)
    if words[0] == "--":
        words = words[1:]
    if not words or words[0].startswith("-"):
        raise UsageError("Options come before the name: mlxmtp mcp add -e KEY=VALUE NAME COMMAND...")
    variables, headers = _pairs(env, "=", "--env KEY=VALUE"), _pairs(header, ":", "--header 'KEY: VALUE'")
    if words[0].startswith(("http://", "https://")):
        if words[1:] or variables:
            raise UsageError("An address takes --header, and nothing behind it.")
        entry = ServerEntry(name, url=words[0], headers=headers)
    elif headers:
        raise UsageError("--header is for an address; a program takes --env.")
    else:
        entry = ServerEntry(name, words[0], tuple(words[1:]), variables)
    servers = _servers(loaded)
    servers.add(entry, overwrite=force)
    if force:
        Approvals(approvals_file(loaded)).revoke(name)  # it was allowed to another one
    called = f"mcp={name}" if name in BUILT_IN else name
    out.line(f"{name} is in {servers.file}. Try it: mlxmtp mcp check {name}; use it: mlxmtp chat --tools {called}")


@app.command("rm", short_help="Forget one.")
@takes("mcp rm", "... no_color debug")
def rm(ctx: typer.Context, name: Name) -> None:
    """Take a tool server out of the list, with all that it was allowed for good.

    \b
    Examples:
      mlxmtp mcp rm notes
    """
    from mlxmtp.app.tools.approval import Approvals
    from mlxmtp.app.tools.chosen import approvals_file

    loaded, out = begin(ctx, repairs=True)
    _servers(loaded).remove(name)
    Approvals(approvals_file(loaded)).revoke(name)
    out.line(f"{name} is forgotten.")


@app.command("check", short_help="Start them and list their tools.")
@takes("mcp check", "... no_color debug")
def check(
    ctx: typer.Context,
    names: Annotated[list[str] | None, Argument(metavar="NAME", help="By default all that are not disabled.")] = None,
    json: Json = False,
) -> None:
    """Start tool servers, list their tools, end them. Shows what they wrote for people where one does not work.

    \b
    Examples:
      mlxmtp mcp check
      mlxmtp mcp check notes

    Exit codes: 0 all work, 1 one does not.
    """
    from mlxmtp.app.tools.mcp_servers import Servers
    from mlxmtp.cli.calls import in_use
    from mlxmtp.cli.terminal.presenters import as_json

    loaded, out = begin(ctx, repairs=True)
    servers = _servers(loaded)
    entries = [servers.find(name) for name in names] if names else [one for one in servers.entries() if not one.off]
    if not entries:
        raise UsageError(f"No tool server in {servers.file} is to be started: mlxmtp mcp add names one.")
    out.progress(f"starting {', '.join(one.name for one in entries)}")
    running = Servers(entries)
    with in_use(running):
        running.wait()
        out.clear_progress()
        if json:
            out.write(as_json({"servers": [one.as_table() for one in running.all]}))
        else:
            for one in running.all:
                _show(out, one, debug=bool(loaded.settings.debug))
    broken = [one.entry.name for one in running.all if one.failure]
    if broken:
        raise MlxmtpError(f"{', '.join(broken)}: no tools. Check the command, its environment and what it wrote above.")


def _list(ctx: typer.Context, *, json: bool) -> None:
    from mlxmtp.cli.terminal.presenters import as_json

    loaded, out = begin(ctx, repairs=True)
    servers = _servers(loaded)
    entries = servers.entries()
    if json:
        rows = [{"name": one.name, "runs": one.shown, "off": one.off} for one in entries]
        out.write(as_json({"file": str(servers.file), "servers": rows}))
        return
    if entries:
        show_table(out, ["NAME", "RUNS"], [[one.name, f"{'off: ' if one.off else ''}{one.shown}"] for one in entries])
    out.line(f"{len(entries)} tool server{'' if len(entries) == 1 else 's'} in {servers.file}")


def _servers(loaded: Loaded) -> ServerList:
    from mlxmtp.app.tools.chosen import server_list

    return server_list(loaded)


def _pairs(given: list[str] | None, mark: str, wanted: str) -> dict[str, str]:
    split = [text.partition(mark) for text in given or ()]
    for key, between, value in split:
        if not (key.strip() and between):
            raise UsageError(f"{wanted} is wanted, not '{key}{between}{value}'.")
    return {key.strip(): value.strip() if mark == ":" else value for key, _, value in split}


def _show(out: Output, server: Server, *, debug: bool) -> None:
    """Write what a server offers, or why it does not."""
    from mlxmtp.chat.history import title_of

    name, columns = server.entry.name, out.size()[0]
    if server.failure:
        out.write(f"{name}: {server.failure}\n")
    else:
        title = f" ({server.title})" if server.title else ""
        out.write(f"{name}{title}: {len(server.tools)} tools in {server.seconds:.1f} s\n")
    width = max((len(one.name) for one in server.tools), default=0)
    for one in server.tools:
        out.write(f"  {one.name:{width}}  {title_of(one.description, max(20, columns - width - 4))}\n")
    for text in server.left_out:
        out.write(f"  left out: {title_of(text)}\n")
    if server.tail.text and (server.failure or debug):
        out.write("".join(f"  | {line}\n" for line in server.tail.text.split("\n")))
