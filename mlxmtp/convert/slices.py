"""Slices of a conversion: bytes in, bytes out. MLX quantizes groups alone, so slices give what a whole tensor does."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import mlx.core as mx

from mlxmtp.convert.tasks import Slice
from mlxmtp.errors import LoadError
from mlxmtp.models.safetensors import read_bytes
from mlxmtp.models.towers import BOUNDS

_RAW = {
    "BF16": ("H", mx.bfloat16), "F16": ("H", mx.float16), "F32": ("f", mx.float32), "U32": ("I", mx.uint32),
    "U8": ("B", mx.uint8), "I32": ("i", mx.int32), "I64": ("q", mx.int64), "I16": ("h", mx.int16), "I8": ("b", mx.int8),
    "U16": ("H", mx.uint16),
}  # fmt: skip
_FLOATS = ("BF16", "F16", "F32")
_INFINITE = {mx.bfloat16: 0x7F80 << 1, mx.float16: 0x7C00 << 1, mx.float32: 0x7F800000 << 1}
_FREED = 64 << 20  # bytes of freed buffers that MLX may hold for the next slice


@contextmanager
def little_memory() -> Iterator[None]:
    """Let MLX hold next to no freed buffers while this lasts."""
    before = mx.set_cache_limit(_FREED)
    try:
        yield
    finally:
        mx.clear_cache()
        mx.set_cache_limit(before)


def convert_slice(step: Slice) -> list[bytes]:
    """Return the bytes that a step writes, by part. Raises LoadError for an unreadable or infinite source."""
    task, stored = step.task, step.task.source.layout
    pieces = [
        read_bytes(task.source, row * stored.row_bytes, count * stored.row_bytes)
        for row, count in task.spans(step.first, step.count)
    ]
    data = pieces.pop() if len(pieces) == 1 else b"".join(pieces)
    del pieces
    if stored.dtype not in _FLOATS:
        return [bytes(data)]
    values = as_array(data, stored.dtype, (step.count, stored.columns))
    del data
    plain = task.parts[-1].dtype if task.parts[-1].dtype in _FLOATS else stored.dtype
    values = values.astype(_RAW[plain][1])
    if not stored.name.endswith(BOUNDS) and not _is_finite(values):
        raise LoadError(
            f"Tensor {stored.name} in {task.source.file} holds values that are no finite {plain} numbers. "
            "Download the model again, or choose another --dtype."
        )
    if task.order is not None:
        values = mx.contiguous(values.reshape(stored.shape).transpose(task.order))
    if task.quantization is None:
        return [as_bytes(values)]
    return [as_bytes(part) for part in mx.quantize(values, **task.quantization.arguments)]


def check_values(step: Slice, data: Sequence[bytes]) -> bool:
    """Return True if the bytes that a step has written are finite numbers: of quantized ones the scales decide."""
    if (packing := step.task.quantization) is None:
        return True  # looked at before they were written
    layout = step.task.parts[1]
    scales = as_array(data[1], layout.dtype, (-1, layout.columns))
    if packing.mode != "affine":
        worst = (scales % 128 == 127) if packing.mode == "nvfp4" else (scales == 255)  # their codes for "no number"
        return not worst.any().item()
    biases = as_array(data[2], layout.dtype, scales.shape)
    largest = mx.abs(scales.astype(mx.float32)) * 2**packing.bits + mx.abs(biases.astype(mx.float32))
    return bool((largest < mx.finfo(scales.dtype).max).all().item())  # also false for what is no number


def as_array(data: bytes | bytearray | memoryview, dtype: str, shape: tuple[int, ...]) -> mx.array:
    """Return an array made of bytes of a safetensors dtype."""
    code, kind = _RAW[dtype]
    raw: Any = memoryview(data).cast("B").cast(code)  # type: ignore[call-overload]
    array = mx.array(raw)
    return (array if array.dtype == kind else array.view(kind)).reshape(shape)


def as_bytes(array: mx.array) -> bytes:
    """Return the values of an array as they stand in a file."""
    flat = mx.contiguous(array).reshape(-1)
    plain = flat.view(mx.uint16) if flat.dtype == mx.bfloat16 else flat
    return bytes(memoryview(plain))  # type: ignore[arg-type]


def _is_finite(values: mx.array) -> bool:
    """Return True if no exponent is that of infinity and NaN; ten times as fast on a CPU as ``mx.isfinite``."""
    kind = mx.uint32 if values.itemsize == 4 else mx.uint16
    without_sign = mx.left_shift(values.view(kind), mx.array(1, kind))
    return bool((mx.max(without_sign) < _INFINITE[values.dtype]).item())
