"""Checkpoints in the sizes of a published pair: random weights, in 4 bits and in files as conversions have them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlxmtp.hub.registry import find_entry
from mlxmtp.models.config import ModelConfig
from mlxmtp.models.tensors import Quantization, Tensor, tensors
from scripts.benchmarks.graphs.narrow import complete

ROOT = Path(__file__).resolve().parents[3]
_HOW = Quantization(4, 64)
_SIZE = 0.02  # standard deviation of a weight


def write(name: str, pair: str, shard: int) -> None:
    """Write target and drafter of the registry's `name` into `pair`, in files of about `shard` bytes.

    The tokenizer is the built-in model's: whoever asks for text gets that of the first few thousand ids.
    """
    entry = find_entry(name)
    if entry is None:
        raise SystemExit(f"there is no model {name}")
    _checkpoint(complete(entry.target_config()), "gemma4", Path(pair, "target"), shard, packed=True)
    _checkpoint(complete(entry.drafter_config()), "gemma4_assistant", Path(pair, "drafter"), shard, packed=False)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(ROOT / "assets/pocket/target" / file, Path(pair, "target", file))


def _checkpoint(config: ModelConfig, kind: str, folder: Path, shard: int, *, packed: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    places, part, size, files = {}, dict[str, mx.array](), 0, 0
    for key, value in _values(config, packed=packed):
        part[key], size = value, size + value.nbytes
        places[key] = f"model-{files:05}.safetensors"
        if size >= shard:
            mx.save_safetensors(str(folder / places[key]), part, {"format": "mlx"})
            part, size, files = {}, 0, files + 1
    if part:
        mx.save_safetensors(str(folder / f"model-{files:05}.safetensors"), part, {"format": "mlx"})
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    raw: dict[str, Any] = {**config.raw, "model_type": kind, "text_config": dict(config.text)}
    raw.pop("quantization", None)
    if packed:
        raw["quantization"] = {**_HOW.arguments, **{t.module: False for t in tensors(config) if not _packs(t)}}
    (folder / "config.json").write_text(json.dumps(raw), encoding="utf-8")


def _packs(tensor: Tensor) -> bool:
    return tensor.quantizable and tensor.kind != "per-layer projections"


def _values(config: ModelConfig, *, packed: bool) -> Iterator[tuple[str, mx.array]]:
    for tensor in tensors(config):
        if packed and _packs(tensor):
            *rows, width = tensor.shape
            groups = (*rows, width // _HOW.group_size)
            packed_shape = (*rows, width * _HOW.bits // 32)
            yield tensor.name, mx.random.randint(-(2**31), 2**31 - 1, packed_shape, mx.int32).view(mx.uint32)
            yield f"{tensor.module}.scales", mx.full(groups, _SIZE / 4, mx.bfloat16)
            yield f"{tensor.module}.biases", mx.full(groups, -2 * _SIZE, mx.bfloat16)
        elif tensor.name.endswith("token_ordering"):
            yield tensor.name, mx.arange(tensor.size, dtype=mx.int64)
        elif tensor.quantizable:
            yield tensor.name, (_SIZE * mx.random.normal(tensor.shape)).astype(mx.bfloat16)
        else:
            yield tensor.name, mx.ones(tensor.shape, mx.bfloat16)
