"""The surroundings in which programs that know nothing of OpenBLAS are measured beside ours."""

from __future__ import annotations

import os
import sys


def environment() -> dict[str, str]:
    """Return those of this process with OpenBLAS, on one thread, under whatever mlx is imported there."""
    below = {"LD_PRELOAD": "libopenblas.so.0"} if sys.platform == "linux" else {}
    return {**os.environ, "OPENBLAS_NUM_THREADS": "1", **below}
