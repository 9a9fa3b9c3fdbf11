"""From a checkpoint folder to a network that runs: names, shapes, dtype, pairing, all checked before anything runs."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import mlx.core as mx

from mlxmtp.errors import LoadError
from mlxmtp.models import device
from mlxmtp.models.audio import AudioTower, FrameEmbedder
from mlxmtp.models.checkpoint import check_folder, check_target, match, match_tower
from mlxmtp.models.config import ModelConfig, check_pair, read_config
from mlxmtp.models.drafter import Drafter
from mlxmtp.models.linear import Matrix, Weights
from mlxmtp.models.safetensors import Layout, advice, read_folder
from mlxmtp.models.target import Target
from mlxmtp.models.tensors import Quantization, Tensor, drafter_bits, kv_quantization
from mlxmtp.models.towers import audio_tensors, stored_audio, stored_vision, vision_tensors
from mlxmtp.models.vision import PatchEmbedder, VisionTower
from mlxmtp.units import format_bytes

_TYPES = {
    mx.bfloat16: "BF16", mx.float16: "F16", mx.float32: "F32", mx.uint32: "U32", mx.int64: "I64", mx.int32: "I32",
    mx.uint8: "U8", mx.int8: "I8",
}  # fmt: skip
_SIXTEEN_BITS = (mx.bfloat16, mx.float16)


def load_target(folder: Path, *, kv_bits: int | None = None, widen: bool = True) -> Target:
    """Load a target from a published or MLX checkpoint folder; towers are left out. Raises LoadError, DeviceFailed.

    ``kv_bits`` 4 or 8: full layers store quantized keys and values. ``widen`` False: compute in the dtype as stored,
    slowly on a CPU.
    """
    config = read_config(folder)
    kv = kv_quantization(config, kv_bits)
    check_target(config, folder)
    device.find_compiler()
    device.tune_threads(config.hidden_size)
    device.bound_memory()
    # No name holds the arrays as read: where they are widened (float32 on a CPU), both would exist until the end.
    target = Target(assemble(config, read_weights(folder), widen=widen), config, kv)
    evaluate(target)
    return target


def load_drafter(folder: Path, target: Target, *, bits: int | None = None) -> Drafter:
    """Load the drafter of ``target``. ``bits`` 4 or 8 quantizes a 16-bit one, 16 leaves it, None decides by its size.

    4 bits for a large one on a GPU; small ones, and all on a CPU, where quantized products are slow, stay as stored.
    Raises LoadError, also when the two do not belong together, and DeviceFailed.
    """
    config = read_config(folder)
    check_pair(target.config, config)
    check_folder(config)
    if config.quantization is None and bits not in (None, 4, 8, 16):
        raise LoadError(f"A drafter can be packed to 4 or 8 bits or kept at 16, not {bits}.")
    weights = read_weights(folder)
    for name, order in weights.items():  # used as an index, which MLX does not check
        if name.endswith("token_ordering") and not mx.array_equal(mx.sort(order), mx.arange(config.vocab_size)):
            raise LoadError(f"{name} in {folder} does not name every token once. {advice(folder)}")
    # In the target's 16 bits: of both together MLX would make float32.
    weights = {name: one.astype(target.dtype) if one.dtype in _SIXTEEN_BITS else one for name, one in weights.items()}
    parameters = assemble(config, weights, drafter_bits(config, bits, cpu=device.on_cpu()) or 16)
    del weights  # as in `load_target`: no name holds them while they are widened
    drafter = Drafter(parameters, config, target)
    evaluate(drafter)
    return drafter


def load_vision(config: ModelConfig) -> PatchEmbedder | VisionTower | None:
    """Load what makes soft tokens of pictures; None if the checkpoint has none. Raises LoadError, DeviceFailed."""
    if (vision := stored_vision(config)) is None:
        return None
    weights = _assemble_tower(vision_tensors(vision), config.folder)
    tower = PatchEmbedder(weights, vision) if vision.unified else VisionTower(weights, vision)
    evaluate(tower)
    return tower


def load_audio(config: ModelConfig) -> FrameEmbedder | AudioTower | None:
    """Load what makes soft tokens of sounds; None if the checkpoint has none. Raises LoadError, DeviceFailed."""
    if (audio := stored_audio(config)) is None:
        return None
    weights = _assemble_tower(audio_tensors(audio), config.folder)
    tower = FrameEmbedder(weights, audio) if audio.unified else AudioTower(weights, audio)
    evaluate(tower)
    return tower


def _assemble_tower(tensors: Iterable[Tensor], folder: Path) -> Weights:
    """Return a tower's parameters, convolutions in MLX's order, in the dtype of this device. Raises LoadError."""
    stored = {name: one.layout for name, one in read_folder(folder).items()}
    checkpoint, parameters = read_weights(folder), {}
    for tensor, source in match_tower(tensors, stored, folder).items():
        values = tuple(checkpoint[name].astype(device.compute_dtype(checkpoint[name].dtype)) for name in source.names)
        if source.quantization is None and values[0].shape != tensor.shape:
            (value,) = values
            values = (value.reshape(tensor.shape) if tensor.size == 1 else mx.moveaxis(value, 1, -1),)
        parameters[tensor.name] = Matrix(values, source.quantization)
    return Weights(parameters)


def read_weights(folder: Path) -> dict[str, mx.array]:
    """Return the tensors of a checkpoint folder by name, not yet read from disk. Raises LoadError."""
    stored = read_folder(folder)
    files: dict[Path, dict[str, mx.array]] = {}
    for file in {one.file for one in stored.values()}:
        try:
            files[file] = cast("dict[str, mx.array]", mx.load(str(file)))
        except (RuntimeError, ValueError) as error:
            raise LoadError(f"{file} cannot be read ({error}). {advice(file)}") from None
    return {name: files[one.file][name] for name, one in stored.items()}


def assemble(config: ModelConfig, checkpoint: dict[str, mx.array], bits: int = 16, *, widen: bool = True) -> Weights:
    """Return the network's parameters out of a checkpoint's tensors, in the dtype of this device or without ``widen``
    as they are stored.

    ``bits`` 4 or 8 quantizes what is stored in full width. Raises LoadError for tensors that are not the network's.
    """
    layouts = {name: Layout(name, _TYPES.get(value.dtype, ""), value.shape) for name, value in checkpoint.items()}
    sources = match(config, layouts, config.folder)
    parameters: dict[str, Matrix] = {}
    for tensor, (names, half, how) in sources.items():
        stored = (checkpoint[name] if half is None else mx.split(checkpoint[name], 2, axis=-2)[half] for name in names)
        values = tuple(value.astype(device.compute_dtype(value.dtype)) if widen else value for value in stored)
        matrix = Matrix(values if how else (values[0].reshape(tensor.shape),), how)
        wanted = Quantization(bits, 64).fitting(tensor) if how is None and bits != 16 and tensor.quantizable else None
        if wanted is not None:
            matrix = Matrix(tuple(mx.quantize(matrix.arrays[0], **wanted.arguments)), wanted)
        parameters[tensor.name] = matrix
    return Weights(parameters)


def evaluate(network: Target | Drafter | PatchEmbedder | VisionTower | FrameEmbedder | AudioTower) -> None:
    """Read and derive the weights of ``network`` layer by layer and table by table: no second copy of them exists.

    Raises DeviceFailed, and LoadError for an array that this GPU cannot hold in one piece.
    """
    limit = device.largest_buffer()
    if limit is not None and (largest := max((one.nbytes for one in arrays(network)), default=0)) > limit:
        what = f"has {format_bytes(largest)} in one piece, and this GPU takes {format_bytes(limit)}"
        raise LoadError(f"This model {what}: choose a variant with fewer bits, or a smaller model.")
    try:
        for part in (*getattr(network, "layers", ()), *vars(network).values()):
            mx.eval(arrays(part))
        device.wire()
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
