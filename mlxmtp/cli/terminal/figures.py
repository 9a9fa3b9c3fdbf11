"""Everything `mlxmtp show` knows about a model: one table of data, and how it reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxmtp.cli.terminal.output import show_table
from mlxmtp.hub import inventory
from mlxmtp.hub.cache import Records
from mlxmtp.hub.converted import conversion_record
from mlxmtp.hub.inventory import groups
from mlxmtp.machine.chip import this_machine
from mlxmtp.machine.speed import predict
from mlxmtp.models.tensors import parameter_count
from mlxmtp.units import format_bytes, format_count

if TYPE_CHECKING:
    from mlxmtp.cli.terminal.output import Output
    from mlxmtp.hub.inventory import Model
    from mlxmtp.hub.store import Store
    from mlxmtp.models.config import ModelConfig
    from mlxmtp.settings import Places


def model_sheet(store: Store, places: Places, name: str, contexts: Sequence[int]) -> dict[str, Any]:
    """The data. Raises ModelNotFound, LoadError."""
    found = store.resolve(name)
    repo = _repo_of(found.folder)
    model = inventory.describe(store, found, repo)
    record = None if repo is None else Records(places.data).find(repo)
    drafter = None
    if model.drafter is not None and model.drafter_config is not None:
        drafter = {"name": model.drafter.name, **_part(model.drafter_config)}
    return {
        "name": name,
        "repo": repo,
        "revision": found.folder.name if repo is not None else None,
        "pinned": record is not None and record.commit == found.folder.name,
        "context": model.config.max_positions,
        **_part(model.config),
        "drafter": drafter,
        "memory": [_memory(model, context) for context in contexts if context <= model.config.max_positions],
        "prediction": _prediction(model),
        "conversion": conversion_record(found.folder),
    }


def show_sheet(out: Output, sheet: dict[str, Any]) -> None:
    """The same for people."""
    revision = f" @ {sheet['revision'][:12]}{' (pinned)' if sheet['pinned'] else ''}" if sheet["revision"] else ""
    lines = [f"{sheet['name']}: {sheet['repo'] or sheet['folder']}{revision}"]
    lines.append(
        f"{format_count(sheet['parameters'])} parameters, {sheet['quantization']}, context {sheet['context']} tokens"
    )
    if sheet["conversion"] is not None:
        lines.append(_converted(sheet["conversion"]))
    out.write("\n".join(lines) + "\n\n")
    _show_part(out, "Target", sheet)
    if sheet["drafter"] is None:
        out.write("No drafter is here: it decodes without one.\n\n")
    else:
        _show_part(out, f"Drafter: {sheet['drafter']['name']}", sheet["drafter"])
    out.write("Memory\n")
    parts = ("target", "drafter", "cache", "activations", "total")
    rows = [
        [
            f"{row['context'] // 1024}k",
            *(format_bytes(row[part]) for part in parts),
            "fits" if row["fits"] else "does not fit",
        ]
        for row in sheet["memory"]
    ]
    header = ["CONTEXT", "TARGET", "DRAFTER", "K/V", "PROMPT", "TOTAL", "HERE"]
    show_table(out, header, rows, right=(1, 2, 3, 4, 5))
    guess = sheet["prediction"]
    if guess is not None:
        drafted = "" if guess["drafted"] is None else f", {guess['drafted']:.0f} with the drafter"
        out.write(f"\nPredicted from the memory's speed, not measured: {guess['plain']:.0f} tok/s{drafted}\n")


def _converted(record: dict[str, Any]) -> str:
    """Where a conversion comes from, and how far it has moved from there."""
    line = f"Converted here from {record['target']['source']}"
    same = record.get("compared")
    if same:
        line += (
            f"; on {same['tokens']} tokens mean KL {same['kl']:.4f}, {100 * same['top1']:.1f} % same likeliest token"
        )
    return line


def _part(config: ModelConfig) -> dict[str, Any]:
    files = sorted(item for item in config.folder.iterdir() if item.is_file())
    return {
        "folder": str(config.folder),
        "parameters": parameter_count(config),
        "quantization": inventory.quantization(config),
        "files": [{"name": item.name, "bytes": item.stat().st_size} for item in files],
        "modules": [
            {"kind": group.kind, "storage": group.storage, "parameters": group.parameters, "bytes": group.size}
            for group in groups(config)
        ],
    }


def _show_part(out: Output, title: str, part: dict[str, Any]) -> None:
    total = sum(file["bytes"] for file in part["files"])
    out.write(f"{title}, {format_bytes(total)} in {len(part['files'])} files\n")
    show_table(
        out, ["FILE", "SIZE"], [[file["name"], format_bytes(file["bytes"])] for file in part["files"]], right=(1,)
    )
    out.write("\n")
    rows = [
        [row["kind"], format_count(row["parameters"]), row["storage"], format_bytes(row["bytes"])]
        for row in part["modules"]
    ]
    show_table(out, ["MODULES", "PARAMS", "STORED AS", "SIZE"], rows, right=(1, 3))
    out.write("\n")


def _memory(model: Model, context: int) -> dict[str, Any]:
    needed = model.needs(context)
    return {
        "context": context,
        "target": needed.target,
        "drafter": needed.drafter,
        "cache": needed.cache,
        "activations": needed.activations,
        "total": needed.total,
        "fits": needed.total <= this_machine().room,
    }


def _prediction(model: Model) -> dict[str, Any] | None:
    bandwidth = this_machine().bandwidth
    if bandwidth is None:
        return None
    speed = predict(model.config, model.drafter_config, bandwidth)
    return {"plain": speed.plain, "drafted": speed.drafted}


def _repo_of(folder: Path) -> str | None:
    """`org/repo` of a snapshot in the cache."""
    place = folder.parent.parent.name
    return place.removeprefix("models--").replace("--", "/", 1) if place.startswith("models--") else None
