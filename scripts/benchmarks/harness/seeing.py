"""A checkpoint that sees, with random weights: a published vision tower's sizes before a small text network."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlxmtp.models.config import read_config
from mlxmtp.models.tensors import Tensor, tensors
from mlxmtp.models.towers import vision_config, vision_tensors

ROOT = Path(__file__).resolve().parents[3]
IDS = {"image_token_id": 4000, "boi_token_id": 4001, "eoi_token_id": 4002, "audio_token_id": 4003,
       "boa_token_id": 4004, "eoa_token_index": 4005, "video_token_id": 4006}  # fmt: skip
VOCABULARY = 4096
_TEXT = {
    "hidden_size": 512, "intermediate_size": 1024, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64,
    "global_head_dim": 128, "sliding_window": 512, "vocab_size": VOCABULARY, "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size_per_layer_input": 32, "max_position_embeddings": 32768,
}  # fmt: skip
_TOWERS: dict[str, dict[str, Any]] = {
    "e2b": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 16, "num_attention_heads": 12,
            "num_key_value_heads": 12, "head_dim": 64, "global_head_dim": 64},
    "31b": {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16,
            "num_key_value_heads": 16, "head_dim": 72, "global_head_dim": 72},
}  # fmt: skip
TOWERS = tuple(_TOWERS)
_SIZE = 0.02  # standard deviation of a weight


def write(tower: str, layers: int | None, folder: Path) -> None:
    """Write the checkpoint into `folder`; `layers` of the tower instead of the published number."""
    folder.mkdir(parents=True)
    raw = json.loads((ROOT / "tests/goldens/media" / tower / "config.json").read_text(encoding="utf-8"))
    raw |= {**IDS, "vocab_size": VOCABULARY}
    raw.pop("audio_config", None)
    raw["text_config"] |= _TEXT
    raw["vision_config"] |= _TOWERS[tower] | {"position_embedding_size": 10240, "default_output_length": 280}
    if layers is not None:
        raw["vision_config"]["num_hidden_layers"] = layers
    (folder / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    mx.random.seed(0)
    made = dict(_values(folder))
    mx.save_safetensors(str(folder / "model.safetensors"), made, {"format": "mlx"})


def _values(folder: Path) -> Iterator[tuple[str, mx.array]]:
    config = read_config(folder)
    vision = vision_config(config)
    assert vision is not None
    for tensor in (*tensors(config), *vision_tensors(vision)):
        yield tensor.name, _value(tensor).astype(mx.bfloat16)


def _value(tensor: Tensor) -> mx.array:
    if tensor.name.endswith(("_min", "_max")):
        return mx.array(-100.0 if tensor.name.endswith("_min") else 100.0)
    if len(tensor.shape) == 1:
        return mx.ones(tensor.shape)
    return _SIZE * mx.random.normal(tensor.shape)
