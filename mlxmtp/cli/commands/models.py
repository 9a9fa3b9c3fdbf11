"""`mlxmtp ls`, `show` and `rm`: the models on this machine."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from mlxmtp.cli.options import takes
from mlxmtp.cli.start import begin, can_ask
from mlxmtp.cli.terminal.output import show_table
from mlxmtp.errors import UsageError
from mlxmtp.units import ago, format_bytes, format_count

if TYPE_CHECKING:
    from mlxmtp.app.models import DrafterReport, Listing, ModelReport
    from mlxmtp.cli.terminal.output import Output

Json = Annotated[bool, typer.Option("--json", help="As JSON.")]


@takes("ls", "... no_color debug")
def ls(
    ctx: typer.Context,
    every: Annotated[bool, typer.Option("--all", help="Also what could be pulled, and whether it fits.")] = False,
    json: Json = False,
    names: Annotated[bool, typer.Option("-q", "--names", help="Only the names.")] = False,
) -> None:
    """List the models on this machine; * is the one that answers when none is named.

    \b
    Examples:
      mlxmtp ls
      mlxmtp ls --all
      mlxmtp ls -q | xargs -n 1 mlxmtp show
    """
    from mlxmtp.app.models import Catalog
    from mlxmtp.cli.terminal.presenters import as_json

    loaded, out = begin(ctx)
    listing = Catalog(loaded).listing(every=every)
    if names:
        out.write("".join(f"{model.name}\n" for model in listing.models))
        return
    if json:
        out.write(as_json(listing.to_json()))
        return
    _show_list(out, listing, memory=every)
    count = sum(model.modified is not None for model in listing.models)
    out.line(f"{count} model{'s' if count != 1 else ''}, {format_bytes(listing.total_bytes)} on disk")
    for name, size in listing.unfinished_downloads:
        out.line(f"Unfinished: {name} ({format_bytes(size)}). Go on with mlxmtp pull, or mlxmtp rm {name}.")
    for name, size in listing.unfinished_conversions:
        out.line(f"Unfinished: {name} ({format_bytes(size)}). Go on with mlxmtp convert, or mlxmtp rm {name}.")


@takes("show", "... no_color debug")
def show(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Alias, org/repo or path.")],
    json: Json = False,
) -> None:
    """What a model consists of and what memory it needs.

    \b
    Examples:
      mlxmtp show e2b
      mlxmtp show pocket --json
    """
    from mlxmtp.app.models import Catalog
    from mlxmtp.cli.terminal.presenters import as_json

    loaded, out = begin(ctx)
    report = Catalog(loaded).report(name)
    if json:
        out.write(as_json(asdict(report)))
    else:
        _show_report(out, report)


@takes("rm", "... no_color debug")
def rm(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Alias or org/repo.")],
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Do not ask.")] = False,
) -> None:
    """Remove a model and its drafter from the disk.

    \b
    Examples:
      mlxmtp rm 12b
      mlxmtp rm -y mlx-community/gemma-4-e4b-it-4bit

    Removes every revision of the repository in the Hugging Face cache, which other tools share. A drafter that another
    model uses stays.
    """
    from mlxmtp.app.models import Catalog

    loaded, out = begin(ctx)
    catalog = Catalog(loaded)
    plan = catalog.plan_removal(name)
    for item in plan.folders:
        more = f", {len(item.commits)} revisions" if len(item.commits) > 1 else ""
        out.line(f"{format_bytes(item.size):>8}  {item.name}{more}")
    for drafter in plan.shared:
        out.line(f"{'stays':>8}  {drafter}, another model uses it")
    if not yes:
        if not can_ask(out):
            raise UsageError("There is nobody to ask: confirm with -y.")
        if not typer.confirm(f"Remove {format_bytes(plan.size)}?", default=False, err=True):
            out.line("Nothing was removed.")
            return
    catalog.remove(plan)
    out.write(f"{format_bytes(plan.size)} freed.\n")


def _show_list(out: Output, listing: Listing, *, memory: bool) -> None:
    now, rows = time.time(), []
    for model in listing.models:
        needed, size = model.needs(), model.size
        row = [
            f"{model.name}*" if model.modified and model.name == listing.default else model.name,
            format_count(model.parameters),
            model.quantization,
            f"~{format_bytes(needed.target)}" if size is None else format_bytes(size),
        ]
        row += (
            ["yes", "not here"]
            if model.modified is None
            else [model.drafter_quantization or "no", ago(model.modified, now)]
        )
        if memory:
            row.append(f"{format_bytes(needed.total)}, {_verdict(needed.total <= listing.usable)}")
        rows.append(row)
    header = ["NAME", "PARAMS", "QUANT", "SIZE", "DRAFTER", "MODIFIED", *(["MEMORY"] if memory else [])]
    show_table(out, header, rows, right=(1, 3))


def _show_report(out: Output, report: ModelReport) -> None:
    revision = f" @ {report.revision[:12]}{' (pinned)' if report.pinned else ''}" if report.revision else ""
    out.write(f"{report.name}: {report.repo or report.folder}{revision}\n")
    parameters = f"{format_count(report.parameters)} parameters"
    out.write(f"{parameters}, {report.quantization}, context {report.context} tokens\n")
    if report.conversion is not None:
        line, same = f"Converted here from {report.conversion['target']['source']}", report.conversion.get("compared")
        if same:
            line += f"; on {same['tokens']} tokens mean KL {same['kl']:.4f}"
            line += f", {100 * same['top1']:.1f} % same likeliest token"
        out.write(f"{line}\n")
    out.write("\n")
    _show_files(out, "Target", report)
    if report.drafter is None:
        out.write("No drafter is here: it decodes without one.\n\n")
    else:
        _show_files(out, f"Drafter: {report.drafter.name}", report.drafter)
    out.write("Memory\n")
    rows = []
    for row in report.memory:
        sizes = map(format_bytes, (row.target, row.drafter, row.cache, row.activations, row.total))
        rows.append([f"{row.context // 1024}k", *sizes, _verdict(row.fits)])
    header = ["CONTEXT", "TARGET", "DRAFTER", "K/V", "PROMPT", "TOTAL", "HERE"]
    show_table(out, header, rows, right=(1, 2, 3, 4, 5))
    if report.prediction is not None:
        out.write(f"\nPredicted from the memory's speed, not measured: {report.prediction}\n")


def _show_files(out: Output, title: str, part: ModelReport | DrafterReport) -> None:
    out.write(f"{title}, {format_bytes(sum(file.bytes for file in part.files))} in {len(part.files)} files\n")
    show_table(out, ["FILE", "SIZE"], [[file.name, format_bytes(file.bytes)] for file in part.files], right=(1,))
    out.write("\n")
    rows = [[row.kind, format_count(row.parameters), row.storage, format_bytes(row.bytes)] for row in part.modules]
    show_table(out, ["MODULES", "PARAMS", "STORED AS", "SIZE"], rows, right=(1, 3))
    out.write("\n")


def _verdict(fits: bool) -> str:
    return "fits" if fits else "does not fit"
