"""What the weight files of a model hold, by kind of module, read from their headers alone."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from mlxmtp.errors import LoadError
from mlxmtp.hub.cache import INDEX, indexed
from mlxmtp.models.config import ModelConfig

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


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights."""
    names = indexed(folder / INDEX)
    return sorted(folder / name for name in names) if names else sorted(folder.glob("model*.safetensors"))


def groups(config: ModelConfig) -> list[Group]:
    """What a folder's weights are, largest first. Raises LoadError for a file that is not safetensors."""
    headers: dict[str, Any] = {}
    for file in weight_files(config.folder):
        headers |= _header(file)
    sums: dict[tuple[str, str], tuple[int, int]] = {}
    for kind, storage, parameters, size in _described(headers, config):
        count, total = sums.get((kind, storage), (0, 0))
        sums[kind, storage] = (count + parameters, total + size)
    found = [Group(kind, storage, count, size) for (kind, storage), (count, size) in sums.items()]
    return sorted(found, key=lambda group: -group.size)


def _described(headers: Mapping[str, Any], config: ModelConfig) -> Iterator[tuple[str, str, int, int]]:
    for name, entry in headers.items():
        module, _, part = name.rpartition(".")
        size = entry["data_offsets"][1] - entry["data_offsets"][0]
        kind = next((label for word, label in _KINDS if word in name), "norms and scalars")
        packed = f"{module}.scales" in headers
        if packed and part in ("scales", "biases"):
            yield kind, _packing(module, config)[1], 0, size
        elif packed and part == "weight":
            bits, storage = _packing(module, config)
            yield kind, storage, prod(entry["shape"]) * 32 // bits, size
        else:
            yield kind, _WIDTHS.get(entry["dtype"], str(entry["dtype"]).lower()), prod(entry["shape"]), size


def _packing(module: str, config: ModelConfig) -> tuple[int, str]:
    table = config.quantization or {}
    own = table.get(module)
    if isinstance(own, Mapping):
        table = {**table, **own}
    bits, group, mode = int(table.get("bits", 4)), int(table.get("group_size", 64)), str(table.get("mode") or "affine")
    return bits, f"{bits} bit, groups of {group}" if mode == "affine" else mode


def _header(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > file.stat().st_size:
                raise ValueError("it is cut off")
            table: dict[str, Any] = json.loads(stream.read(length))
    except (OSError, ValueError, struct.error) as error:
        raise LoadError(f"{file} cannot be read ({error}). Pull the model again.") from None
    return {name: entry for name, entry in table.items() if name != "__metadata__"}
