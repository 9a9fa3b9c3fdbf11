"""Reading safetensors folders, with every way a download can be broken told in one sentence."""

from pathlib import Path
from typing import cast

import mlx.core as mx

from mlxmtp.errors import LoadError
from mlxmtp.models.safetensors_file import AGAIN, check_complete, weight_files


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
