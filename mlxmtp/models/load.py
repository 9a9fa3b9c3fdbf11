"""From a checkpoint folder to a network that runs: names, shapes, dtype, pairing, all checked before anything runs."""

from pathlib import Path
from typing import Any, cast

import mlx.core as mx

from mlxmtp.errors import LoadError
from mlxmtp.models import device
from mlxmtp.models.config import ModelConfig, check_pair, read_config
from mlxmtp.models.drafter import Drafter
from mlxmtp.models.linear import Matrix, Weights
from mlxmtp.models.safetensors import AGAIN, read_header, weight_files
from mlxmtp.models.target import Target
from mlxmtp.models.tensors import (
    Names,
    Quantization,
    Tensor,
    kv_quantization,
    quantized_by_default,
    stored_quantization,
    tensors,
)


def load_target(folder: Path, *, kv_bits: int | None = None) -> Target:
    """Load a target from a published or MLX checkpoint folder; towers are left out. Raises LoadError, DeviceFailed.

    ``kv_bits`` 4 or 8: full layers store quantized keys and values.
    """
    config = read_config(folder)
    if config.is_drafter:
        raise LoadError(f"{folder} is a drafter and answers nothing on its own. Give it as the draft model.")
    kv = kv_quantization(config, kv_bits)
    device.tune_threads(config.hidden_size)
    device.bound_memory()
    # No name holds the arrays as read: where they are widened (float32 on a CPU), both would exist until the end.
    target = Target(assemble(config, read_weights(folder)), config, kv)
    evaluate(target)
    return target


def load_drafter(folder: Path, target: Target, *, bits: int | None = None) -> Drafter:
    """Load the drafter of ``target``. ``bits`` 4 or 8 quantizes a 16-bit one, 16 leaves it, None decides by its size.

    4 bits for a large one on a GPU; small ones, and all on a CPU, where quantized products are slow, stay as stored.
    Raises LoadError, also when the two do not belong together, and DeviceFailed.
    """
    config = read_config(folder)
    check_pair(target.config, config)
    if config.quantization is None and bits not in (None, 4, 8, 16):
        raise LoadError(f"A drafter can be packed to 4 or 8 bits or kept at 16, not {bits}.")
    if bits is None:
        bits = 4 if quantized_by_default(config) and not device.on_cpu() else 16
    drafter = Drafter(assemble(config, read_weights(folder), bits), config, target)
    evaluate(drafter)
    return drafter


def read_weights(folder: Path) -> dict[str, mx.array]:
    """Return all tensors of a checkpoint folder by name, not yet read from disk. Raises LoadError."""
    found: dict[str, mx.array] = {}
    for file in weight_files(folder):
        read_header(file)  # MLX reads lazily: a file that is cut off would fail in mid-answer
        try:
            found |= cast("dict[str, mx.array]", mx.load(str(file)))
        except (RuntimeError, ValueError) as error:
            raise LoadError(f"{file} cannot be read ({error}). {AGAIN}") from None
    return found


def assemble(config: ModelConfig, checkpoint: dict[str, mx.array], bits: int = 16) -> Weights:
    """Return the network's parameters out of a checkpoint's tensors, in the dtype of this device.

    ``bits`` 4 or 8 quantizes what is stored in full width. Raises LoadError for a tensor too few, too many or of
    another shape.
    """
    arrays, unknown = _by_our_names(config, checkpoint)
    stored = {
        tensor: stored_quantization(tensor.module, config.quantization)
        if config.quantization and tensor.quantizable and f"{tensor.module}.scales" in arrays
        else None
        for tensor in tensors(config)
    }
    shapes = {tensor: _shapes(tensor, how) for tensor, how in stored.items()}
    _check(config, arrays, {name: shape for part in shapes.values() for name, shape in part.items()}, unknown)
    parameters: dict[str, Matrix] = {}
    for tensor, how in stored.items():
        values = tuple(value.astype(device.compute_dtype(value.dtype)) for value in map(arrays.pop, shapes[tensor]))
        matrix = Matrix(values, how)
        wanted = Quantization(bits, 64).fitting(tensor) if how is None and bits != 16 and tensor.quantizable else None
        if wanted is not None:
            matrix = Matrix(tuple(mx.quantize(values[0], **wanted.arguments)), wanted)
        parameters[tensor.name] = matrix
    return Weights(parameters)


def _by_our_names(config: ModelConfig, checkpoint: dict[str, mx.array]) -> tuple[dict[str, mx.array], list[str]]:
    """Return a checkpoint's tensors under the network's names, and the names that no Gemma 4 has."""
    names = Names(config)
    found: dict[str, mx.array] = {}
    unknown: list[str] = []
    for name, value in checkpoint.items():
        stem, _, leaf = name.rpartition(".")
        companion = leaf if leaf in ("scales", "biases") else None  # of a quantized matrix
        pieces = names.find(f"{stem}.weight" if companion else name)
        if pieces is None:
            unknown.append(name)
        for tensor, half in pieces or ():
            key = f"{tensor.module}.{companion}" if companion else tensor.name
            found[key] = value if half is None else mx.split(value, 2, axis=-2)[half]
    return found, unknown


def _shapes(tensor: Tensor, how: Quantization | None) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of the arrays that store a tensor. Raises LoadError for what MLX cannot quantize so."""
    if how is None:
        return {tensor.name: tensor.shape}
    try:
        parts = mx.quantize(mx.zeros(tensor.shape), **how.arguments)  # never evaluated: only the shapes are wanted
    except ValueError as error:
        raise LoadError(
            f"The quantization in config.json cannot be built ({error}). Convert the model again."
        ) from None
    names = (tensor.name, f"{tensor.module}.scales", f"{tensor.module}.biases")
    return {name: tuple(part.shape) for name, part in zip(names, parts, strict=False)}


def _check(
    config: ModelConfig, arrays: dict[str, mx.array], shapes: dict[str, tuple[int, ...]], unknown: list[str]
) -> None:
    """Raise LoadError unless ``arrays`` are those of ``shapes`` and nothing is ``unknown``."""
    surplus = {*unknown, *(arrays.keys() - shapes.keys())}
    for complaint, names in (("lacks", shapes.keys() - arrays.keys()), ("has the unknown", surplus)):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise LoadError(f"The checkpoint in {config.folder} {complaint} tensor {min(names)}{more}. {AGAIN}")
    for name, shape in shapes.items():
        if arrays[name].shape != shape:
            found = f"is {arrays[name].shape} and should be {shape}"
            raise LoadError(f"Tensor {name} in {config.folder} {found}. {AGAIN}")


def evaluate(network: Target | Drafter) -> None:
    """Read and derive the weights of ``network`` layer by layer and table by table: no second copy of them exists.

    Raises DeviceFailed.
    """
    try:
        for part in (*network.layers, *vars(network).values()):
            mx.eval(arrays(part))
    except RuntimeError as error:
        raise device.failure(error) from error


def arrays(network: Any) -> list[mx.array]:
    """Return every array in an object's attributes, lists, tuples and dictionaries, each once."""
    found: dict[int, mx.array] = {}
    waiting = [network]
    while waiting:
        value = waiting.pop()
        if isinstance(value, mx.array):
            found[id(value)] = value
        elif isinstance(value, list | tuple):
            waiting += value
        elif isinstance(value, dict) or hasattr(value, "__dict__"):
            waiting += (value if isinstance(value, dict) else vars(value)).values()
    return list(found.values())
