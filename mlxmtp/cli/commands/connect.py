"""`mlxmtp connect`: settings of other programs for the server."""

import shlex
from typing import Annotated

from typer import Argument, Context, Option

from mlxmtp.cli.options import begin, takes
from mlxmtp.errors import UsageError
from mlxmtp.units import nearest


def client_names(incomplete: str) -> list[str]:
    """Return the programs that begin like that."""
    from mlxmtp.app.connect import CLIENTS

    return [name for name in CLIENTS if name.startswith(incomplete)]


@takes("connect", "url model ... no_color debug")
def connect(
    ctx: Context,
    client: Annotated[
        str,
        Argument(metavar="CLIENT", help="claude, codex, opencode, llm, zed or continue.", autocompletion=client_names),
    ],
    write_: Annotated[
        bool, Option("--write", help="Put them into the program's own file; a copy of that is kept beside it.")
    ] = False,
) -> None:
    """Settings with which another program works with a running server of mlxmtp.

    \b
    Examples:
      mlxmtp connect claude
      claude --settings "$(mlxmtp connect claude)"
      mlxmtp connect codex --write && codex --profile mlxmtp
      mlxmtp connect zed --url http://studio.local:8765

    The settings come on stdout, where they belong on stderr. The server must run: it says its model's name and context.
    With a key, the settings name MLXMTP_API_KEY, never the key itself.
    """
    from mlxmtp.app.connect import CLIENTS, Server, text_of, write
    from mlxmtp.app.endpoints import Endpoint
    from mlxmtp.app.remote import DEFAULT_URL, FIRST_BYTE

    loaded, out = begin(ctx)
    program = CLIENTS.get(client)
    if program is None:
        near = nearest(client, sorted(CLIENTS))
        advice = f"did you mean '{near}'?" if near else f"there are {', '.join(CLIENTS)}."
        raise UsageError(f"mlxmtp connect does not know '{client}': {advice}")
    configured = loaded.origins.get("url") != "flag"
    remote = Endpoint(url=loaded.settings.url or DEFAULT_URL, configured=configured).remote(FIRST_BYTE)
    named = loaded.settings.model if loaded.origins.get("model") == "flag" else None
    server = Server(remote.url, remote.model(named), remote.keyed)
    if not write_:
        out.write(text_of(program, server))
        out.line(f"# {program.title}: {program.path()}")
        then = program.then(server)
        again = ["mlxmtp", "connect", client]
        for flag, value in (("-m", named), ("--url", None if configured else loaded.settings.url)):
            again += [] if value is None else [flag, value]
        once = program.once.format(connect=shlex.join(again), then=then)
        out.line(f"# Or without it: {once}" if once else f"# Then: {then}")
        return
    done = write(program, server)
    kept = "" if done.backup is None else f" (before: {done.backup.name})"
    out.line(f"{program.title} works with {server.model.name} at {server.url}: {done.path}{kept}")
    out.line(f"Now: {program.then(server)}")
