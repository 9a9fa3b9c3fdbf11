"""MLX's packed weights: rebuilding the modules a checkpoint was quantized with, and packing a drafter at load."""

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlxmtp.errors import LoadError

DRAFTER_BITS_FROM = 200_000_000
"""Dense drafters at least this large (12B, 26B, 31B: 0.42 to 0.47 billion) keep their acceptance at 4 bits while the head
costs half as much to read; the small ones with a centroid head keep 16 bits (measurements of others, docs/architecture.md)."""


def prepare(model: Any, weights: Mapping[str, mx.array], quantization: Mapping[str, Any]) -> None:
    """Replaces the modules of ``model`` that ``weights`` holds in packed form, as config.json's block says.

    ``quantization`` has group_size, bits, mode for all and an entry for a module that differs. Raises LoadError.
    """

    def how(path: str, module: Any) -> bool | dict[str, Any]:
        if f"{path}.scales" not in weights or not hasattr(module, "to_quantized"):
            return False
        own = quantization.get(path)
        return dict(own) if isinstance(own, Mapping) else True

    try:
        nn.quantize(
            model,
            group_size=quantization.get("group_size"),
            bits=quantization.get("bits"),
            mode=quantization.get("mode", "affine"),
            class_predicate=how,
        )
    except ValueError as error:
        raise LoadError(f"The quantization in config.json cannot be built ({error}). Convert the model again.") from None


def pack_drafter(model: Any, bits: int) -> None:
    """Quantizes a drafter's products and table in place (affine, groups of 64, or 32 where 64 does not divide)."""
    for group_size in (64, 32):
        nn.quantize(model, group_size=group_size, bits=bits, class_predicate=lambda _, m, g=group_size: _fits(m, g))


def _fits(module: Any, group_size: int) -> bool:
    return isinstance(module, nn.Linear | nn.Embedding) and module.weight.shape[-1] % group_size == 0
