"""Models that are not here: show what a download or conversion costs, ask, and carry it out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from shlex import quote
from typing import TYPE_CHECKING

from mlxmtp.app.models import CONTEXTS, Catalog, NoDownload
from mlxmtp.cli.options import can_ask, confirmed
from mlxmtp.cli.terminal.output import Output
from mlxmtp.cli.terminal.progress import DownloadProgress
from mlxmtp.cli.terminal.signals import last_words
from mlxmtp.errors import ModelNotFound
from mlxmtp.settings import Loaded
from mlxmtp.units import format_bytes

if TYPE_CHECKING:
    from mlxmtp.app.conversion import Conversion, ConversionRequest
    from mlxmtp.app.models import DownloadPlan
    from mlxmtp.convert.run import ConversionResult
    from mlxmtp.machine.chip import Machine


def offer(loaded: Loaded, out: Output, name: str, missing: ModelNotFound) -> None:
    """Download what a command misses, after asking. Raises `missing` again if nobody can be asked, or the answer is no.

    `name` is what the user said; with `yes` in the settings nobody is asked.
    """
    may = Catalog(loaded).downloadable(name) and (loaded.settings.yes or can_ask(out))
    if not may or not fetch(loaded, out, name, last_line=False):
        raise missing


def fetch(
    loaded: Loaded,
    out: Output,
    name: str,
    *,
    revision: str | None = None,
    draft: bool = True,
    conversion: Conversion | None = None,
    last_line: bool = True,
) -> bool:
    """Plan, show, ask, download; False if the user declined. Everything but the last line goes to stderr.

    `conversion`: the one that follows, whose result needs room as well.
    """
    catalog = Catalog(loaded)
    if catalog.downloadable(name):
        out.progress(f"looking up {name}")
    waiting = DownloadProgress(out, 0).waiting
    plan = catalog.plan_download(
        name, revision=revision, draft=draft, to_convert=conversion is not None, on_wait=waiting
    )
    if isinstance(plan, NoDownload):
        out.line(plan.reason)
        return True
    _show_download(out, plan, catalog.machine)
    if conversion is None:
        plan.check_space()
    elif (room := conversion.room(plan)) and not out.look.quiet:
        out.line(f"result   {room}")
    asks = plan.missing and not loaded.settings.yes and can_ask(out)
    if asks and not confirmed(out, f"Download {format_bytes(plan.missing)}?", default=True):
        return False
    progress = DownloadProgress(out, plan.size)
    with _interruptible(out, progress):
        catalog.download(plan, on_bytes=progress.count, on_wait=progress.waiting)
    if last_line:
        _ready(out, catalog, name)
    return True


def convert(loaded: Loaded, out: Output, request: ConversionRequest, *, compare: bool = True) -> bool:
    """Fetch the weights that are missing, plan, show, convert, report; False if the user declined the download."""
    from mlxmtp.app.conversion import Conversion
    from mlxmtp.convert.run import Watch

    conversion = Conversion(Catalog(loaded), request)
    repo, draft = conversion.to_download, conversion.wants_drafter
    if repo is not None and not fetch(
        loaded, out, repo, revision=request.revision, draft=draft, conversion=conversion, last_line=False
    ):
        return False
    plan = conversion.plan()
    for note in plan.notes:
        out.note(note)
    if not out.look.quiet:
        for part in plan.parts:
            source, size = format_bytes(part.source_size), format_bytes(part.size)
            out.line(f"{part.role:<9}{part.config.folder}, {source} -> {size}")
            for storage, kinds in part.kinds_by_storage().items():
                out.line(f"         {storage}: {', '.join(kinds)}")
        out.line(
            f"disk     {format_bytes(plan.missing)} to write, {format_bytes(plan.free)} free at {plan.dest.parent}"
        )
    progress, checking = DownloadProgress(out, plan.size), DownloadProgress(out, plan.size, doing="reading back")
    watch = Watch(progress.count, checking.count, lambda: out.progress("comparing with the source"))
    with _interruptible(out, progress):
        result = conversion.carry_out(plan, compare=compare, watch=watch)
    _report(out, result, sum(len(part.left_out) for part in plan.parts))
    if conversion.repo is not None and not out.look.quiet:
        size = format_bytes(sum(part.source_size for part in plan.parts))
        out.line(f"source   {size} stay in the cache; mlxmtp rm {conversion.repo} frees them")
    _ready(out, Catalog(loaded), conversion.result_name())
    return True


def _show_download(out: Output, plan: DownloadPlan, machine: Machine) -> None:
    for note in plan.notes:
        out.note(note)
    if out.look.quiet:
        return
    for part in plan.parts:
        out.line(f"{part.role:<9}{part.repo} @ {part.commit[:8]}, {format_bytes(part.size)} in {len(part.files)} files")
    here = "" if plan.missing == plan.size else f" ({format_bytes(plan.size - plan.missing)} are here)"
    out.line(f"download {format_bytes(plan.missing)}{here}")
    out.line(f"disk     {format_bytes(plan.free)} free in {plan.cache}")
    needed = plan.needs(CONTEXTS[0])
    if needed is not None:
        usable = format_bytes(machine.usable)
        verdict = "fits" if needed.total <= machine.usable else f"does not fit: {usable} can be used"
        total = f"{format_bytes(needed.total)} of {format_bytes(machine.memory)}"
        out.line(f"memory   {total} with a context of 4k: {verdict}")


def _report(out: Output, result: ConversionResult, left_out: int) -> None:
    if result.not_compared is not None:
        out.line(result.not_compared)
    if out.look.quiet:
        return
    if result.started_over:
        out.note("What another conversion had left there did not fit these settings and was written anew.")
    unused = f"; {left_out} unused left out" if left_out else ""
    out.line(f"checked  every tensor is there, as written, and finite{unused}")
    same = result.agreement
    if same is not None:
        first = f"{100 * same.top1:.1f} % with the same likeliest token"
        out.line(f"compared on {same.tokens} tokens: mean KL {same.kl:.4f} nats, {first}")


def _ready(out: Output, catalog: Catalog, name: str) -> None:
    problem = catalog.cannot_answer(name)
    out.write(f"{name} is {'ready' if problem is None else 'here'}. ")
    out.write(f'Ask it something: mlxmtp ask -m {quote(name)} "Hello"\n' if problem is None else f"{problem}\n")


@contextmanager
def _interruptible(out: Output, progress: DownloadProgress) -> Iterator[None]:
    """Say after Ctrl-C how far it came; take the progress line away."""

    def stopped() -> None:
        out.clear_progress()
        out.line(f"Stopped at {progress.share()}. The same command goes on from here.")

    with last_words(stopped):
        yield
    out.clear_progress()
