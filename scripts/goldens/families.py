"""The five families in miniature: sizes, and the JSON files of a published checkpoint.

Field names and the relations between fields follow the published configurations (which layers share K/V, which
attention kinds own a value projection, which drafter has a centroid head); only the numbers are small.
Knows nothing of torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

STOP_IDS = (1, 106)
GENERATION_STOP_IDS = (1, 106, 50)
DRAFTER_PATTERN = ("sliding_attention",) * 3 + ("full_attention",)


@dataclass(frozen=True, slots=True)
class Family:
    """Sizes of one target and its drafter. ``pattern`` is the period of the layer kinds, full attention last.

    ``attention_norm`` is the centre of the q/k norm weights: the smaller, the softer attention. With 1.0 it is so sharp
    that float32 rounding grows to 2e-4 over twelve layers; six layers bear more.
    """

    name: str
    layers: int
    pattern: int
    heads: int
    kv_heads: int
    global_kv_heads: int | None
    drafter_heads: int
    unified: bool = False
    k_eq_v: bool = False
    shared_layers: int = 0
    double_wide: bool = False
    ple: int = 0
    experts: int | None = None
    shards: int = 1
    towers: tuple[str, ...] = ("vision_tower", "embed_vision")
    hidden: int = 32
    intermediate: int = 32
    head_dim: int = 8
    global_head_dim: int = 16
    window: int = 16
    vocab: int = 128
    max_positions: int = 512
    centroids: int = 16
    centroid_top_k: int = 4
    attention_norm: float = 0.8

    @property
    def layer_types(self) -> list[str]:
        """The kind of every layer of the target."""
        return ["full_attention" if (i + 1) % self.pattern == 0 else "sliding_attention" for i in range(self.layers)]

    @property
    def has_centroids(self) -> bool:
        """Published: the two small families (with per-layer embeddings) have the sparse head, the others do not."""
        return self.ple > 0

    @property
    def first_shared(self) -> int:
        """Index of the first layer without K/V of its own (= number of layers when none shares)."""
        return self.layers - self.shared_layers


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family(
            "e2b", 10, 5, 4, 1, None, 4, shared_layers=5, double_wide=True, ple=16, attention_norm=0.55,
            towers=("vision_tower", "embed_vision", "audio_tower", "embed_audio"),
        ),
        Family("e4b", 12, 6, 4, 2, None, 4, shared_layers=6, ple=8, attention_norm=0.55),
        Family("12b", 6, 6, 4, 2, 1, 4, unified=True, k_eq_v=True, towers=("vision_embedder", "embed_vision")),
        Family("26b", 6, 6, 4, 4, 2, 4, k_eq_v=True, experts=4, shards=2),
        Family("31b", 6, 6, 8, 4, 2, 8, k_eq_v=True),
    )
}  # fmt: skip


def _text_config(family: Family, own: dict[str, Any]) -> dict[str, Any]:
    """``text_config`` of a target or drafter: the fields both have alike, and its ``own``."""
    config: dict[str, Any] = {
        "model_type": "gemma4_unified_text" if family.unified else "gemma4_text",
        "hidden_size": family.hidden,
        "num_key_value_heads": family.kv_heads,
        "num_global_key_value_heads": family.global_kv_heads,
        "head_dim": family.head_dim,
        "global_head_dim": family.global_head_dim,
        "attention_k_eq_v": family.k_eq_v,
        "sliding_window": family.window,
        "intermediate_size": family.intermediate,
        "vocab_size": family.vocab,
        "max_position_embeddings": family.max_positions,
        "rope_parameters": {
            "full_attention": {"partial_rotary_factor": 0.25, "rope_theta": 1e6, "rope_type": "proportional"},
            "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
        },
        "rms_norm_eps": 1e-6,
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": True,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "dtype": "bfloat16",
        "use_cache": True,
    }
    return config | own


def target_config(family: Family) -> dict[str, Any]:
    """``config.json`` of the target, plus a top-level ``vocab_size`` (mlx-lm reads it there)."""
    kind = "Gemma4Unified" if family.unified else "Gemma4"
    return {
        "model_type": "gemma4_unified" if family.unified else "gemma4",
        "architectures": [f"{kind}ForConditionalGeneration"],
        "text_config": _text_config(
            family,
            {
                "num_hidden_layers": family.layers,
                "num_attention_heads": family.heads,
                "layer_types": family.layer_types,
                "num_kv_shared_layers": family.shared_layers,
                "use_double_wide_mlp": family.double_wide,
                "hidden_size_per_layer_input": family.ple,
                "vocab_size_per_layer_input": family.vocab,
                "final_logit_softcapping": 30.0,
                "enable_moe_block": family.experts is not None,
                "num_experts": family.experts,
                "top_k_experts": 2 if family.experts else None,
                "moe_intermediate_size": family.intermediate if family.experts else None,
            },
        ),
        "vocab_size": family.vocab,
        "tie_word_embeddings": True,
        "eos_token_id": list(STOP_IDS),
        "dtype": "bfloat16",
        "image_token_id": 258880,
        "boi_token_id": 255999,
        "eoi_token_id": 258882,
    }


def drafter_config(family: Family) -> dict[str, Any]:
    """``config.json`` of the drafter: four layers without K/V of their own, no softcap, no per-layer embeddings."""
    kind = "Gemma4Unified" if family.unified else "Gemma4"
    return {
        "model_type": "gemma4_unified_assistant" if family.unified else "gemma4_assistant",
        "architectures": [f"{kind}AssistantForCausalLM"],
        "backbone_hidden_size": family.hidden,
        "use_ordered_embeddings": family.has_centroids,
        "num_centroids": family.centroids,
        "centroid_intermediate_top_k": family.centroid_top_k,
        "tie_word_embeddings": True,
        "text_config": _text_config(
            family,
            {
                "num_hidden_layers": len(DRAFTER_PATTERN),
                "num_attention_heads": family.drafter_heads,
                "layer_types": list(DRAFTER_PATTERN),
                "num_kv_shared_layers": len(DRAFTER_PATTERN),
                "use_double_wide_mlp": False,
                "hidden_size_per_layer_input": 0,
                "vocab_size_per_layer_input": 0,
                "final_logit_softcapping": None,
                "enable_moe_block": False,
                "num_experts": None,
                "top_k_experts": None,
                "moe_intermediate_size": None,
            },
        ),
        "dtype": "bfloat16",
    }


def generation_config(drafter: bool) -> dict[str, Any]:
    """``generation_config.json``: the targets sample and stop at three ids, the drafters name their draft length."""
    if drafter:
        return {"num_assistant_tokens": 6, "num_assistant_tokens_schedule": "constant"}
    return {
        "bos_token_id": 2,
        "pad_token_id": 0,
        "eos_token_id": list(GENERATION_STOP_IDS),
        "do_sample": True,
        "temperature": 1.0,
        "top_k": 64,
        "top_p": 0.95,
    }
