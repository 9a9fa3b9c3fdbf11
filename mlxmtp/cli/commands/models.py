"""`mlxmtp ls`, `show` and `rm`: the models on this machine."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlxmtp.cli import options
from mlxmtp.cli.start import begin, can_ask
from mlxmtp.errors import UsageError
from mlxmtp.hub.store import Store
from mlxmtp.units import format_bytes

if TYPE_CHECKING:
    from mlxmtp.cli.terminal.output import Output
    from mlxmtp.hub.inventory import Available, Model
    from mlxmtp.settings import Loaded

_CONTEXTS = (4096, 32768, 131072)

Json = Annotated[bool, typer.Option("--json", help="As JSON.")]


def ls(
    ctx: typer.Context,
    every: Annotated[bool, typer.Option("--all", help="Also what could be pulled, and whether it fits.")] = False,
    json: Json = False,
    names: Annotated[bool, typer.Option("-q", "--names", help="Only the names.")] = False,
    no_color: options.NoColor = None,
    debug: options.Debug = False,
) -> None:
    """List the models on this machine; * is the one that answers when none is named.

    \b
    Examples:
      mlxmtp ls
      mlxmtp ls --all
      mlxmtp ls -q | xargs -n 1 mlxmtp show
    """
    from mlxmtp.hub import inventory
    from mlxmtp.machine.chip import this_machine

    loaded, out = begin(ctx, no_color=no_color)
    store = Store(loaded.places, loaded.aliases)
    models = inventory.installed(store, loaded.places)
    others = inventory.available(models) if every else []
    default = _default_name(loaded, store)
    if names:
        out.write("".join(f"{name}\n" for name in [*(m.name for m in models), *(o.entry.name for o in others)]))
        return
    room = this_machine().room
    if json:
        table = [inventory.as_table(model, model.name == default, room) for model in models]
        table += [inventory.available_as_table(one, room) for one in others]
        _write_json(out, {"models": table, "total_bytes": inventory.total_size(models)})
        return
    _show_list(out, models, others, default, room if every else None)
    out.line(
        f"{len(models)} model{'s' if len(models) != 1 else ''}, {format_bytes(inventory.total_size(models))} on disk"
    )
    for repo, size in inventory.unfinished(store, loaded.places):
        out.line(f"Unfinished: {repo} ({format_bytes(size)}). Go on with mlxmtp pull, or mlxmtp rm {repo}.")
    for name, size in inventory.unfinished_conversions(loaded.places):
        out.line(f"Unfinished: {name} ({format_bytes(size)}). Go on with mlxmtp convert, or mlxmtp rm {name}.")


def show(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Alias, org/repo or path.")],
    json: Json = False,
    no_color: options.NoColor = None,
    debug: options.Debug = False,
) -> None:
    """What a model consists of and what memory it needs.

    \b
    Examples:
      mlxmtp show e2b
      mlxmtp show pocket --json
    """
    from mlxmtp.cli.terminal.figures import model_sheet, show_sheet

    loaded, out = begin(ctx, no_color=no_color)
    store = Store(loaded.places, loaded.aliases)
    sheet = model_sheet(store, loaded.places, name, _CONTEXTS)
    if json:
        _write_json(out, sheet)
    else:
        show_sheet(out, sheet)


def rm(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Alias or org/repo.")],
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Do not ask.")] = False,
    no_color: options.NoColor = None,
    debug: options.Debug = False,
) -> None:
    """Remove a model and its drafter from the disk.

    \b
    Examples:
      mlxmtp rm 12b
      mlxmtp rm -y mlx-community/gemma-4-e4b-it-4bit

    Removes every revision of the repository in the Hugging Face cache, which other tools share. A drafter that another
    model uses stays.
    """
    from mlxmtp.hub.removal import plan_removal, remove

    loaded, out = begin(ctx, no_color=no_color)
    removal = plan_removal(name, Store(loaded.places, loaded.aliases), loaded.places)
    for item in removal.items:
        more = f", {len(item.commits)} revisions" if len(item.commits) > 1 else ""
        out.line(f"{format_bytes(item.size):>8}  {item.name}{more}")
    for kept in removal.kept:
        out.line(f"{'stays':>8}  {kept}, another model uses it")
    if not yes:
        if not can_ask(out):
            raise UsageError("There is nobody to ask: confirm with -y.")
        if not typer.confirm(f"Remove {format_bytes(removal.size)}?", default=False, err=True):
            out.line("Nothing was removed.")
            return
    remove(removal, loaded.places)
    out.write(f"{format_bytes(removal.size)} freed.\n")


def _default_name(loaded: Loaded, store: Store) -> str:
    if loaded.settings.model is not None:
        return loaded.settings.model
    found = store.default()
    return "pocket" if found is None else found.name


def _show_list(out: Output, models: list[Model], others: list[Available], default: str, room: int | None) -> None:
    from mlxmtp.cli.terminal.output import show_table
    from mlxmtp.hub import inventory
    from mlxmtp.models.tensors import parameter_count
    from mlxmtp.units import ago, format_count

    now = time.time()
    rows = []
    for model in models:
        row = [model.name + ("*" if model.name == default else "")]
        row += [
            format_count(parameter_count(model.config)),
            inventory.quantization(model.config),
            format_bytes(model.size),
        ]
        row += ["no" if model.drafter_config is None else inventory.quantization(model.drafter_config)]
        rows.append([*row, ago(model.modified, now), *_verdict(model, room)])
    for one in others:
        config, size = one.entry.target_config(), one.entry.size or one.entry.target.size
        row = [one.entry.name, format_count(parameter_count(config)), inventory.quantization(config)]
        row += [f"~{format_bytes(one.needs().target)}" if size is None else format_bytes(size), "yes", "not here"]
        rows.append([*row, *_verdict(one, room)])
    header = ["NAME", "PARAMS", "QUANT", "SIZE", "DRAFTER", "MODIFIED"] + (["MEMORY"] if room is not None else [])
    show_table(out, header, rows, right=(1, 3))


def _verdict(one: Model | Available, room: int | None) -> list[str]:
    if room is None:
        return []
    needed = one.needs().total
    return [f"{format_bytes(needed)}, {'fits' if needed <= room else 'does not fit'}"]


def _write_json(out: Output, value: dict[str, Any]) -> None:
    from mlxmtp.cli.terminal.presenters import as_json

    out.write(as_json(value))
