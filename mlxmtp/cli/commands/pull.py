"""`mlxmtp pull`, and the model and drafter that a command's settings mean."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mlxmtp.cli.options import takes
from mlxmtp.cli.start import begin
from mlxmtp.errors import ModelNotFound
from mlxmtp.hub.store import Store

if TYPE_CHECKING:
    from mlxmtp.cli.terminal.output import Output
    from mlxmtp.hub.store import Found, Store
    from mlxmtp.settings import Loaded, Settings


_CONTEXT = 4096


@takes("pull", "... yes quiet no_color debug")
def pull(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Alias (e2b, 12b:8bit) or org/repo.")],
    revision: Annotated[
        str | None, typer.Option("--revision", metavar="REV", help="Branch, tag or commit of the target.")
    ] = None,
    draft: Annotated[bool, typer.Option("--draft/--no-draft", help="Get the drafter, too.")] = True,
    convert: Annotated[bool, typer.Option("--convert", help="Get the 16-bit weights and convert them here.")] = False,
) -> None:
    """Download a model with its drafter, or bring it up to date.

    \b
    Examples:
      mlxmtp pull e2b
      mlxmtp pull 12b:8bit -y
      mlxmtp pull mlx-community/gemma-4-e4b-it-4bit --revision main
      mlxmtp pull e2b:qat --convert

    Shows first what it costs on disk and in memory; asks only on a terminal. An interrupted download goes on where it
    stopped, sizes and hashes are checked, and the commit is pinned until the next pull. Files go to the Hugging Face
    cache (HF_HOME), which other tools share; HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE are honoured.

    With --convert an alias means Google's own weights, packed here as its variant says. For other settings see
    mlxmtp convert.
    """
    from mlxmtp.cli import obtain

    loaded, out = begin(ctx)
    try:
        if convert:
            from mlxmtp.app.conversion import ConversionRequest

            request = ConversionRequest(name, draft=draft, revision=revision, update=True)
            done = obtain.convert(loaded, out, request)
        else:
            done = obtain.fetch(loaded, out, name, revision=revision, draft=draft)
        if not done:
            out.line("Nothing was downloaded.")
            raise typer.Exit(1)
    finally:
        out.settle()


def pick_target(loaded: Loaded, out: Output, store: Store, name: str | None) -> Found:
    """The model of that name; without one an installed model, else the built-in one, which says so.

    One that is not here can be downloaded now, if there is somebody to ask. Raises ModelNotFound.
    """
    if name is not None:
        return _named(loaded, out, store, name)
    installed = store.default()
    if installed is not None:
        return installed
    out.note(_built_in_note())
    return store.resolve("pocket")


def pick_drafter(settings: Settings, out: Output, store: Store, found: Found, *, off: bool) -> Found | None:
    """The drafter the settings mean for a target; `off` is none. Raises ModelNotFound for one that is not here."""
    wanted: str | Literal[False] | None = settings.draft_model
    if settings.draft is False or off:
        wanted = False
    drafter = store.drafter_for(found, wanted)
    if drafter is None and wanted is None:
        if settings.draft:
            raise ModelNotFound(f"There is no drafter for '{found.name}' here: name one with --draft-model.")
        if out.error_terminal:
            out.note(f"There is no drafter for '{found.name}' here, so it decodes without one.")
    return drafter


def _named(loaded: Loaded, out: Output, store: Store, name: str) -> Found:
    try:
        return store.resolve(name)
    except ModelNotFound as missing:
        from mlxmtp.cli.obtain import offer

        offer(loaded, out, name, missing)
        return store.resolve(name)


def _built_in_note() -> str:
    """One line: who answers, and the command that gets a model for this machine."""
    from mlxmtp.hub.store import best_fit
    from mlxmtp.machine.memory import machine_memory
    from mlxmtp.units import format_bytes

    note = "No model is installed, so the built-in pocket answers: a demonstration, small and often wrong."
    best = best_fit(machine_memory())
    if best is None or best.target.size is None:
        return note
    return f"{note} {best.title} ({format_bytes(best.target.size)}) fits this machine. Run: mlxmtp pull {best.name}"
