"""A conversion from its request to its last line: weights found or fetched, cost shown, carried out, reported.

Serves `mlxmtp convert`, and `pull --convert`, which is the same with weights brought up to date and checked first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlxmtp.cli.options import takes
from mlxmtp.cli.start import begin
from mlxmtp.convert.sources import Master, find_master
from mlxmtp.errors import LoadError, MlxmtpError, UsageError
from mlxmtp.hub.registry import find_entry
from mlxmtp.hub.store import Found, Store
from mlxmtp.machine.memory import need
from mlxmtp.units import format_bytes

if TYPE_CHECKING:
    from mlxmtp.cli.terminal.output import Output
    from mlxmtp.convert.compare import Agreement
    from mlxmtp.convert.plan import Conversion, Part
    from mlxmtp.convert.run import Outcome
    from mlxmtp.hub.plan import Plan
    from mlxmtp.settings import Loaded


# Read by source and result, whose logits are compared: prose, a list, code, a question.
_TEXT = """\
The harbour master keeps a book in which every ship is written down with the hour it came and what it carried. In the \
autumn of that year there were fewer entries than before: grain from the north, two loads of timber, one of salt.

1. Put the kettle on.
2. Warm the pot, then add one spoon of tea for each cup.
3. Wait four minutes.

def mean(values: list[float]) -> float:
    if not values:
        raise ValueError("no values")
    return sum(values) / len(values)

What is the capital of Portugal, and on which river does it lie? Lisbon lies on the Tagus, a few miles from the sea.
"""
_TOKENS = 192  # compared at most


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be converted: a name or a folder, and everything the flags say."""

    source: str
    dest: str | None = None
    draft_model: str | None = None
    draft: bool = True
    recipe: Mapping[str, Any] = field(default_factory=dict)
    compare: bool = True
    force: bool = False
    revision: str | None = None
    fetch: bool = False  # also what is here: brought up to date and checked


def run(loaded: Loaded, out: Output, request: Request) -> bool:
    """Fetch what is missing, plan, show, convert; False if the user declined the download."""
    from mlxmtp.convert.plan import plan_conversion
    from mlxmtp.convert.recipe import make_recipe

    store = Store(loaded.places, loaded.aliases)
    master = find_master(store.meaning(request.source))
    recipe = make_recipe({**_defaults(master, request), **_given(request)}, qat=master.qat)
    models = loaded.places.data / "models"
    dest = models / master.result_name(recipe) if request.dest is None else Path(request.dest).expanduser()
    _refuse_early(dest, request)
    source = _source(loaded, out, store, master, request)
    if source is None:
        return False
    drafter = store.drafter_for(source, request.draft_model if request.draft else False)
    plan = plan_conversion(
        source.folder,
        None if drafter is None else drafter.folder,
        dest,
        recipe,
        origin=master.repo or master.origin,
        drafter_named=request.draft_model is not None,
    )
    _show(out, plan, master, drafted=request.draft)
    plan.check(force=request.force)
    outcome = _carry_out(out, plan, request.compare)
    _report(out, outcome, plan, master.repo)
    name = _name(store, request, dest)
    out.write(f'{name} is ready. Ask it something: mlxmtp ask -m {name} "Hello"\n')
    return True


def _name(store: Store, request: Request, dest: Path) -> str:
    """The shortest name that finds the result."""
    for name in (request.source, dest.name):
        with suppress(MlxmtpError):
            if store.resolve(name).folder == dest:
                return name
    return str(dest)


def _given(request: Request) -> dict[str, Any]:
    return {name: value for name, value in request.recipe.items() if value is not None}


def _defaults(master: Master, request: Request) -> dict[str, Any]:
    """What the alias says; a mode that was asked for decides about the bits itself."""
    return {} if request.recipe.get("mode") not in (None, "affine") else dict(master.recipe)


def _refuse_early(dest: Path, request: Request) -> None:
    """Before anything is downloaded."""
    if dest.exists() and not request.force:
        raise UsageError(f"{dest} exists. Give another DEST, or replace it with --force.")


