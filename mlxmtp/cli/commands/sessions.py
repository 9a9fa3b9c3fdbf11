"""`mlxmtp sessions`: the saved conversations."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from mlxmtp.cli.options import Json, Unasked, begin, can_ask, confirmed, session_ids, takes
from mlxmtp.cli.terminal.output import Output, show_table
from mlxmtp.errors import MlxmtpError, UsageError
from mlxmtp.settings import Loaded, choice
from mlxmtp.units import ago, format_bytes, text_width

if TYPE_CHECKING:
    from mlxmtp.chat.history import History
    from mlxmtp.chat.sessions import Sessions, Summary

app = typer.Typer(rich_markup_mode=None, invoke_without_command=True)

_ID = "Id, the beginning of one, or a saved name."
Id = Annotated[str, Argument(metavar="ID", help=_ID, autocompletion=session_ids)]
Ids = Annotated[list[str], Argument(metavar="ID", help="Ids, or saved names.", autocompletion=session_ids)]


@app.callback()
@takes("sessions", "... no_color debug")
def sessions(ctx: typer.Context, json: Json = False) -> None:
    """Saved conversations: without a command, list them.

    \b
    Examples:
      mlxmtp sessions
      mlxmtp sessions show 3f9a
      mlxmtp sessions export 3f9a talk.md
    """
    if ctx.invoked_subcommand is None:
        _list(ctx, json=json)
    elif json:
        raise UsageError("--json stands behind the command: mlxmtp sessions ls --json.")


@app.command("ls", short_help="List them, the latest first.")
@takes("sessions ls", "... no_color debug")
def ls(ctx: typer.Context, json: Json = False) -> None:
    """List the saved conversations, the latest first.

    \b
    Examples:
      mlxmtp sessions ls
      mlxmtp sessions ls --json | jq -r '.sessions[].id'
    """
    _list(ctx, json=json)


@app.command("show", short_help="What was said.")
@takes("sessions show", "... plain no_color debug")
def show(ctx: typer.Context, wanted: Id, json: Json = False) -> None:
    """What was said in a conversation, as markdown: drawn on a terminal, raw in a pipe.

    \b
    Examples:
      mlxmtp sessions show 3f9a
      mlxmtp sessions show 3f9a | less
    """
    from mlxmtp.chat.transcript import as_markdown, as_table, as_text
    from mlxmtp.cli.terminal.presenters import write_document

    loaded, out = begin(ctx, repairs=True)
    history, session = _read(loaded, out, wanted)
    if json:
        out.write(as_text(as_table(history, session)))
        return
    text = as_markdown(history, session)
    if loaded.settings.plain:
        out.write(text)
    else:
        write_document(out, text)


@app.command("rm", short_help="Delete some.")
@takes("sessions rm", "... no_color debug")
def rm(ctx: typer.Context, wanted: Ids, yes: Unasked = False) -> None:
    """Delete conversations from the disk.

    \b
    Examples:
      mlxmtp sessions rm 3f9a
      mlxmtp sessions rm -y 3f9a 77b0
    """
    loaded, out = begin(ctx, repairs=True)
    store = _store(loaded)
    found = list({one.id: one for one in map(store.find_any, wanted)}.values())
    for one in found:
        out.line(f"{one.id}  {format_bytes(one.size):>8}  {one.name or one.title}")
    if not yes:
        if not can_ask(out):
            raise UsageError("There is nobody to ask: confirm with -y.")
        if not confirmed(out, f"Delete {_counted(len(found))}?", default=False):
            out.line("Nothing was deleted.")
            raise typer.Exit(1)
    freed = 0
    refusals: list[MlxmtpError] = []
    for one in found:
        try:
            freed += store.remove(one)
        except MlxmtpError as error:
            refusals.append(error)
    if len(refusals) < len(found):
        out.write(f"{format_bytes(freed)} freed.\n")
    if refusals:
        raise MlxmtpError(" ".join(map(str, refusals)))


@app.command("export", short_help="Write one as markdown or JSON.")
@takes("sessions export", "... no_color debug")
def export(
    ctx: typer.Context,
    wanted: Id,
    file: Annotated[str | None, Argument(metavar="FILE", help="Ends in .md or .json; without it, stdout.")] = None,
    form: Annotated[
        str | None, Option("--format", metavar="md|json", help="For stdout; md by default."), choice("md", "json")
    ] = None,
    force: Annotated[bool, Option("--force", help="Write over FILE.")] = False,
) -> None:
    """Write a conversation as a document: markdown has what was said, JSON also material, thoughts and numbers.

    \b
    Examples:
      mlxmtp sessions export 3f9a talk.md
      mlxmtp sessions export 3f9a --format json | jq .exchanges
    """
    from mlxmtp.chat import transcript

    ending = (file or "").lower().rpartition(".")[2]
    if form is not None and ending in ("md", "json") and ending != form:
        raise UsageError(f"{file} ends in .{ending}, but --format says {form}: take one of the two.")
    loaded, out = begin(ctx, repairs=True)
    history, session = _read(loaded, out, wanted)
    if file is not None:
        way_out = "take another name, or write over it with --force"
        transcript.export(history, file, session, overwrite=force, way_out=way_out)
    elif form == "json":
        out.write(transcript.as_text(transcript.as_table(history, session)))
    else:
        out.write(transcript.as_markdown(history, session))


def _list(ctx: typer.Context, *, json: bool) -> None:
    from mlxmtp.cli.terminal.presenters import as_json

    loaded, out = begin(ctx, repairs=True)
    listing = _store(loaded).listing()
    for remark in listing.remarks:
        out.note(remark)
    total = sum(one.size for one in listing.sessions)
    if json:
        rows = [{**asdict(one), "path": str(one.path)} for one in listing.sessions]
        out.write(as_json({"sessions": rows, "total_bytes": total}))
        return
    show_list(out, listing.sessions)
    out.line(f"{_counted(len(listing.sessions))}, {format_bytes(total)} on disk")


def show_list(out: Output, sessions: Sequence[Summary]) -> None:
    """Write the table; titles are cropped to a terminal's width."""
    from mlxmtp.chat.history import title_of

    now = time.time()
    header = ["ID", "UPDATED", "TURNS", "MODEL", "NAME", "TITLE"]
    rows = [
        [one.id, ago(one.updated, now), str(one.turns), one.model.rstrip("/").rpartition("/")[2], one.name or ""]
        for one in sessions
    ]
    titles = [one.title for one in sessions]
    if out.terminal:
        before = sum(max(text_width(row[at]) for row in [header, *rows]) + 2 for at in range(5))
        titles = [title_of(text, max(20, out.size()[0] - before)) for text in titles]
    show_table(out, header, [[*row, text] for row, text in zip(rows, titles, strict=True)], right=(2,))


def _counted(count: int) -> str:
    return f"{count} session{'s' if count != 1 else ''}"


def _store(loaded: Loaded) -> Sessions:
    from mlxmtp.chat.sessions import Sessions

    return Sessions(loaded.places.sessions)


def _read(loaded: Loaded, out: Output, wanted: str) -> tuple[History, str]:
    """Return a session's history and its id; what of it cannot be read is said."""
    store = _store(loaded)
    summary = store.find(wanted)
    found = store.read(summary)
    for remark in found.remarks:
        out.note(remark)
    return found.conversation.history, summary.id
