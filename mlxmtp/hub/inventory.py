"""The models on this machine, with their sizes and what their files hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path

from mlxmtp.errors import LoadError, MlxmtpError
from mlxmtp.hub.cache import INCOMPLETE, PARTIAL, CachedRepo, is_complete
from mlxmtp.hub.registry import BUILT_IN, Entry, entries, find_entry
from mlxmtp.hub.store import Checkpoint, Store
from mlxmtp.machine.memory import Need, need
from mlxmtp.models.config import ModelConfig, read_config
from mlxmtp.models.safetensors import Stored, read_folder
from mlxmtp.models.tensors import Names, Quantization, module_quantization, parameter_count

_WIDTHS = {"BF16": "bf16", "F16": "f16", "F32": "f32", "I64": "int64", "I32": "int32"}


@dataclass(frozen=True, slots=True)
class Group:
    """All tensors of one kind and storage: `storage` is `bf16` or `4 bit, groups of 64`."""

    kind: str
    storage: str
    parameters: int
    bytes: int


def groups(config: ModelConfig) -> list[Group]:
    """Return kinds and storage of a folder's weights, largest first. Raises LoadError for a damaged file."""
    sums: dict[tuple[str, str], tuple[int, int]] = {}
    for kind, storage, parameters, size in _described(read_folder(config.folder), config):
        count, total = sums.get((kind, storage), (0, 0))
        sums[kind, storage] = (count + parameters, total + size)
    found = [Group(kind, storage, count, size) for (kind, storage), (count, size) in sums.items()]
    return sorted(found, key=lambda group: -group.bytes)


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
"""Tokens of the conversation for which it is decided if a model fits."""


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A model that is installed, or could be: then `modified` (seconds since 1970) is None and config has no folder.

    `drafter` is the paired drafter's name. Sizes are bytes on disk, or of the download (None: unknown).
    """

    name: str
    repo: str | None
    config: ModelConfig
    drafter: str | None
    drafter_config: ModelConfig | None
    target_size: int | None
    drafter_size: int | None
    modified: float | None

    @property
    def size(self) -> int | None:
        """Bytes of target and drafter, as far as they are known."""
        return self.target_size and self.target_size + (self.drafter_size or 0)

    @property
    def parameters(self) -> int:
        return parameter_count(self.config)

    @property
    def quantization(self) -> str:
        return quantization(self.config)

    @property
    def drafter_quantization(self) -> str | None:
        return None if self.drafter_config is None else quantization(self.drafter_config)

    def needs(self, context: int = CONTEXT) -> Need:
        """Return the memory for a conversation of `context` tokens."""
        return need(self.config, self.drafter_config, context)


def installed(store: Store) -> list[KnownModel]:
    """Return every model here that can answer, the built-in one first; what cannot be read is left out."""
    models: list[KnownModel] = []
    for checkpoint in _targets(store):
        with suppress(MlxmtpError):  # not a Gemma 4, or damaged: asking for it by name says so
            models.append(describe(store, checkpoint))
    return models


def describe(store: Store, checkpoint: Checkpoint) -> KnownModel:
    """Return a model from its folder. Raises LoadError if that holds none that can answer."""
    config = read_config(checkpoint.folder)
    if config.is_drafter:
        raise LoadError(f"{checkpoint.name} is a drafter: it answers nothing on its own.")
    cached = CachedRepo(checkpoint.folder.parent.parent)  # if it is a snapshot of the cache
    repo = cached.repo if cached.folder.name.startswith("models--") else None
    drafter = store.drafter_for(checkpoint, None)
    modified = max(item.stat().st_mtime for item in checkpoint.folder.iterdir() if item.is_file())
    size = _files_size(checkpoint.folder)
    if drafter is None:
        return KnownModel(checkpoint.name, repo, config, None, None, size, 0, modified)
    paired = read_config(drafter.folder)
    return KnownModel(checkpoint.name, repo, config, drafter.name, paired, size, _files_size(drafter.folder), modified)


def available(models: list[KnownModel]) -> list[KnownModel]:
    """Return the models with short names that are not here, in the variants that are not just another name."""
    here = {model.repo for model in models}
    converted = {(one.family, one.variant) for model in models if (one := find_entry(model.name)) is not None}
    others: dict[str, KnownModel] = {}
    for entry in entries():
        if entry.target.repo not in here and (entry.family, entry.variant) not in converted:
            others.setdefault(entry.target.repo, _uninstalled(entry))
    return list(others.values())


def _uninstalled(entry: Entry) -> KnownModel:
    target, drafter = entry.target, entry.drafter
    target_config, drafter_config = entry.target_config(), entry.drafter_config()
    return KnownModel(
        entry.name, target.repo, target_config, drafter.repo, drafter_config, target.size, drafter.size, None
    )


def unfinished_downloads(store: Store) -> list[tuple[str, int]]:
    """Return the repositories of which only a part has arrived, with its bytes."""
    return [
        (cached.repo, cached.size_on_disk())
        for cached in _cached_repos(store)
        if any(cached.folder.glob(f"blobs/*{INCOMPLETE}")) and store.cached(cached.repo) is None
    ]


def unfinished_conversions(store: Store) -> list[tuple[str, int]]:
    """Return the names of conversions that were interrupted, with the bytes they have so far."""
    return [
        (folder.name, sum(item.stat().st_blocks * 512 for item in folder.rglob("*.safetensors")))
        for folder in _conversions(store)
        if folder.name.endswith(PARTIAL) and (folder / "model").is_dir()
    ]


def total_size(models: list[KnownModel]) -> int:
    """Return the bytes of all of them; a drafter that several use counts once."""
    drafters = {model.drafter_config.folder: model.drafter_size or 0 for model in models if model.drafter_config}
    return sum(model.target_size or 0 for model in models) + sum(drafters.values())


def quantization(config: ModelConfig) -> str:
    """Return `4bit`, `mxfp4`, or the dtype of weights that are not quantized."""
    block = config.quantization
    if block is not None:
        mode = str(block.get("mode") or "affine")
        return f"{block.get('bits', 4)}bit" if mode == "affine" else mode
    dtype = config.raw.get("dtype") or config.raw.get("torch_dtype") or config.text.get("dtype") or "bfloat16"
    return {"bfloat16": "bf16", "float16": "f16", "float32": "f32"}.get(str(dtype), str(dtype))


def _targets(store: Store) -> Iterator[Checkpoint]:
    """Yield every target: the built-in one, complete snapshots of the cache, conversions."""
    with suppress(LoadError):  # an installation without it: `doctor` says so
        yield store.resolve(BUILT_IN)
    for cached in _cached_repos(store):
        folder = store.cached(cached.repo)
        if folder is not None:
            entry = find_entry(cached.repo)
            named = entry is not None and store.converted(entry) is None
            yield Checkpoint(entry.name if entry and named else cached.repo, folder, entry)
    names: dict[Path | None, str] = {}
    for entry in entries():
        names.setdefault(store.converted(entry), entry.name)
    for folder in _conversions(store):
        if is_complete(folder):
            yield Checkpoint(names.get(folder, folder.name), folder)


def _files_size(folder: Path) -> int:
    return sum(item.stat().st_size for item in folder.iterdir() if item.is_file())


def _conversions(store: Store) -> list[Path]:
    folder = store.models
    return [item for item in sorted(folder.iterdir()) if not item.name.startswith(".")] if folder.is_dir() else []


def _cached_repos(store: Store) -> list[CachedRepo]:
    cache = store.places.hf_cache
    return [CachedRepo(item) for item in sorted(cache.glob("models--*--*")) if item.is_dir()] if cache.is_dir() else []
