"""Before any test module imports mlx: OpenBLAS under it, on one thread (the networks here are small)."""

from __future__ import annotations

from mlxmtp.models import blas

blas.load()
blas.set_threads(1)
