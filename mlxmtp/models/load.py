"""From a checkpoint folder to a network that runs: names, shapes, dtype, pairing, all checked before anything runs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlxmtp.errors import LoadError
from mlxmtp.models._mlx_lm import gemma4
from mlxmtp.models.config import ModelConfig, read_config
from mlxmtp.models.device import bound_memory, compute_dtype, tune_threads
from mlxmtp.models.drafter import Drafter, DrafterWeights
from mlxmtp.models.pair import check_pair
from mlxmtp.models.quantize import default_bits, pack_drafter, parameters, prepare
from mlxmtp.models.shapes import kv_packing
from mlxmtp.models.target import Target
from mlxmtp.models.weights import read_weights


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