def _source(loaded: Loaded, out: Output, store: Store, master: Master, request: Request) -> Found | None:
    """The folder of the weights, fetched if it is not here; None if the user declined."""
    from mlxmtp.cli.commands.pull import fetch

    if master.repo is None:
        return store.resolve(request.source)
    found = _cached(store, master.repo)
    wants_drafter = request.draft and request.draft_model is None
    lacks = found is None or (wants_drafter and store.drafter_for(found, None) is None)
    if request.fetch or lacks:
        fetched = fetch(
            loaded,
            out,
            master.repo,
            revision=request.revision,
            draft=wants_drafter,
            quiet_end=True,
            accept=_refuse_packed,
        )
        found = _cached(store, master.repo)
        if not fetched or found is None:
            return None
    return found


def _cached(store: Store, repo: str) -> Found | None:
    folder = store.cached(repo)
    return None if folder is None else Found(repo, folder, find_entry(repo))


def _refuse_packed(plan: Plan) -> None:
    """Before weights are downloaded that cannot be converted."""
    from mlxmtp.convert.tasks import refuse_quantized

    target = plan.parts[0]
    if target.config.is_drafter:
        raise LoadError(f"{target.repo} is a drafter. Give its target as SRC and this as --draft-model.")
    try:
        refuse_quantized(target.config, {})
    except LoadError as error:
        raise LoadError(str(error).replace(str(target.config.folder), target.repo, 1)) from None


def _show(out: Output, plan: Conversion, master: Master, *, drafted: bool) -> None:
    for note in plan.notes:
        out.note(note)
    if len(plan.parts) == 1 and drafted and not plan.notes:
        out.note("No drafter was found, so the result will decode without one. --draft-model names it.")
    recipe = plan.parts[0].recipe
    if master.family is not None and not master.qat and recipe.bits == 4:
        out.note(f"{master.family}:qat are weights that were trained to be packed to 4 bits; they lose less.")
    if out.look.quiet:
        return
    for part in plan.parts:
        out.line(f"{part.role:<9}{part.config.folder}, {format_bytes(part.source_size)} -> {format_bytes(part.size)}")
        for text, kinds in _by_storage(part).items():
            out.line(f"         {text}: {', '.join(kinds)}")
    out.line(f"disk     {format_bytes(plan.missing)} to write, {format_bytes(plan.free)} free at {plan.dest.parent}")


def _by_storage(part: Part) -> dict[str, list[str]]:
    """Kinds of modules by how they are stored."""
    found: dict[str, list[str]] = {}
    for kind, text in part.recipe.described(part.config).items():
        found.setdefault(text, []).append(kind)
    towers = any(not name.startswith("language_model.") for task in part.tasks for name in [task.parts[0].name])
    if part.role == "target" and towers:
        found.setdefault(part.recipe.dtype or "as stored", []).append("towers")
    return found


def _carry_out(out: Output, plan: Conversion, compared: bool) -> Outcome:
    from mlxmtp.cli.terminal.progress import DownloadProgress
    from mlxmtp.convert.run import Watch
    from mlxmtp.convert.run import convert as carry_out

    progress = DownloadProgress(out, plan.size)
    checking = DownloadProgress(out, plan.size, doing="reading back")
    watch = Watch(progress.count, checking.count, lambda: out.progress("comparing with the source"))
    try:
        outcome = carry_out(plan, compare=_comparer(out) if compared else None, watch=watch)
    except KeyboardInterrupt:
        out.clear_progress()
        out.line(f"Stopped at {progress.share()}. The same command goes on from here.")
        raise
    out.clear_progress()
    return outcome


def _comparer(out: Output) -> Callable[[Path, Path], Agreement | None]:
    """Compares source and result if the larger of the two fits this machine's memory."""

    def compared(source: Path, result: Path) -> Agreement | None:
        from mlxmtp.convert.compare import compare
        from mlxmtp.machine.chip import this_machine
        from mlxmtp.models.config import read_config

        configs = [read_config(folder) for folder in (source, result)]
        ids = _ids(source, configs[0].vocab_size)
        logits = 4 * len(ids) * configs[0].vocab_size * 4  # of both, and what the comparison makes of them
        needed = max(need(config, None, len(ids)).total for config in configs) + logits
        if needed > this_machine().room:
            room = format_bytes(this_machine().room)
            out.line(
                f"Not compared with its source: that takes {format_bytes(needed)} of memory, and {room} "
                "can be used here."
            )
            return None
        return compare(source, result, ids)

    return compared


