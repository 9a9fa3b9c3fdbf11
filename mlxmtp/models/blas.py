"""OpenBLAS under mlx on Linux, loaded before mlx is (by the finder in ``mlxmtp/__init__.py``); imports no MLX.

The linker binds mlx's ``cblas_sgemm`` to the first library in the process's global scope that has it. The reference
BLAS in mlx's CPU wheel takes 5 ms a row for [M, 1536] x [1536, 6144]; OpenBLAS takes 2 ms for one row, 4 for eight.
"""

import ctypes
import sys
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

_SONAMES = ("libopenblas.so.0", "libopenblasp.so.0", "libopenblas.so")
"""Debian, Arch and most others; Fedora's threaded build; a development link."""

_DEBIAN = ("openblas-pthread", "openblas-openmp", "openblas-serial")
"""Folders of the packages behind Debian's alternative, for where the alternative's link is missing."""

_MISSING = (
    "OpenBLAS is not on this machine: the CPU backend works without it, several times slower. "
    "On Debian and Ubuntu: apt install libopenblas0"
)
_TOO_LATE = "mlx was imported before mlxmtp, so it does not use OpenBLAS: import mlxmtp first"


class Status(NamedTuple):
    """``active``: mlx's CPU matrix products run on OpenBLAS. ``hint``: what to do where they could but do not."""

    active: bool
    hint: str | None = None


def load() -> Status:
    """Load OpenBLAS for mlx: on Linux, where it is installed and mlx is not imported yet.

    Never raises, and calling it again changes nothing.
    """
    if sys.platform != "linux":  # Metal, or Apple's Accelerate: both are fast
        return Status(active=False)
    if _loaded():
        return Status(active=True)
    if "mlx.core" in sys.modules:
        return Status(active=False, hint=_TOO_LATE)
    folders = [folder for name in _DEBIAN for folder in sorted(Path("/usr/lib").glob(f"*-linux-gnu/{name}"))]
    folders.append(Path(sys.prefix) / "lib")  # an environment's own (conda)
    for name in (*_SONAMES, *(str(folder / "libopenblas.so.0") for folder in folders)):
        with suppress(OSError):  # not there, or for another machine
            if _complete(ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)):
                return Status(active=True)
    return Status(active=False, hint=_MISSING)


def set_threads(count: int) -> bool:
    """Let OpenBLAS use ``count`` threads (at least 1) from now on; False where OpenBLAS is not in place.

    Networks with a hidden size of a few hundred run faster on one thread: waking a second costs more than it brings.
    Raises ValueError for a count below 1.
    """
    if count < 1:
        raise ValueError(f"OpenBLAS needs at least one thread, not {count}")
    if sys.platform != "linux" or not _loaded():
        return False
    ctypes.CDLL(None).openblas_set_num_threads(ctypes.c_int(count))
    return True


def _loaded() -> bool:
    """Return True if the process's global scope, which is where mlx looks first, has an OpenBLAS."""
    return _complete(ctypes.CDLL(None))


def _complete(library: ctypes.CDLL) -> bool:
    return all(hasattr(library, symbol) for symbol in ("openblas_set_num_threads", "cblas_sgemm"))
