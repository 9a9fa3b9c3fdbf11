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
from mlxmtp.models.drafter import Drafter
from mlxmtp.models.linear import Matrix, Weights
from mlxmtp.models.load import evaluate
from mlxmtp.models.target import Target
from mlxmtp.models.tensors import Quantization, Tensor, parameter_count, tensors

WIDTH, HEAD, FULL_HEAD = 64, 32, 64
"""Hidden size, and the sizes that stand for heads of 256 and 512."""

_GROUP = 32
_ROPE = {
    "full_attention": {"partial_rotary_factor": 0.25, "rope_theta": 1e6, "rope_type": "proportional"},
    "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
}


@dataclass(frozen=True, slots=True)
class Pair:
    """A narrow pair, and mlx-lm's own network of the target."""

    target: Target
    drafter: Drafter
    stock: Any


def build(name: str, layers: int | None = None) -> Pair:
    """The pair that `name` of the registry stands for, packed to 4 bits as its default variant is.

    `layers`: the target has only its first ones.
    """
    entry = find_entry(name)
    if entry is None:
        raise SystemExit(f"there is no model {name}")
    config = _narrowed(entry.target_config(), layers)
    target = Target(_blank(config, packed=True), config)
    evaluate(target)
    wide = entry.drafter_config()
    drafter_config = _narrowed(wide)
    packed = parameter_count(wide) >= QUANTIZED_DRAFTER_FROM
    drafter = Drafter(_blank(drafter_config, packed=packed), drafter_config, target)
    evaluate(drafter)
    return Pair(target, drafter, _stock(config))


def complete(config: ModelConfig) -> ModelConfig:
    """With what the registry leaves out because no size depends on it."""
    text = {"hidden_size_per_layer_input": 0, "use_double_wide_mlp": False, "num_kv_shared_layers": 0, **config.text}
    text |= {
        "rope_parameters": _ROPE,
        "final_logit_softcapping": None if config.is_drafter else 30.0,
        "tie_word_embeddings": True,
    }
    return replace(config, text=text, raw={**config.raw, "centroid_intermediate_top_k": 32})


def _narrowed(wide: ModelConfig, layers: int | None = None) -> ModelConfig:
    config = complete(wide)
    text: dict[str, Any] = {
        **config.text,
        "layer_types": config.layer_types[:layers],
        "num_hidden_layers": len(config.layer_types[:layers]),
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


def _blank(config: ModelConfig, *, packed: bool) -> Weights:
    """Zeros in bfloat16, whole numbers in their own type; `packed` like a published conversion.

    Scalars of layers differ, as in published models: what makes a constant of one needs a kernel for each.
    """
    found = {}
    for place, tensor in enumerate(tensors(config)):
        whole = tensor.name.endswith("token_ordering")
        value = place / 2048 if tensor.name.endswith("layer_scalar") else 0
        values, how = mx.full(tensor.shape, value, mx.int64 if whole else mx.bfloat16), _quantization(tensor)
        if packed and how is not None:
            found[tensor.name] = Matrix(tuple(mx.quantize(values, **how.arguments)), how)
        else:
            found[tensor.name] = Matrix((values,))
    return Weights(found)


def _quantization(tensor: Tensor) -> Quantization | None:
    if not tensor.quantizable or tensor.kind == "per-layer projections":
        return None
    return Quantization(8 if tensor.kind in ("router", "per-layer embedding") else 4, _GROUP)


def _stock(config: ModelConfig) -> Any:
    """mlx-lm's ``gemma4_text.Model``, packed alike."""
    from mlx_lm.models import gemma4

    args = gemma4.ModelArgs(text_config=dict(config.text), vocab_size=config.vocab_size)
    network: Any = gemma4.Model(args).language_model
    network.update(
        tree_map(
            lambda a: mx.zeros(a.shape, mx.bfloat16 if mx.issubdtype(a.dtype, mx.floating) else a.dtype),
            network.parameters(),
        )
    )
    how = {tensor.module.removeprefix("language_model."): _quantization(tensor) for tensor in tensors(config)}
    named = {path: own.arguments for path, own in how.items() if own is not None}
    nn.quantize(network, class_predicate=lambda path, _: named.get(path, False))
    mx.eval(network.parameters())
    return network
