"""Golden pairs whose full layers have heads wide enough to be packed; the rest of the configuration, other weights.

`pair("e2b", 64, 4)` is E2B in small, heads of 64 entries, keys and values in 4 bits.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import mlx.core as mx

from mlxmtp.models.config import ModelConfig, read_config
from mlxmtp.models.drafter import Drafter
from mlxmtp.models.load import assemble
from mlxmtp.models.target import Target
from mlxmtp.models.tensors import NORM, kv_quantization, tensors
from tests.golden import FOLDER

PAIRS = [("e2b", 64), ("31b", 32)]
"""One K/V head, layers that share, a sparse head; two K/V heads of half the width, keys that are values."""


@cache
def pair(family: str, dim: int, bits: int | None) -> tuple[Target, Drafter]:
    """Target and drafter; the same weights whatever the bits."""
    config, drafting = (_wide(family, name, dim) for name in ("target", "drafter"))
    target = Target(assemble(config, random_weights(config)), config, kv_quantization(config, bits))
    return target, Drafter(assemble(drafting, random_weights(drafting)), drafting, target)


def _wide(family: str, name: str, dim: int) -> ModelConfig:
    config = read_config(FOLDER / family / name)
    text = {**config.text, "global_head_dim": dim}
    return replace(config, text=text, raw={**config.raw, "text_config": text})


def random_weights(config: ModelConfig) -> dict[str, mx.array]:
    """Return tensors of the network that a configuration describes, by their names in MLX conversions."""
    mx.random.seed(7)
    found: dict[str, mx.array] = {}
    for tensor in tensors(config):
        value: Any
        if tensor.name.endswith("token_ordering"):
            value = mx.random.permutation(tensor.shape[0])
        elif tensor.kind == NORM:
            value = mx.random.uniform(0.5, 1.0, tensor.shape)
        else:
            value = mx.random.normal(tensor.shape) * tensor.shape[-1] ** -0.5
        found[tensor.name] = value
    return found
