"""What is installed, and what could be: the data behind `mlxmtp ls`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxmtp.errors import LoadError, MlxmtpError
from mlxmtp.hub.cache import PARTIAL, CachedRepo, is_complete
from mlxmtp.hub.registry import BUILT_IN, Entry, entries, find_entry
from mlxmtp.hub.store import Found, Store
from mlxmtp.machine.memory import Need, need
from mlxmtp.models.config import ModelConfig, read_config
from mlxmtp.models.safetensors import Stored, read_folder
from mlxmtp.models.tensors import Names, Quantization, module_quantization, parameter_count

if TYPE_CHECKING:
    from mlxmtp.settings import Places

_WIDTHS = {"BF16": "bf16", "F16": "f16", "F32": "f32", "I64": "int64", "I32": "int32"}


@dataclass(frozen=True, slots=True)
class Group:
    """All tensors of one kind and storage: `storage` is `bf16` or `4 bit, groups of 64`; `size` in bytes."""

    kind: str
    storage: str
    parameters: int
    size: int


def groups(config: ModelConfig) -> list[Group]:
    """Return kinds and storage of a folder's weights, largest first. Raises LoadError for a damaged file."""
    sums: dict[tuple[str, str], tuple[int, int]] = {}
    for kind, storage, parameters, size in _described(read_folder(config.folder), config):
        count, total = sums.get((kind, storage), (0, 0))
        sums[kind, storage] = (count + parameters, total + size)
    found = [Group(kind, storage, count, size) for (kind, storage), (count, size) in sums.items()]
    return sorted(found, key=lambda group: -group.size)


def _described(stored: Mapping[str, Stored], config: ModelConfig) -> Iterator[tuple[str, str, int, int]]:
    """Yield kind, storage, parameters and bytes of every tensor of a folder."""
    names, block = Names(config), config.quantization or {}
    for name, layout in ((name, one.layout) for name, one in stored.items()):
        module, _, part = name.rpartition(".")
        quantized = f"{module}.scales" in stored and part in ("weight", "scales", "biases")
        kind: str = names.kind(f"{module}.weight" if quantized else name)
        kind += " (not loaded)" if kind.endswith("tower") else ""
        if quantized:
            how = module_quantization(module, block) or Quantization.read(block)
            storage = f"{how.title}, groups of {how.group_size}" if how.mode == "affine" else how.title
            yield kind, storage, prod(layout.shape) * 32 // how.bits if part == "weight" else 0, layout.nbytes
        else:
            yield kind, _WIDTHS.get(layout.dtype, layout.dtype.lower()), prod(layout.shape), layout.nbytes


CONTEXT = 4096
"""Tokens of the conversation for which `fits` is decided."""


@dataclass(frozen=True, slots=True)
class Model:
    """A model on this machine. `size` is bytes on disk of target and drafter, `modified` seconds since 1970."""

    name: str
    repo: str | None
    folder: Path
    config: ModelConfig
    drafter: Found | None
    drafter_config: ModelConfig | None
    target_size: int
    drafter_size: int
    modified: float

    @property
    def size(self) -> int:
        """Bytes on disk of target and drafter."""
        return self.target_size + self.drafter_size

    def needs(self, context: int = CONTEXT) -> Need:
        """Memory for a conversation of `context` tokens."""
        return need(self.config, self.drafter_config, context)


@dataclass(frozen=True, slots=True)
class Available:
    """A model that `pull` could get; `size` in bytes where it is known."""

    entry: Entry

    def needs(self, context: int = CONTEXT) -> Need:
        """Memory for a conversation of `context` tokens."""
        return need(self.entry.target_config(), self.entry.drafter_config(), context)


def installed(store: Store, places: Places) -> list[Model]:
    """Every model here that can answer, the built-in one first; what cannot be read is left out."""
    found: list[Model] = []
    for one, repo in _targets(store, places):
        try:
            found.append(describe(store, one, repo))
        except MlxmtpError:  # not a Gemma 4, or damaged: asking for it by name says so
            continue
    return found


def describe(store: Store, found: Found, repo: str | None) -> Model:
    """A model from its folder. Raises LoadError if that holds none that can answer."""
    config = read_config(found.folder)
    if config.is_drafter:
        raise LoadError(f"{found.name} is a drafter: it answers nothing on its own.")
    drafter = store.drafter_for(found, None)
    files = [item for item in found.folder.iterdir() if item.is_file()]
    return Model(
        found.name,
        repo,
        found.folder,
        config,
        drafter,
        None if drafter is None else read_config(drafter.folder),
        sum(item.stat().st_size for item in files),
        0 if drafter is None else sum(item.stat().st_size for item in drafter.folder.iterdir() if item.is_file()),
        max(item.stat().st_mtime for item in files),
    )


