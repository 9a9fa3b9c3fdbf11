"""The machine as the networks see it; the rest of the program never asks for the device."""

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import mlx.core as mx

from mlxmtp.errors import DeviceFailed
from mlxmtp.models import blas
from mlxmtp.models.chunks import BUDGET

_ONE_THREAD_BELOW = 1024
_FREED_ON_CPU = 2**27
_ROUNDED = 2**26  # bytes by which buffers may be larger than their arrays


def on_cpu() -> bool:
    """True on MLX's CPU backend."""
    return bool(mx.default_device() == mx.Device(mx.cpu))


def compute_dtype(stored: mx.Dtype) -> mx.Dtype:
    """Return float32 on the CPU, where 16-bit products are several times slower; else the dtype as stored."""
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


class Interrupted(Exception):
    """Raised out of work of the device for a ``reason`` that is no failure of it."""

    def __init__(self, reason: Exception) -> None:
        super().__init__(str(reason))
        self.reason = reason


@contextmanager
def interrupting() -> Iterator[None]:
    """Raise Interrupted for what the caller's code raises here and would be taken for a failure of the device."""
    try:
        yield
    except (RuntimeError, StopIteration) as error:
        raise Interrupted(error) from error


@cache
def find_compiler() -> None:
    """Have MLX look for its C++ compiler, which it does once in a process, without losing a Ctrl-C that comes then.

    MLX asks with system(), which ignores Ctrl-C in the whole process until the compiler has said its version. A witness
    in the same terminal does not, and what has ended it is told to this process. A GPU needs no compiler.
    """
    if not on_cpu():
        return
    with subprocess.Popen(["/bin/sh", "-c", "read line"], stdin=subprocess.PIPE) as witness:
        mx.compile(lambda x: x)(mx.zeros(1))
    if witness.returncode == -signal.SIGINT:
        signal.raise_signal(signal.SIGINT)


@cache
def bound_memory() -> None:
    """Bound freed memory once per process to what is needed again.

    A GPU would keep up to its whole working set. A CPU keeps 32 MB, less than the scores of a round with 7 drafts after
    16,000 tokens: they went back to the system and were fetched page by page, a quarter of the round's time.
    """
    mx.set_cache_limit(_FREED_ON_CPU if on_cpu() else BUDGET)


def wire() -> None:
    """Let Metal page out nothing of what is loaded now, weights above all.

    No more: whatever comes and goes within the limit is put into Metal's residency sets and taken out again, which
    costs time, and from which macOS itself has failed (ml-explore/mlx#3186). The system has it back when the process
    ends.
    """
    if (limit := memory_limit()) is not None:
        mx.clear_cache()  # freed buffers count, too
        mx.set_wired_limit(min(limit, mx.get_active_memory() + _ROUNDED))


def memory_limit() -> int | None:
    """Return the bytes that Metal recommends a process to take; None elsewhere."""
    return _told("max_recommended_working_set_size")


def largest_buffer() -> int | None:
    """Return the most bytes of one array on Metal; None elsewhere."""
    return _told("max_buffer_length")


def _told(key: str) -> int | None:
    """Return a number that Metal tells of the GPU; `device_info` is of the default device, which may be the CPU."""
    return None if on_cpu() or not mx.metal.is_available() else int(mx.device_info()[key])


_OF_KERNEL_FILES = ("filesystem error", "Failed to compile function", "C++ shared library")
"""Words of MLX where its CPU backend could not write, compile or load a kernel in the folder for temporary files."""
_TOO_LONG = ("Impacting Interactivity", "ImpactingInteractivity", "GPU Timeout", "ErrorTimeout")
_REFUSED = "SubmissionsIgnored"
"""Words of Metal where work took longer than macOS allows, and where it takes none any more."""


def failure(error: RuntimeError) -> DeviceFailed:
    """Return the error for what MLX could not compute, in its own words and with the next step."""
    if isinstance(error, DeviceFailed):  # it has been told by what was computed within
        return DeviceFailed(error)
    found = "; ".join(str(error).splitlines()[-2:])  # of a compiler's pages the end, where it says what failed
    if any(words in str(error) for words in _OF_KERNEL_FILES):
        step = "It builds kernels in TMPDIR: let that name a folder with room, where files may be written and run."
    elif _REFUSED in str(error):
        step = "After errors of the GPU macOS takes no more work of this process: start it again."
    elif any(words in str(error) for words in _TOO_LONG):
        step = "macOS stopped the GPU, for which the display was waiting: let the display sleep, use less context, "
        step += "or set AGX_RELAX_CDM_CTXSTORE_TIMEOUT=1 in the environment."
    else:
        step = "Usually the memory is full: "
        step += "use less context, choose a smaller model, or quantize keys and values with --kv-bits 8."
    return DeviceFailed(f"MLX failed on this {'CPU' if on_cpu() else 'GPU'} ({found}). {step}")


def backend() -> str:
    """Return the device that MLX computes on: Metal, CUDA or CPU."""
    if on_cpu():
        return "CPU"
    return "Metal" if mx.metal.is_available() else "CUDA"
