"""Configurations of the five full-size pairs, and the sizes that must come out of them.

Numbers are those of the published config.json files and safetensors headers (google/gemma-4-*-it and *-it-assistant),
written down here so that the test stands on its own.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VOCAB = 262144


@dataclass(frozen=True, slots=True)
class Pair:
    """One family: text_config differences, and parameter counts of target and drafter (token ordering left out)."""

    target_type: str
    drafter_type: str
    text: dict[str, Any]
    drafter_text: dict[str, Any]
    centroids: bool
    target_parameters: int
    drafter_parameters: int
    stores: tuple[int, int]  # sliding, full


def _layers(count: int, sliding: int) -> list[str]:
    return ((["sliding_attention"] * sliding + ["full_attention"]) * count)[:count]


def _text(hidden: int, layers: int, sliding: int, heads: int, kv: int, **more: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "model_type": "gemma4_text",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "num_global_key_value_heads": None,
        "head_dim": 256,
        "global_head_dim": 512,
        "attention_k_eq_v": False,
        "layer_types": _layers(layers, sliding),
        "num_kv_shared_layers": 0,
        "use_double_wide_mlp": False,
        "hidden_size_per_layer_input": 0,
        "vocab_size": VOCAB,
        "vocab_size_per_layer_input": VOCAB,
        "final_logit_softcapping": 30.0,
        "rope_parameters": {
            "full_attention": {"partial_rotary_factor": 0.25, "rope_theta": 1e6, "rope_type": "proportional"},
            "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
        },
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "enable_moe_block": False,
    }
    return base | more


def _drafter(width: int, mlp: int, heads: int, kv: int, window: int, positions: int, **more: Any) -> dict[str, Any]:
    return _text(
        width, 4, 3, heads, kv, intermediate_size=mlp, sliding_window=window, max_position_embeddings=positions,
        num_kv_shared_layers=4, vocab_size_per_layer_input=0, final_logit_softcapping=None, **more,
    )  # fmt: skip


_SMALL = {"sliding_window": 512, "max_position_embeddings": 131072, "hidden_size_per_layer_input": 256}
_LARGE = {"sliding_window": 1024, "max_position_embeddings": 262144, "attention_k_eq_v": True}

PAIRS = {
    "e2b": Pair(
        "gemma4", "gemma4_assistant",
        _text(1536, 35, 4, 8, 1, intermediate_size=6144, num_kv_shared_layers=20, use_double_wide_mlp=True, **_SMALL),
        _drafter(256, 2048, 4, 1, 512, 131072), True, 4_628_569_379, 77_731_332, (13, 14),
    ),
    "e4b": Pair(
        "gemma4", "gemma4_assistant",
        _text(2560, 42, 5, 8, 2, intermediate_size=10240, num_kv_shared_layers=18, **_SMALL),
        _drafter(256, 2048, 4, 2, 512, 131072), True, 7_463_013_418, 78_517_764, (22, 23),
    ),
    "12b": Pair(
        "gemma4_unified", "gemma4_unified_assistant",
        _text(3840, 48, 5, 16, 8, intermediate_size=15360, num_global_key_value_heads=1, **_LARGE),
        _drafter(1024, 8192, 16, 8, 1024, 262144, num_global_key_value_heads=1, attention_k_eq_v=True),
        False, 11_907_350_320, 422_856_964, (46, 47),
    ),
    "26b": Pair(
        "gemma4", "gemma4_assistant",
        _text(2816, 30, 5, 16, 8, intermediate_size=2112, num_global_key_value_heads=2, enable_moe_block=True,
              num_experts=128, top_k_experts=8, moe_intermediate_size=704, **_LARGE),
        _drafter(1024, 8192, 16, 8, 1024, 262144, num_global_key_value_heads=2, attention_k_eq_v=True),
        False, 25_233_141_790, 419_711_236, (28, 29),
    ),
    "31b": Pair(
        "gemma4", "gemma4_assistant",
        _text(5376, 60, 5, 32, 16, intermediate_size=21504, num_global_key_value_heads=4, **_LARGE),
        _drafter(1024, 8192, 32, 16, 1024, 262144, num_global_key_value_heads=4, attention_k_eq_v=True),
        False, 30_697_345_340, 469_518_596, (58, 59),
    ),
}  # fmt: skip


def write(folder: Path, family: str) -> tuple[Path, Path]:
    """config.json of target and drafter in two folders below ``folder``."""
    pair = PAIRS[family]
    target: dict[str, Any] = {"model_type": pair.target_type, "text_config": pair.text, "eos_token_id": [1, 106]}
    drafter: dict[str, Any] = {
        "model_type": pair.drafter_type,
        "text_config": pair.drafter_text,
        "backbone_hidden_size": pair.text["hidden_size"],
        "use_ordered_embeddings": pair.centroids,
        "num_centroids": 2048,
        "centroid_intermediate_top_k": 32,
    }
    paths = []
    for name, config in (("target", target), ("drafter", drafter)):
        path = folder / name
        path.mkdir(parents=True)
        (path / "config.json").write_text(json.dumps(config))
        paths.append(path)
    return paths[0], paths[1]
