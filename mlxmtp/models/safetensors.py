"""Safetensors files as bytes: headers, parts of a tensor, and files laid out before their first value exists.

A file is eight bytes with the header's length, the header (JSON: dtype, shape and place by name) and the values.
"""

import json
import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from mlxmtp.errors import LoadError

AGAIN = "Download the model again."
INDEX = "model.safetensors.index.json"

WIDTHS = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "BF16": 2, "F16": 2, "I16": 2, "U16": 2, "F8_E4M3": 1,
    "F8_E5M2": 1, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
"""Bytes of one value by dtype."""

_LONGEST_READ = 1 << 30  # one system call takes at most 2 GiB


@dataclass(frozen=True, slots=True)
class Layout:
    """Name, dtype and shape of a tensor."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def rows(self) -> int:
        """Number of rows: all dimensions but the last."""
        return prod(self.shape[:-1])

    @property
    def columns(self) -> int:
        return self.shape[-1] if self.shape else 1

    @property
    def row_bytes(self) -> int:
        return self.columns * WIDTHS[self.dtype]

    @property
    def nbytes(self) -> int:
        return self.rows * self.row_bytes


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor in a file; its values begin ``start`` bytes into it."""

    layout: Layout
    file: Path
    start: int


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a checkpoint: those of the index where there is one, else the single file.

    Raises LoadError if there is none or one named by the index is missing.
    """
    index = folder / INDEX
    if index.exists():
        try:
            names = indexed_files(index.read_bytes())
        except (OSError, ValueError) as error:
            raise LoadError(f"{index} cannot be read ({error}). {AGAIN}") from None
        files = [folder / name for name in names]
    else:
        files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise LoadError(f"{folder} holds no model.safetensors. {AGAIN}")
    for file in files:
        if not file.exists():
            raise LoadError(f"{file} is missing although the index names it. {AGAIN}")
    return files


def indexed_files(index: bytes) -> list[str]:
    """Return the weight files that an index names. Raises ValueError for bytes that are no index."""
    try:
        return sorted({str(name) for name in json.loads(index)["weight_map"].values()})
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no weight_map: {error}") from None


def read_folder(folder: Path) -> dict[str, Stored]:
    """Return every tensor of a checkpoint folder by name. Raises LoadError for a file that is cut off or damaged."""
    found: dict[str, Stored] = {}
    for file in weight_files(folder):
        header, start = read_header(file)
        for name, entry in header.items():
            dtype, shape = entry.get("dtype"), entry.get("shape")
            counts = isinstance(shape, list) and all(isinstance(n, int) and n >= 0 for n in shape)
            if dtype not in WIDTHS or not counts:
                raise LoadError(f"Tensor {name} in {file} has the unknown dtype '{dtype}' or no shape. {AGAIN}")
            layout = Layout(name, dtype, tuple(shape))
            begin, end = entry["data_offsets"]
            if begin < 0 or end - begin != layout.nbytes:
                raise LoadError(f"Tensor {name} in {file} has {end - begin} bytes, not {layout.nbytes}. {AGAIN}")
            found[name] = Stored(layout, file, start + begin)
    return found


def read_bytes(stored: Stored, start: int, count: int) -> bytearray:
    """Return ``count`` bytes of a tensor from byte ``start`` on. Raises LoadError if the disk does not give them."""
    buffer = bytearray(count)
    view = memoryview(buffer)
    try:
        with stored.file.open("rb", buffering=0) as stream:
            stream.seek(stored.start + start)
            while view:
                got = stream.readinto(view[:_LONGEST_READ])
                if not got:
                    raise LoadError(f"{stored.file} ends in the middle of {stored.layout.name}. {AGAIN}")
                view = view[got:]
    except OSError as error:
        raise LoadError(f"{stored.file} cannot be read ({error.strerror or error}). {AGAIN}") from None
    return buffer


def lay_out(file: Path, tensors: Iterable[Layout], metadata: Mapping[str, str]) -> tuple[bytes, list[Stored]]:
    """Return the first bytes of a file that will hold ``tensors``, and the place of each.

    Wide values come first, so every tensor is aligned to its own width without gaps.
    """
    ordered = sorted(tensors, key=lambda tensor: -WIDTHS[tensor.dtype])
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for tensor in ordered:
        place = [end, end + tensor.nbytes]
        header[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": place}
        end += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    places = [Stored(tensor, file, start + header[tensor.name]["data_offsets"][0]) for tensor in ordered]
    return struct.pack("<Q", len(text)) + text, places


def write_bytes(descriptor: int, data: Any, place: int) -> None:
    """Put a buffer ``place`` bytes into an open file. Raises OSError."""
    rest = memoryview(data).cast("B")
    while rest:
        written = os.pwrite(descriptor, rest[:_LONGEST_READ], place)
        rest, place = rest[written:], place + written


def read_header(file: Path) -> tuple[dict[str, Any], int]:
    """Return the entries by name and the start of the values of a file. Raises LoadError unless its size is theirs."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
        if length > size - 8:
            raise LoadError(f"{file} is cut off or not a safetensors file. {AGAIN}")
        try:
            header: dict[str, Any] = json.loads(stream.read(length))
            header.pop("__metadata__", None)
            end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            raise LoadError(f"{file} has a damaged header. {AGAIN}") from None
    if size != 8 + length + end:
        raise LoadError(f"{file} has {size} bytes and should have {8 + length + end}. {AGAIN}")
    return header, 8 + length
