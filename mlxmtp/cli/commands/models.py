"""`mlxmtp ls`, `pull`, `convert`, `show` and `rm`: the models on this machine."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from mlxmtp.cli.options import Json, Unasked, begin, can_ask, confirmed, model_names, removable_names, takes
from mlxmtp.cli.terminal.output import Output, show_table
from mlxmtp.errors import UsageError
from mlxmtp.settings import choice
from mlxmtp.units import ago, format_bytes, format_count

if TYPE_CHECKING:
    from mlxmtp.app.models import DrafterReport, Listing, ModelReport


@takes("ls", "... no_color debug")
def ls(
    ctx: typer.Context,
    every: Annotated[bool, Option("--all", help="Also what could be pulled, and whether it fits.")] = False,
    json: Json = False,
    names: Annotated[bool, Option("-q", "--names", help="Only the names.")] = False,
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

    if json and names:
        raise UsageError("--json and -q exclude each other: take one.")
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
    for command, left in (("pull", listing.unfinished_downloads), ("convert", listing.unfinished_conversions)):
        for name, size in left:
            out.line(f"Unfinished: {name} ({format_bytes(size)}). Go on with mlxmtp {command}, or mlxmtp rm {name}.")


@takes("pull", "... yes quiet no_color debug")
def pull(
    ctx: typer.Context,
    name: Annotated[
        str, Argument(metavar="NAME", help="Alias (e2b, 12b:8bit) or org/repo.", autocompletion=model_names)
    ],
    revision: Annotated[str | None, Option(metavar="REV", help="Branch, tag or commit of the target.")] = None,
    draft: Annotated[bool, Option(help="Get the drafter, too.")] = True,
    convert: Annotated[bool, Option("--convert", help="Get the 16-bit weights and convert them here.")] = False,
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

    With --convert an alias means Google's own weights, quantized here as its variant says. For other settings see
    mlxmtp convert.
    """
    from mlxmtp.cli import obtain
    from mlxmtp.machine.awake import stay_awake

    loaded, out = begin(ctx)
    stay_awake()
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


@takes("convert", "... yes quiet no_color debug")
def convert(
    ctx: typer.Context,
    src: Annotated[
        str, Argument(metavar="SRC", help="Folder, alias (e2b, e2b:qat) or org/repo.", autocompletion=model_names)
    ],
    dest: Annotated[str | None, Argument(metavar="DEST", help="Folder to make; by default among the models.")] = None,
    draft_model: Annotated[
        str | None, Option(metavar="DRAFTER", help="The drafter: folder, alias or org/repo.")
    ] = None,
    q_bits: Annotated[
        int | None,
        Option("--q-bits", metavar="N", help="4, 5, 6 or 8; 16 quantizes nothing."),
        choice(4, 5, 6, 8, 16),
    ] = None,
    q_group_size: Annotated[
        int | None, Option("--q-group-size", metavar="N", help="32, 64 or 128 values per scale."), choice(32, 64, 128)
    ] = None,
    q_mode: Annotated[str | None, Option(metavar="MODE", help="affine, mxfp4, mxfp8 or nvfp4.")] = None,
    draft_bits: Annotated[
        int | None, Option("--draft-bits", metavar="N", help="4, 8 or 16 for the drafter."), choice(4, 8, 16)
    ] = None,
    dtype: Annotated[
        str | None, Option(metavar="TYPE", help="bfloat16, float16 or float32 for what is not quantized.")
    ] = None,
    text_only: Annotated[bool, Option("--text-only", help="Leave image and audio towers out.")] = False,
    compare: Annotated[bool, Option(help="Compare the result with its source.")] = True,
    force: Annotated[bool, Option("--force", help="Replace the model at DEST.")] = False,
) -> None:
    """Convert published 16-bit weights to MLX: target and drafter as one model.

    \b
    Examples:
      mlxmtp convert e2b:qat
      mlxmtp convert ~/gemma-4-E4B-it --q-bits 6
      mlxmtp convert google/gemma-4-12B-it out/12b --q-mode mxfp4 --draft-bits 8

    Needs less than 0.5 GB of memory whatever the model, the comparison at the end apart: tensors are read, quantized
    and written in slices. Interrupted, it leaves nothing that looks like a model, and the same command goes on where it
    stopped. The result also loads in mlx-lm and mlx-vlm; its drafter is the folder `drafter` inside.
    """
    from mlxmtp.app.conversion import ConversionRequest
    from mlxmtp.cli import obtain
    from mlxmtp.machine.awake import stay_awake

    loaded, out = begin(ctx)
    stay_awake()
    recipe = {"bits": q_bits, "group_size": q_group_size, "mode": q_mode, "draft_bits": draft_bits, "dtype": dtype}
    try:
        recipe["text_only"] = text_only or None
        request = ConversionRequest(src, dest, draft_model, recipe=recipe, force=force)
        if not obtain.convert(loaded, out, request, compare=compare):
            out.line("Nothing was converted.")
            raise typer.Exit(1)
    finally:
        out.settle()


