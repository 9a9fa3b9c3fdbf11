"""From a checkpoint folder to a network that runs: names, shapes, dtype, pairing, all checked before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlxmtp.errors import LoadError
from mlxmtp.limits import QUANTIZED_DRAFTER_FROM
from mlxmtp.models._mlx_lm import gemma4
from mlxmtp.models.config import ModelConfig, check_pair, read_config
from mlxmtp.models.device import bound_memory, compute_dtype, on_cpu, tune_threads
from mlxmtp.models.drafter import Drafter, DrafterWeights
from mlxmtp.models.safetensors import AGAIN, check_complete, weight_files
from mlxmtp.models.target import Target
from mlxmtp.models.tensors import kv_packing


def read_weights(folder: Path) -> dict[str, mx.array]:
    """All tensors of a checkpoint folder by name, not yet read from disk. Raises LoadError."""
    tensors: dict[str, mx.array] = {}
    for file in weight_files(folder):
        check_complete(file)
        try:
            tensors |= cast("dict[str, mx.array]", mx.load(str(file)))
        except (RuntimeError, ValueError) as error:
            raise LoadError(f"{file} cannot be read ({error}). {AGAIN}") from None
    return tensors


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
    return 4 if size >= QUANTIZED_DRAFTER_FROM and not on_cpu() else 16


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


def build_target(config: ModelConfig) -> Any:
    """mlx-lm's network for ``config``, weights not yet in memory (mlx-lm's ``gemma4_text.Model``)."""
    args = gemma4.ModelArgs(text_config=dict(config.text), vocab_size=config.vocab_size)
    return gemma4.Model(args)


def load_target(folder: Path, *, kv_bits: int | None = None) -> Target:
    """Loads a target from a published or MLX checkpoint folder; towers are left out. Raises LoadError.

    ``kv_bits`` 4 or 8: full layers keep keys and values packed.
    """
    config = read_config(folder)
    if config.is_drafter:
        raise LoadError(f"{folder} is a drafter and answers nothing on its own. Give it as the draft model.")
    packing = kv_packing(config, kv_bits)
    tune_threads(config.hidden_size)
    bound_memory()
    network = build_target(config)
    # No name holds the arrays as read: where they are widened (float32 on a CPU), both would exist until the end.
    _fill(network, network.sanitize(_text_names(read_weights(folder))), config)
    target = Target(network.language_model, config, packing)
    _evaluate(network.language_model, target)
    return target


def load_drafter(folder: Path, target: Target, *, bits: int | None = None) -> Drafter:
    """Loads the drafter of ``target``. ``bits`` 4 or 8 packs a 16-bit one, 16 keeps it, None decides by its size.

    Raises LoadError, also when the two do not belong together.
    """
    config = read_config(folder)
    check_pair(target.config, config)
    weights = DrafterWeights(config)
    read = read_weights(folder).items()
    _fill(weights, {name.removeprefix("language_model."): value for name, value in read}, config)
    del read
    if config.quantization is None:
        pack_drafter(weights, default_bits(weights) if bits is None else bits)
    drafter = Drafter(weights, config, target)
    _evaluate(weights, drafter)
    return drafter


def _text_names(weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """Text-only checkpoints (``model.layers…``) under the names that mlx-lm's Gemma 4 classes expect."""
    if any("language_model." in name for name in weights):
        return dict(weights)
    return {f"language_model.{name}": value for name, value in weights.items()}


def _fill(network: Any, weights: Mapping[str, mx.array], config: ModelConfig) -> None:
    """Puts ``weights`` into ``network`` in the dtype of this device, after checking names and shapes."""
    if config.quantization is not None:
        prepare(network, weights, config.quantization)
    expected = dict(parameters(network))
    for complaint, names in (
        ("lacks", expected.keys() - weights.keys()),
        ("has the unknown", weights.keys() - expected.keys()),
    ):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise LoadError(
                f"The checkpoint in {config.folder} {complaint} tensor {min(names)}{more}. Download the model again."
            )
    for name, value in weights.items():
        if value.shape != expected[name].shape:
            shapes = f"is {value.shape} and should be {expected[name].shape}"
            raise LoadError(f"Tensor {name} in {config.folder} {shapes}. Download the model again.")
    network.load_weights([(name, value.astype(compute_dtype(value.dtype))) for name, value in weights.items()])


def _evaluate(network: Any, derived: Target | Drafter) -> None:
    """Reads and derives the weights one layer at a time, so that no second copy of the model exists."""
    for arrays in derived.arrays():
        mx.eval(arrays)
    mx.eval(network.parameters())
