"""The plan of a conversion: every file and tensor that it writes, from headers and configurations alone."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from mlxmtp.convert.recipe import Recipe
from mlxmtp.convert.tasks import Slice, Task, make_tasks, slices
from mlxmtp.engine.tokenizer import check_text_side
from mlxmtp.errors import ConversionError, LoadError, UsageError
from mlxmtp.files import free_bytes
from mlxmtp.hub.cache import PARTIAL
from mlxmtp.models.chat_template import TOKENIZER
from mlxmtp.models.config import ModelConfig, check_pair, read_config
from mlxmtp.models.safetensors import Layout, Stored, lay_out, read_folder
from mlxmtp.units import format_bytes
from mlxmtp.version import installed_version

SHARD = 5_000_000_000  # bytes from which weights go on in another file, as other tools have it
_COPIED = (
    "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.*",
    "additional_chat_templates/*", "processor_config.json", "preprocessor_config.json", "tokenizer.model", "LICENSE*",
    "NOTICE*",
)  # fmt: skip

MAKE_ROOM = "Make room (`mlxmtp rm`), or give mlxmtp convert a DEST on another disk."

Place = tuple[Path, int]  # a file, and an offset in it in bytes


@dataclass(frozen=True, slots=True)
class Shard:
    """A weight file to be written: its header, and the place of every tensor in it."""

    file: Path
    header: bytes
    tensors: tuple[Stored, ...]

    @property
    def size(self) -> int:
        return len(self.header) + sum(tensor.layout.nbytes for tensor in self.tensors)


@dataclass(frozen=True, slots=True)
class ConversionPart:
    """Target or drafter: its source in `config`, the folder and tensors to write, and the small files to copy."""

    role: Literal["target", "drafter"]
    config: ModelConfig
    recipe: Recipe
    folder: Path
    tasks: tuple[Task, ...]
    left_out: tuple[str, ...]
    shards: tuple[Shard, ...]
    copied: tuple[Path, ...]

    @property
    def size(self) -> int:
        return sum(shard.size for shard in self.shards)

    @property
    def source_size(self) -> int:
        return sum(file.stat().st_size for file in self.sources)

    @property
    def sources(self) -> list[Path]:
        return sorted({task.source.file for task in self.tasks})

    def kinds_by_storage(self) -> dict[str, list[str]]:
        """Return the kinds of modules by how they will be stored: `{"4 bit, groups of 64": ["attention", ...]}`."""
        kinds: dict[str, list[str]] = {}
        for kind, storage in self.recipe.described(self.config).items():
            kinds.setdefault(storage, []).append(kind)
        if self.role == "target" and any(not task.parts[0].name.startswith("language_model.") for task in self.tasks):
            kinds.setdefault(self.recipe.dtype or "as stored", []).append("towers")
        return kinds

    def index(self) -> dict[str, Any] | None:
        """Return the index of several weight files; None for a single one."""
        files = {tensor.layout.name: shard.file.name for shard in self.shards for tensor in shard.tensors}
        size = sum(tensor.layout.nbytes for shard in self.shards for tensor in shard.tensors)
        found = {"metadata": {"total_size": size}, "weight_map": dict(sorted(files.items()))}
        return found if len(self.shards) > 1 else None


@dataclass(frozen=True, slots=True)
class ConversionPlan:
    """A conversion before it starts. `origin` is the source's name; `notes` are for the user."""

    dest: Path
    origin: str
    parts: tuple[ConversionPart, ...]
    notes: tuple[str, ...] = ()

    @property
    def work(self) -> Path:
        """The folder in which `model` grows beside its journal; without config.json until every value was read back."""
        return self.dest.with_name(self.dest.name + PARTIAL)

    @property
    def size(self) -> int:
        return sum(part.size for part in self.parts)

    @property
    def missing(self) -> int:
        """Bytes that are not on the disk yet. A file that is being written has holes: its size says nothing."""
        return max(0, self.size - sum(item.stat().st_blocks * 512 for item in self.work.rglob("*.safetensors")))

    @property
    def free(self) -> int:
        return free_bytes(self.dest)

    def steps(self) -> Iterator[tuple[Slice, list[Place]]]:
        """Yield every step in order, with the place of each tensor's bytes that it writes."""
        for part in self.parts:
            places = {tensor.layout.name: tensor for shard in part.shards for tensor in shard.tensors}
            for task in part.tasks:
                stored = [places[one.name] for one in task.parts]
                for step in slices(task):
                    yield step, [(one.file, one.start + step.bytes_of(one.layout)[0]) for one in stored]

    @property
    def fingerprint(self) -> str:
        """A hash of everything that decides about the bytes: sources, recipe, layout, and MLX's own rounding."""
        stats = [(file.name, file.stat()) for part in self.parts for file in part.sources]
        files = [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]
        recipes = [asdict(part.recipe) for part in self.parts]
        headers = [hashlib.sha256(shard.header).hexdigest() for part in self.parts for shard in part.shards]
        text = json.dumps([files, recipes, headers, versions()])
        return hashlib.sha256(text.encode()).hexdigest()

    def check(self, *, force: bool = False) -> None:
        """Raise UsageError if there is something at the destination, ConversionError if the disk is too small."""
        check_free(self.dest, force=force)
        sources = [part.config.folder.resolve() for part in self.parts]
        # By file and not by name: on most Macs `gemma` and `Gemma` are one folder.
        if self.dest.exists() and any(self.dest.samefile(one) for at in sources for one in (at, *at.parents)):
            raise UsageError(f"{self.dest} is the source itself, or holds it. Give another DEST.")
        if self.missing > self.free:
            raise ConversionError(
                f"The conversion needs {format_bytes(self.missing)} on disk; {format_bytes(self.free)} are free at "
                f"{self.dest.parent}. {MAKE_ROOM}"
            )


