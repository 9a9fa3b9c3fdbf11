"""Pairs with the architecture of a published one and next to no width, so that their rounds can be traced anywhere.

Layers, kinds of layers, heads, shared K/V, per-layer inputs, experts chosen, the drafter's head and what is packed are
those of the real pair; only widths are small. Weights are zeros: nothing is ever computed with them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

from mlxmtp.hub.registry import find_entry
from mlxmtp.limits import QUANTIZED_DRAFTER_FROM
from mlxmtp.models.config import ModelConfig
from mlxmtp.models.drafter import Drafter, DrafterWeights
from mlxmtp.models.load import build_target
from mlxmtp.models.target import Target
from mlxmtp.models.tensors import parameter_count

WIDTH, HEAD, FULL_HEAD = 64, 32, 64
"""Hidden size, and the sizes that stand for heads of 256 and 512."""

_GROUP = 32
_ROPE = {
    "full_attention": {"partial_rotary_factor": 0.25, "rope_theta": 1e6, "rope_type": "proportional"},
    "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
}


@dataclass(frozen=True, slots=True)
class Pair:
    """A narrow pair, and mlx-lm's own network of the target, which still has all of its weights."""

    target: Target
    drafter: Drafter
    stock: Any


def build(name: str) -> Pair:
    """The pair that `name` of the registry stands for, packed to 4 bits as its default variant is."""
    entry = find_entry(name)
    if entry is None:
        raise SystemExit(f"there is no model {name}")
    config = _narrowed(entry.target_config())
    network, stock = _target(config), _target(config)
    target = Target(network, config)
    _evaluate(target.arrays(), network)
    mx.eval(stock.parameters())
    wide = entry.drafter_config()
    drafter_config = _narrowed(wide)
    weights = DrafterWeights(drafter_config)
    _blank(weights)
    if parameter_count(wide) >= QUANTIZED_DRAFTER_FROM:
        nn.quantize(weights, group_size=_GROUP, bits=4)
    drafter = Drafter(weights, drafter_config, target)
    _evaluate(drafter.arrays(), weights)
    return Pair(target, drafter, stock)


def complete(config: ModelConfig) -> ModelConfig:
    """With what the registry leaves out because no size depends on it."""
    text = {"hidden_size_per_layer_input": 0, "use_double_wide_mlp": False, "num_kv_shared_layers": 0, **config.text}
    text |= {
        "rope_parameters": _ROPE,
        "final_logit_softcapping": None if config.is_drafter else 30.0,
        "tie_word_embeddings": True,
    }
    return replace(config, text=text, raw={**config.raw, "centroid_intermediate_top_k": 32})


def _narrowed(wide: ModelConfig) -> ModelConfig:
    config = complete(wide)
    text: dict[str, Any] = {
        **config.text,
        "hidden_size": WIDTH,
        "intermediate_size": WIDTH,
        "head_dim": HEAD,
        "global_head_dim": FULL_HEAD,
        "vocab_size_per_layer_input": 64,
    }
    if text["hidden_size_per_layer_input"]:
        text["hidden_size_per_layer_input"] = _GROUP
    if text.get("enable_moe_block"):
        text |= {"num_experts": 16, "moe_intermediate_size": WIDTH}
    return replace(config, text=text, raw={**config.raw, "backbone_hidden_size": WIDTH})


def _target(config: ModelConfig) -> Any:
    """mlx-lm's ``gemma4_text.Model``, packed like a published conversion."""
    network = build_target(config).language_model
    _blank(network)

    def how(path: str, module: Any) -> bool | dict[str, int]:
        if not hasattr(module, "to_quantized"):
            return False
        if "router" in path or "embed_tokens_per_layer" in path:
            return {"group_size": _GROUP, "bits": 8}
        return "per_layer" not in path

    nn.quantize(network, group_size=_GROUP, bits=4, class_predicate=how)
    return network


def _blank(module: Any) -> None:
    """Zeros in bfloat16, whole numbers in their own type."""
    module.update(
        tree_map(
            lambda a: mx.zeros(a.shape, mx.bfloat16 if mx.issubdtype(a.dtype, mx.floating) else a.dtype),
            module.parameters(),
        )
    )


def _evaluate(arrays: list[Any], module: Any) -> None:
    for part in arrays:
        mx.eval(part)
    mx.eval(module.parameters())
