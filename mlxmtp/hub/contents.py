"""What the weight files of a model hold, by kind of module, read from their headers alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

from mlxmtp.models.config import ModelConfig
from mlxmtp.models.safetensors_file import Stored, read_folder

# The first that occurs in a tensor's name decides.
_KINDS = (
    ("vision", "vision tower (not loaded)"),
    ("audio", "audio tower (not loaded)"),
    ("embed_tokens_per_layer", "per-layer embedding"),
    ("norm", "norms and scalars"),
    ("per_layer", "per-layer projections"),
    ("embed_tokens", "embedding"),
    ("router", "router"),
    ("experts", "experts"),
    ("self_attn", "attention"),
    ("mlp", "mlp"),
    ("projection", "drafter's projections"),
    ("masked_embedding", "head"),
    ("lm_head", "head"),
)
_WIDTHS = {"BF16": "bf16", "F16": "f16", "F32": "f32", "I64": "int64", "I32": "int32"}


@dataclass(frozen=True, slots=True)
class Group:
    """All tensors of one kind and storage: `storage` is `bf16` or `4 bit, groups of 64`; `size` in bytes."""

    kind: str
    storage: str
    parameters: int
    size: int


def groups(config: ModelConfig) -> list[Group]:
    """What a folder's weights are, largest first. Raises LoadError for a file that is cut off or damaged."""
    sums: dict[tuple[str, str], tuple[int, int]] = {}
    for kind, storage, parameters, size in _described(read_folder(config.folder), config):
        count, total = sums.get((kind, storage), (0, 0))
        sums[kind, storage] = (count + parameters, total + size)
    found = [Group(kind, storage, count, size) for (kind, storage), (count, size) in sums.items()]
    return sorted(found, key=lambda group: -group.size)


def _described(stored: Mapping[str, Stored], config: ModelConfig) -> Iterator[tuple[str, str, int, int]]:
    for name, layout in ((name, one.layout) for name, one in stored.items()):
        module, _, part = name.rpartition(".")
        kind = next((label for word, label in _KINDS if word in name), "norms and scalars")
        packed = f"{module}.scales" in stored
        if packed and part in ("scales", "biases"):
            yield kind, _packing(module, config)[1], 0, layout.nbytes
        elif packed and part == "weight":
            bits, storage = _packing(module, config)
            yield kind, storage, prod(layout.shape) * 32 // bits, layout.nbytes
        else:
            yield kind, _WIDTHS.get(layout.dtype, layout.dtype.lower()), prod(layout.shape), layout.nbytes


def _packing(module: str, config: ModelConfig) -> tuple[int, str]:
    table = config.quantization or {}
    own = table.get(module)
    if isinstance(own, Mapping):
        table = {**table, **own}
    bits, group, mode = int(table.get("bits", 4)), int(table.get("group_size", 64)), str(table.get("mode") or "affine")
    return bits, f"{bits} bit, groups of {group}" if mode == "affine" else mode