def check_free(dest: Path, *, force: bool, advice: str = "Give another DEST, or replace it with --force.") -> None:
    """Raise UsageError if there is something at the destination but a model with `force`; `advice` is for models."""
    if dest.exists() and not (dest / "config.json").is_file():
        raise UsageError(f"{dest} exists and is not a model, so --force does not replace it. Give another DEST.")
    if dest.exists() and not force:
        raise UsageError(f"{dest} exists. {advice}")


def plan_conversion(
    source: Path, drafter: Path | None, dest: Path, recipe: Recipe, *, origin: str, drafter_named: bool = True
) -> ConversionPlan:
    """Plan the conversion of a folder and its drafter, left out if not `drafter_named` and wrong. Raises LoadError."""
    target = read_config(source)
    if target.is_drafter:
        raise LoadError(f"{source} is a drafter. Give its target as SRC and this as --draft-model.")
    out = dest.with_name(dest.name + PARTIAL) / "model"
    parts = [_part("target", target, recipe, out)]
    if (source / TOKENIZER).exists():  # without one it may be run by token ids
        check_text_side(source)
    notes = []
    if drafter is not None:
        try:
            config = read_config(drafter)
            check_pair(target, config)
            parts.append(_part("drafter", config, recipe.for_drafter(config), out / "drafter"))
        except LoadError as error:
            if drafter_named:
                raise
            notes.append(f"{error} It is left out.")
    return ConversionPlan(dest, origin, tuple(parts), tuple(notes))


def _part(role: Literal["target", "drafter"], config: ModelConfig, recipe: Recipe, folder: Path) -> ConversionPart:
    tasks, left_out = make_tasks(config, read_folder(config.folder), recipe)
    files = (item for pattern in _COPIED for item in sorted(config.folder.glob(pattern)) if item.is_file())
    copied = tuple(dict.fromkeys(files))
    return ConversionPart(role, config, recipe, folder, tuple(tasks), tuple(left_out), _shards(folder, tasks), copied)


def _shards(folder: Path, tasks: list[Task]) -> tuple[Shard, ...]:
    groups: list[list[Layout]] = []
    size = SHARD
    for task in tasks:
        own = sum(part.nbytes for part in task.parts)
        if size + own > SHARD:
            groups.append([])
            size = 0
        groups[-1] += task.parts
        size += own
    shards = []
    for at, group in enumerate(groups, 1):
        number = f"-{at:05}-of-{len(groups):05}" if len(groups) > 1 else ""
        file = folder / f"model{number}.safetensors"
        header, places = lay_out(file, group, {"format": "mlx"})
        shards.append(Shard(file, header, tuple(places)))
    return tuple(shards)


def versions() -> dict[str, str]:
    """Return the versions of this program and of MLX, whose rounding is in every quantized value."""
    return {package: installed_version(package, "unknown") for package in ("mlxmtp", "mlx")}
