"""`mlxmtp pull`, and the same offered by commands that miss a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from mlxmtp.cli import options
from mlxmtp.cli.start import begin, can_ask
from mlxmtp.cli.terminal import keyboard
from mlxmtp.errors import DownloadError, ModelNotFound, UsageError
from mlxmtp.hub.registry import BUILT_IN, find_entry
from mlxmtp.hub.store import Store
from mlxmtp.units import format_bytes

if TYPE_CHECKING:
    from mlxmtp.cli.terminal.output import Output
    from mlxmtp.hub.plan import Plan
    from mlxmtp.settings import Loaded

_CONTEXT = 4096


def pull(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Alias (e2b, 12b:8bit) or org/repo.")],
    revision: Annotated[
        str | None, typer.Option("--revision", metavar="REV", help="Branch, tag or commit of the target.")
    ] = None,
    draft: Annotated[bool, typer.Option("--draft/--no-draft", help="Get the drafter, too.")] = True,
    convert: Annotated[bool, typer.Option("--convert", help="Get the 16-bit weights and convert them here.")] = False,
    yes: options.Yes = None,
    quiet: options.Quiet = None,
    no_color: options.NoColor = None,
    debug: options.Debug = False,
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
    loaded, out = begin(ctx, yes=yes, quiet=quiet, no_color=no_color)
    try:
        if convert:
            from mlxmtp.cli.commands.convert import Request, run

            done = run(loaded, out, Request(name, draft=draft, revision=revision, fetch=True))
        else:
            done = fetch(loaded, out, name, revision=revision, draft=draft)
        if not done:
            out.line("Nothing was downloaded.")
            raise typer.Exit(1)
    finally:
        out.settle()


def offer(loaded: Loaded, out: Output, name: str, missing: ModelNotFound) -> None:
    """Download what a command misses, after asking. Raises `missing` again if nobody can be asked, or the answer is no.

    `name` is what the user said; with `yes` in the settings nobody is asked.
    """
    meant = Store(loaded.places, loaded.aliases).meaning(name)
    downloadable = find_entry(meant) is not None or _is_repo(meant)
    if not downloadable or not (loaded.settings.yes or can_ask(out)):
        raise missing
    if not fetch(loaded, out, name, quiet_end=True):
        raise missing


def fetch(
    loaded: Loaded,
    out: Output,
    name: str,
    *,
    revision: str | None = None,
    draft: bool = True,
    quiet_end: bool = False,
    accept: Callable[[Plan], None] | None = None,
) -> bool:
    """Plan, show, ask, download; False if the user declined. Everything but the last line goes to stderr.

    `accept` may refuse the plan by raising.
    """
    store = Store(loaded.places, loaded.aliases)
    meant = store.meaning(name)
    if meant == BUILT_IN:
        out.line(f"{BUILT_IN} is built in: there is nothing to download.")
        return True
    if find_entry(meant) is None and not _is_repo(meant):
        store.resolve(meant)  # says what is wrong with the name, unless it is a folder
        raise UsageError(f"{meant} is a folder on this machine: use it with -m {meant}.")
    out.progress(f"looking up {name}")
    plan = _plan(loaded, out, store, name, revision, draft)
    if plan is None:
        return True
    if accept is not None:
        accept(plan)
    _show(out, plan)
    plan.check_space()
    if plan.missing and not loaded.settings.yes and can_ask(out):
        out.settle()
        keyboard.release()
        if not typer.confirm(f"Download {format_bytes(plan.missing)}?", default=True, err=True):
            return False
    _download(loaded, out, plan)
    if not quiet_end:
        out.write(f'{name} is ready. Ask it something: mlxmtp ask -m {name} "Hello"\n')
    return True


def _plan(loaded: Loaded, out: Output, store: Store, name: str, revision: str | None, draft: bool) -> Plan | None:
    """The plan; None if the network is forbidden and the model is here anyway."""
    from mlxmtp.cli.terminal.progress import DownloadProgress
    from mlxmtp.hub import client
    from mlxmtp.hub.plan import make_plan

    if client.offline():
        try:
            store.resolve(name)
        except ModelNotFound:
            raise DownloadError(
                f"HF_HUB_OFFLINE is set, so {name} cannot be downloaded. Unset it and run the same command again."
            ) from None
        out.line(f"{name} is on this machine; HF_HUB_OFFLINE is set, so nothing was looked up or checked.")
        return None
    waiting = DownloadProgress(out, 0).waiting
    return make_plan(store.meaning(name), loaded.places.hf_cache, revision=revision, draft=draft, on_wait=waiting)


def _show(out: Output, plan: Plan) -> None:
    for note in plan.notes:
        out.note(note)
    if out.look.quiet:
        return
    from mlxmtp.machine.chip import this_machine

    for part in plan.parts:
        out.line(f"{part.role:<9}{part.repo} @ {part.commit[:8]}, {format_bytes(part.size)} in {len(part.files)} files")
    here = "" if plan.missing == plan.size else f" ({format_bytes(plan.size - plan.missing)} are here)"
    out.line(f"download {format_bytes(plan.missing)}{here}")
    out.line(f"disk     {format_bytes(plan.free)} free in {plan.cache}")
    needed = plan.needs(_CONTEXT)
    if needed is not None:
        machine = this_machine()
        verdict = "fits" if needed.total <= machine.room else f"does not fit: {format_bytes(machine.room)} can be used"
        out.line(
            f"memory   {format_bytes(needed.total)} of {format_bytes(machine.memory)} with a context of 4k: {verdict}"
        )


def _download(loaded: Loaded, out: Output, plan: Plan) -> None:
    from mlxmtp.cli.terminal.progress import DownloadProgress
    from mlxmtp.hub.cache import Records
    from mlxmtp.hub.download import pull as carry_out

    progress = DownloadProgress(out, plan.size)
    try:
        carry_out(plan, Records(loaded.places.data), on_bytes=progress.count, on_wait=progress.waiting)
    except KeyboardInterrupt:
        out.clear_progress()
        out.line(f"Stopped at {progress.share()}. The same command goes on from here.")
        raise
    out.clear_progress()


def _is_repo(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith((".", "/", "~"))
