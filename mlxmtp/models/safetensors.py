"""Safetensors files as bytes: headers, parts of a tensor, and files laid out before their first value exists.

A file is eight bytes with the header's length, the header (JSON: dtype, shape and place by name) and the values.
"""

import json
import os
import re
import struct
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from mlxmtp.errors import LoadError

RECORD = "mlxmtp.json"  # in a converted model: what it was made of, and how
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_SHARD = re.compile(r"model-\d{5}-of-(\d{5})\.safetensors")

WIDTHS = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "BF16": 2, "F16": 2, "I16": 2, "U16": 2, "F8_E4M3": 1,
    "F8_E5M2": 1, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
"""Bytes of one value by dtype."""

_POINTER = b"version "
_LONGEST_HEADER = 100_000_000  # bytes: the limit of the format
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
        return self.columns * WIDTHS.get(self.dtype, 0)

    @property
    def nbytes(self) -> int:
        return self.rows * self.row_bytes


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor in a file; its values begin ``start`` bytes into it."""

    layout: Layout
    file: Path
    start: int


@dataclass(frozen=True, slots=True)
class Chosen:
    """The weight files of a checkpoint, the file an index takes each tensor from (empty: all of them), and a note."""

    files: tuple[str, ...]
    index: Mapping[str, str]
    note: str | None = None


def choose_files(present: Collection[str], index: bytes | None, origin: object) -> Chosen:
    """Choose among the files of a checkpoint: those of its index, else the single file, else numbered shards.

    Copies, adapters and optimizers beside them are none of these. An index that names files which are not there gives
    way to a complete set of others. Raises LoadError, which names ``origin``.
    """
    listed: dict[str, str] = {}
    if index is not None:
        try:
            listed = {str(tensor): str(file) for tensor, file in json.loads(index)["weight_map"].items()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise LoadError(f"{named(origin, INDEX)} cannot be read. {advice(origin)}") from None
        if any("/" in file or "\\" in file for file in listed.values()):
            raise LoadError(f"{named(origin, INDEX)} names files outside of its folder. Take another checkpoint.")
    wanted = tuple(sorted(set(listed.values())))
    absent = [file for file in wanted if file not in present]
    if wanted and not absent:
        return Chosen(wanted, listed)
    complete: list[tuple[str, ...]] = [(SINGLE,)] if SINGLE in present else []
    counts = {found[1] for file in present if (found := _SHARD.fullmatch(file))}
    for count in sorted(counts):
        files = tuple(f"model-{at:05}-of-{count}.safetensors" for at in range(1, int(count) + 1))
        complete += [files] if files and all(file in present for file in files) else []
    if len(complete) == 1 or (complete and complete[0] == (SINGLE,)):
        note = f"{named(origin, INDEX)} names files that are not there, so it is ignored." if absent else None
        return Chosen(complete[0], {}, note)
    if absent:
        raise LoadError(f"{named(origin, absent[0])} is missing although the index names it. {advice(origin)}")
    if complete:
        raise LoadError(f"{origin} holds more than one set of weights and no index. Remove all but one.")
    if not counts and (problem := other_weights(present, origin)):
        raise LoadError(problem)
    parts = f": of {' or '.join(str(int(count)) for count in sorted(counts))} numbered files some are missing"
    raise LoadError(f"{origin} holds no {SINGLE}{parts if counts else ''}. {advice(origin)}")


def other_weights(present: Collection[str], origin: object) -> str | None:
    """Return the sentence for a folder or repository whose weights are for other programs, None if it has none such."""
    adapters = {"adapter_config.json", "adapter_model.safetensors", "adapters.safetensors"}
    if adapters & set(present):
        return f"{origin} holds an adapter (LoRA) without its model. Merge it into its model, and save that."
    kinds = (("GGUF", r".+\.gguf"), ("PyTorch", r"pytorch_model.*\.bin"), ("LiteRT", r".+\.(task|litertlm)"))
    kind = next((kind for kind, pattern in kinds if any(re.fullmatch(pattern, file) for file in present)), None)
    way = "Take an MLX conversion of the model, or its original weights."
    return kind and f"{origin} holds weights as {kind} files, which mlxmtp does not read. {way}"


def named(origin: object, file: str) -> str:
    """Return what errors call a file of a folder (a Path) or a repository."""
    return str(origin / file) if isinstance(origin, Path) else f"{file} of {origin}"


def conversion_record(folder: Path) -> dict[str, Any] | None:
    """Return what a conversion wrote about itself; None if the folder holds no such thing."""
    try:
        table: dict[str, Any] = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        return table if table["target"]["source"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def advice(origin: object) -> str:
    """Return the next step for a damaged folder or file (a Path), or one of a repository."""
    if not isinstance(origin, Path):
        return "Try another --revision, or another repository."
    for folder in (origin, *origin.parents[:2]):  # a file of a conversion, or of the drafter inside
        if (record := conversion_record(folder)) is not None:
            return f"It was converted here from {record['target']['source']}: convert that again, with --force."
    return "Download the model again."


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files that hold a checkpoint's weights. Raises LoadError where some are missing."""
    return [folder / name for name in _chosen(folder).files]


