"""MLX's packed weights: rebuilding the modules a checkpoint was quantized with, and packing a drafter at load."""

from collections.abc import Mapping
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlxmtp.errors import LoadError
from mlxmtp.models.device import on_cpu
from mlxmtp.models.recipe import PACKED_DRAFTER_FROM


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
            group_size=quantization.get("group_size", 64),
            bits=quantization.get("bits", 4),
            mode=quantization.get("mode", "affine"),
            class_predicate=how,
        )
    except ValueError as error:
        raise LoadError(
            f"The quantization in config.json cannot be built ({error}). Convert the model again."
        ) from None


def default_bits(drafter: Any) -> int:
    """4 for a large drafter on a GPU, 16 (as stored) for a small one and on the CPU, where packed products are slow."""
    size = sum(value.size for _, value in parameters(drafter))
    return 4 if size >= PACKED_DRAFTER_FROM and not on_cpu() else 16


def pack_drafter(model: Any, bits: int) -> None:
    """Quantizes a drafter's products and table in place (affine, groups of 64, or 32 where 64 does not divide).

    ``bits`` is 4 or 8, or 16 for no change; anything else raises LoadError.
    """
    if bits == 16:
        return
    if bits not in (4, 8):
        raise LoadError(f"A drafter can be packed to 4 or 8 bits or kept at 16, not {bits}.")
    nn.quantize(model, group_size=64, bits=bits, class_predicate=lambda _, module: _fits(module, 64))
    nn.quantize(model, group_size=32, bits=bits, class_predicate=lambda _, module: _fits(module, 32))


def parameters(module: Any) -> list[tuple[str, mx.array]]:
    """All arrays of a module with their names."""
    return cast("list[tuple[str, mx.array]]", tree_flatten(module.parameters()))


def _fits(module: Any, group_size: int) -> bool:
    return isinstance(module, nn.Linear | nn.Embedding) and module.weight.shape[-1] % group_size == 0
