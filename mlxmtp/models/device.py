"""What the networks need to know about the machine; the rest of the program never asks for the device."""

import mlx.core as mx

from mlxmtp.models import blas

_ONE_THREAD_BELOW = 1024


def on_cpu() -> bool:
    """True on MLX's CPU backend."""
    return bool(mx.default_device() == mx.Device(mx.cpu))


def compute_dtype(stored: mx.Dtype) -> mx.Dtype:
    """The dtype to compute in: float32 on the CPU, where 16-bit products are several times slower; else as stored."""
    return mx.float32 if on_cpu() and stored in (mx.bfloat16, mx.float16) else stored


def rounds_in_flight() -> int:
    """Rounds dispatched before the one before them has been read: hides the host's work on a GPU.

    On the CPU the host and the work share the cores, and it gains nothing (0.92 to 1.0 times the speed).
    """
    return 0 if on_cpu() else 1


def tune_threads(hidden_size: int) -> None:
    """OpenBLAS runs small networks faster on one thread: waking the others costs more than a small product."""
    if on_cpu() and hidden_size < _ONE_THREAD_BELOW:
        blas.set_threads(1)


def backend() -> str:
    """What MLX computes on: Metal, CUDA or CPU."""
    if on_cpu():
        return "CPU"
    return "Metal" if mx.metal.is_available() else "CUDA"
