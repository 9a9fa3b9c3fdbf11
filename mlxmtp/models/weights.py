"""Reading safetensors folders, with every way a download can be broken told in one sentence."""

import json
import struct
from pathlib import Path
from typing import cast

import mlx.core as mx

from mlxmtp.errors import LoadError

_AGAIN = "Download the model again."


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint: those of the index where there is one, else the single file.

    Raises LoadError if there is none or one named by the index is missing.
    """
    index = folder / "model.safetensors.index.json"
    if index.exists():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise LoadError(f"{index} cannot be read ({error}). {_AGAIN}") from None
        files = [folder / str(name) for name in names]
    else:
        files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise LoadError(f"{folder} holds no model.safetensors. {_AGAIN}")
    for file in files:
        if not file.exists():
            raise LoadError(f"{file} is missing although the index names it. {_AGAIN}")
    return files


def check_complete(file: Path) -> None:
    """Compares a file's size with what its header promises. MLX reads lazily and would fail in mid-answer."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
        if length > size - 8:
            raise LoadError(f"{file} is cut off or not a safetensors file. {_AGAIN}")
        try:
            header = json.loads(stream.read(length))
            end = max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            raise LoadError(f"{file} has a damaged header. {_AGAIN}") from None
    if size != 8 + length + end:
        raise LoadError(f"{file} has {size} bytes and should have {8 + length + end}. {_AGAIN}")


def read_weights(folder: Path) -> dict[str, mx.array]:
    """All tensors of a checkpoint folder by name, not yet read from disk. Raises LoadError."""
    tensors: dict[str, mx.array] = {}
    for file in weight_files(folder):
        check_complete(file)
        try:
            tensors |= cast("dict[str, mx.array]", mx.load(str(file)))
        except (RuntimeError, ValueError) as error:
            raise LoadError(f"{file} cannot be read ({error}). {_AGAIN}") from None
    return tensors