def available(models: list[Model]) -> list[Available]:
    """The models with short names that are not here, in the variants that are not just another name."""
    here = {model.repo for model in models}
    made = {(one.family, one.variant) for one in map(find_entry, (model.name for model in models)) if one is not None}
    found: dict[str, Available] = {}
    for entry in entries():
        if entry.target.repo not in here and (entry.family, entry.variant) not in made:
            found.setdefault(entry.target.repo, Available(entry))
    return list(found.values())


def unfinished(store: Store, places: Places) -> list[tuple[str, int]]:
    """Repositories of which only a part has arrived, with its bytes."""
    return [
        (cached.repo, cached.size_on_disk())
        for cached in _cached_repos(places)
        if any(cached.folder.glob("blobs/*.incomplete")) and store.cached(cached.repo) is None
    ]


def total_size(models: list[Model]) -> int:
    """Bytes of all of them; a drafter that several use counts once."""
    drafters = {model.drafter.folder: model.drafter_size for model in models if model.drafter is not None}
    return sum(model.target_size for model in models) + sum(drafters.values())


def quantization(config: ModelConfig) -> str:
    """Return `4bit`, `mxfp4`, or the dtype of weights that are not quantized."""
    if config.quantization is not None:
        return Quantization.read(config.quantization).title.replace(" ", "")
    dtype = config.raw.get("dtype") or config.raw.get("torch_dtype") or config.text.get("dtype") or "bfloat16"
    return {"bfloat16": "bf16", "float16": "f16", "float32": "f32"}.get(str(dtype), str(dtype))


def as_table(model: Model, default: bool, room: int) -> dict[str, Any]:
    """A model as `ls --json` shows it."""
    needed = model.needs().total
    return {
        "name": model.name,
        "repo": model.repo,
        "folder": str(model.folder),
        "parameters": parameter_count(model.config),
        "quantization": quantization(model.config),
        "bytes": model.size,
        "drafter": None if model.drafter is None else model.drafter.name,
        "modified": model.modified,
        "default": default,
        "installed": True,
        "memory": needed,
        "fits": needed <= room,
    }


def available_as_table(one: Available, room: int) -> dict[str, Any]:
    """A model that is not here as `ls --all --json` shows it: the same keys."""
    config, needed = one.entry.target_config(), one.needs().total
    return {
        "name": one.entry.name,
        "repo": one.entry.target.repo,
        "folder": None,
        "parameters": parameter_count(config),
        "quantization": quantization(config),
        "bytes": one.entry.size or one.entry.target.size,
        "drafter": one.entry.drafter.repo,
        "modified": None,
        "default": False,
        "installed": False,
        "memory": needed,
        "fits": needed <= room,
    }


def _targets(store: Store, places: Places) -> Iterator[tuple[Found, str | None]]:
    with suppress(LoadError):  # an installation without it: `doctor` says so
        yield store.resolve(BUILT_IN), None
    for cached in _cached_repos(places):
        folder = store.cached(cached.repo)
        if folder is not None:
            entry = find_entry(cached.repo)
            shadowed = entry is None or store.made(entry) is not None
            yield Found(cached.repo if entry is None or shadowed else entry.name, folder, entry), cached.repo
    names: dict[Path | None, str] = {}
    for entry in entries():
        names.setdefault(store.made(entry), entry.name)
    for folder in _made_here(places):
        if is_complete(folder):
            yield Found(names.get(folder, folder.name), folder), None


def unfinished_conversions(places: Places) -> list[tuple[str, int]]:
    """Names of conversions that were interrupted, with the bytes they have so far."""
    return [
        (folder.name, sum(item.stat().st_blocks * 512 for item in folder.rglob("*.safetensors")))
        for folder in _made_here(places)
        if folder.name.endswith(PARTIAL) and (folder / "model").is_dir()
    ]


def _made_here(places: Places) -> list[Path]:
    made = places.data / "models"
    return [item for item in sorted(made.iterdir()) if not item.name.startswith(".")] if made.is_dir() else []


def _cached_repos(places: Places) -> list[CachedRepo]:
    cache = places.hf_cache
    return [CachedRepo(item) for item in sorted(cache.glob("models--*--*")) if item.is_dir()] if cache.is_dir() else []