@takes("show", "... no_color debug")
def show(
    ctx: typer.Context,
    name: Annotated[str, Argument(metavar="NAME", help="Alias, org/repo or path.", autocompletion=model_names)],
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
    name: Annotated[str, Argument(metavar="NAME", help="Alias or org/repo.", autocompletion=removable_names)],
    yes: Unasked = False,
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
        more += f", in {item.folder.resolve()}" if item.folder.is_symlink() else ""
        out.line(f"{format_bytes(item.size):>8}  {item.name}{more}")
    for drafter in plan.shared:
        out.line(f"{'stays':>8}  {drafter}, another model uses it")
    if not yes:
        if not can_ask(out):
            raise UsageError("There is nobody to ask: confirm with -y.")
        if not confirmed(out, f"Remove {format_bytes(plan.size)}?", default=False):
            out.line("Nothing was removed.")
            raise typer.Exit(1)
    catalog.remove(plan)
    out.write(f"{format_bytes(plan.size)} freed.\n")


def _show_list(out: Output, listing: Listing, *, memory: bool) -> None:
    now, rows = time.time(), []
    for model in listing.models:
        needed, size = model.needs(), model.size
        name = f"{model.name}*" if listing.is_default(model) else model.name
        takes_up = f"~{format_bytes(needed.target)}" if size is None else format_bytes(size)
        drafter, modified = "yes", "not here"
        if model.modified is not None:
            drafter, modified = model.drafter_quantization or "no", ago(model.modified, now)
        row = [name, format_count(model.parameters), model.quantization, takes_up, drafter, modified]
        verdict = f"{format_bytes(needed.total)}, {_verdict(needed.total <= listing.usable)}"
        rows.append([*row, verdict] if memory else row)
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
        out.write_line(line)
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
    for what, size in (("images", report.picture_bytes), ("audio", report.sound_bytes)):
        if size is not None:
            out.write_line(f"\nIt also reads {what}: {format_bytes(size)} more memory from the first one on.")
    if report.prediction is not None:
        out.write_line(f"\nPredicted from the memory's speed, not measured: {report.prediction}")


def _show_files(out: Output, title: str, part: ModelReport | DrafterReport) -> None:
    out.write(f"{title}, {format_bytes(sum(file.bytes for file in part.files))} in {len(part.files)} files\n")
    show_table(out, ["FILE", "SIZE"], [[file.name, format_bytes(file.bytes)] for file in part.files], right=(1,))
    out.write("\n")
    rows = [[row.kind, format_count(row.parameters), row.storage, format_bytes(row.bytes)] for row in part.modules]
    show_table(out, ["MODULES", "PARAMS", "STORED AS", "SIZE"], rows, right=(1, 3))
    out.write("\n")


def _verdict(fits: bool) -> str:
    return "fits" if fits else "too large"