def read_folder(folder: Path) -> dict[str, Stored]:
    """Return every tensor of a checkpoint folder by name. Raises LoadError for a file that is cut off or damaged."""
    return read_with_notes(folder)[0]


def read_with_notes(folder: Path) -> tuple[dict[str, Stored], list[str]]:
    """Return every tensor of a checkpoint folder by name, and sentences on what is ignored. Raises LoadError."""
    chosen = _chosen(folder)
    headers = {name: read_header(folder / name) for name in chosen.files}
    return assign(headers, chosen, folder)


def assign(
    headers: Mapping[str, Mapping[str, Stored]], chosen: Chosen, origin: object
) -> tuple[dict[str, Stored], list[str]]:
    """Return the tensors of some files by name, each from the file its index takes it from, and notes.

    An index that names tensors which its files do not hold is another one's, and ignored. Raises LoadError for a
    tensor that stands in two files while nothing says which counts.
    """
    notes = [] if chosen.note is None else [chosen.note]
    if chosen.index and all(tensor in headers[file] for tensor, file in chosen.index.items()):
        found = {tensor: headers[file][tensor] for tensor, file in chosen.index.items()}
        if others := {tensor for header in headers.values() for tensor in header} - found.keys():
            notes.append(f"{len(others)} tensors of {origin} are ignored: its index does not name them.")
        return found, notes
    if chosen.index:
        notes.append(f"{named(origin, INDEX)} names tensors that are not there, so it is ignored.")
    found = {}
    for header in headers.values():
        if twice := sorted(header.keys() & found.keys()):
            raise LoadError(f"Tensor {twice[0]} stands in two files of {origin}. Take another checkpoint.")
        found |= header
    return found, notes


def _chosen(folder: Path) -> Chosen:
    try:
        present = {item.name for item in folder.iterdir() if item.is_file()}
        index = (folder / INDEX).read_bytes() if INDEX in present else None
    except OSError as error:
        raise LoadError(f"{folder} cannot be read ({error.strerror or error}).") from None
    return choose_files(present, index, folder)


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
                    raise LoadError(f"{stored.file} ends in the middle of {stored.layout.name}. {advice(stored.file)}")
                view = view[got:]
    except OSError as error:
        raise LoadError(f"{stored.file} cannot be read ({error.strerror or error}). {advice(stored.file)}") from None
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


def read_header(file: Path) -> dict[str, Stored]:
    """Return every tensor of a file by name. Raises LoadError unless it has exactly the bytes that they promise."""
    try:
        with file.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            length = header_length(stream.read(8), size, file)
            return parse_header(stream.read(length), size, file)
    except OSError as error:
        said = f"{file} cannot be read ({error.strerror or error}). Check the disk and its permissions."
        raise LoadError(said) from None


def refuse_pointer(begin: bytes, file: object) -> None:
    """Raise LoadError if a file that begins so is what git leaves in its place without Git LFS."""
    if begin.startswith(_POINTER):
        way = "Run git lfs pull in its folder." if isinstance(file, Path) else advice(file)
        raise LoadError(f"{file} is a pointer of Git LFS, not the file itself. {way}")


def header_length(prefix: bytes, size: int, file: object) -> int:
    """Return the length that a file's first eight bytes give its header. Raises LoadError for an impossible one."""
    refuse_pointer(prefix, file)
    length: int = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
    if length > min(size - 8, _LONGEST_HEADER):
        raise LoadError(f"{file} is cut off or not a safetensors file. {advice(file)}")
    return length


def parse_header(text: bytes, size: int, file: Path | str) -> dict[str, Stored]:
    """Return the tensors of a file of ``size`` bytes by name, from its header. Raises LoadError for a damaged one."""
    found: dict[str, Stored] = {}
    try:
        header: dict[str, Any] = json.loads(text)
        header.pop("__metadata__", None)
        for name, entry in header.items():
            dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
            numbers = [*shape, begin, end]
            if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in numbers):
                raise ValueError("no counts")
            found[name] = Stored(Layout(name, str(dtype), tuple(shape)), Path(file), 8 + len(text) + begin)
            if dtype in WIDTHS and end - begin != found[name].layout.nbytes:
                nbytes = found[name].layout.nbytes
                raise LoadError(f"Tensor {name} in {file} has {end - begin} bytes, not {nbytes}. {advice(file)}")
        places = sorted(tuple(entry["data_offsets"]) for entry in header.values())
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        raise LoadError(f"{file} has a damaged header. {advice(file)}") from None
    ends = [0, *(end for _, end in places)]
    if size != 8 + len(text) + ends[-1]:
        raise LoadError(f"{file} has {size} bytes and should have {8 + len(text) + ends[-1]}. {advice(file)}")
    if ends[:-1] != [begin for begin, _ in places]:
        raise LoadError(f"{file} has a damaged header: its tensors overlap or leave gaps. {advice(file)}")
    return found