def _ids(folder: Path, vocabulary: int) -> list[int]:
    """The text that is compared on as token ids; without a tokenizer a fixed row of them."""
    if not (folder / "tokenizer.json").is_file():
        return [2, *(3 + at * 7919 % (vocabulary - 3) for at in range(_TOKENS // 2))]
    from mlxmtp.engine.tokenizer import Tokenizer

    return [2, *Tokenizer.load(folder).encode(_TEXT)][:_TOKENS]


def _report(out: Output, outcome: Outcome, plan: Conversion, repo: str | None) -> None:
    if out.look.quiet:
        return
    if outcome.started_over:
        out.note("What another conversion had left there did not fit these settings and was written anew.")
    left = sum(len(part.left_out) for part in plan.parts)
    out.line(f"checked  every tensor is there, as written, and finite{f'; {left} unused left out' if left else ''}")
    same = outcome.agreement
    if same is not None:
        first = f"{100 * same.top1:.1f} % with the same likeliest token"
        out.line(f"compared on {same.tokens} tokens: mean KL {same.kl:.4f} nats, {first}")
    if repo is not None:
        size = format_bytes(sum(part.source_size for part in plan.parts))
        out.line(f"source   {size} stay in the cache; mlxmtp rm {repo} frees them")


@takes("convert", "... yes quiet no_color debug")
def convert(
    ctx: typer.Context,
    src: Annotated[str, typer.Argument(metavar="SRC", help="Folder, alias (e2b, e2b:qat) or org/repo.")],
    dest: Annotated[
        str | None, typer.Argument(metavar="DEST", help="Folder to make; by default among the models.")
    ] = None,
    draft_model: Annotated[
        str | None, typer.Option("--draft-model", metavar="DRAFTER", help="The drafter: folder, alias or org/repo.")
    ] = None,
    q_bits: Annotated[int | None, typer.Option("--q-bits", metavar="N", help="4, 5, 6, 8; 16 packs nothing.")] = None,
    q_group_size: Annotated[
        int | None, typer.Option("--q-group-size", metavar="N", help="32, 64 or 128 values per scale.")
    ] = None,
    q_mode: Annotated[
        str | None, typer.Option("--q-mode", metavar="MODE", help="affine, mxfp4, mxfp8 or nvfp4.")
    ] = None,
    draft_bits: Annotated[
        int | None, typer.Option("--draft-bits", metavar="N", help="4, 8 or 16 for the drafter.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option("--dtype", metavar="TYPE", help="bfloat16, float16 or float32 for what is not packed.")
    ] = None,
    text_only: Annotated[bool, typer.Option("--text-only", help="Leave image and audio towers out.")] = False,
    compare: Annotated[bool, typer.Option("--compare/--no-compare", help="Compare the result with its source.")] = True,
    force: Annotated[bool, typer.Option("--force", help="Replace the model at DEST.")] = False,
) -> None:
    """Convert published 16-bit weights to MLX: target and drafter as one model.

    \b
    Examples:
      mlxmtp convert e2b:qat
      mlxmtp convert ~/gemma-4-E4B-it --q-bits 6
      mlxmtp convert google/gemma-4-12B-it out/12b --q-mode mxfp4 --draft-bits 8

    Needs less than 0.5 GB of memory whatever the model, the comparison at the end apart: tensors are read, packed and
    written in slices. Interrupted, it leaves nothing that looks like a model, and the same command goes on where it
    stopped. The result also loads in mlx-lm and mlx-vlm; its drafter is the folder `drafter` inside.
    """
    flags = {
        "bits": q_bits, "group_size": q_group_size, "mode": q_mode, "draft_bits": draft_bits, "dtype": dtype,
        "text_only": text_only or None,
    }  # fmt: skip

    loaded, out = begin(ctx)
    try:
        request = Request(src, dest, draft_model, recipe=flags, compare=compare, force=force)
        if not run(loaded, out, request):
            out.line("Nothing was converted.")
            raise typer.Exit(1)
    finally:
        out.settle()
