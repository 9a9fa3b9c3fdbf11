"""Keys and values on disk, one safetensors file: tokens, buffers, the last snapshot, and in its metadata a label of
what wrote it and a sum. A damaged file, or one of another model, MLX or layout, is refused."""

import hashlib
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import cast

import mlx.core as mx

from mlxmtp.decode.decoder import Decoder
from mlxmtp.decode.snapshots import CacheState, Snapshot
from mlxmtp.errors import CacheRefused

_FORMAT = "3"  # changes with the layout of the buffers and with what stands in them (norms, rotation)
_KV_BITS = "kv_bits"  # stands in a file only if its keys and values are quantized
_SUM, _NEWEST, _PLACE = "sum", "newest", "place"  # of the arrays; positions (see `CacheState` and `Snapshot`)

Label = Mapping[str, str]


def fingerprint(folder: Path) -> str:
    """Return a hash of a checkpoint's files that changes when one is replaced; weights are stat'ed, not read."""
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for path in sorted(filter(Path.is_file, folder.glob("*.safetensors"))):
        real = path.resolve()  # in the Hugging Face cache the name behind the link is the content's hash
        status = real.stat()
        digest.update(f"{real.name} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def label_of(folder: Path, kv_bits: int | None = None) -> dict[str, str]:
    """Return all that must be the same for a file to be loaded again, for the weights that are in `folder` now."""
    quantized = {} if kv_bits is None else {_KV_BITS: str(kv_bits)}
    return {"format": _FORMAT, "model": fingerprint(folder), "mlx": version("mlx"), **quantized}


def save(decoder: Decoder, path: Path, label: Label, length: int | None = None) -> int:
    """Write what `decoder` holds; returns the bytes. `label`: of its model, as its weights were read.

    `length`: as it was after that many tokens. Raises ValueError if nobody asked for that, or nothing was read.
    """
    return write(decoder.export_state(length), path, label)


def write(state: CacheState, path: Path, label: Label) -> int:
    """Write a text of the model with that label; returns the bytes. The file appears whole or not at all."""
    if not state.tokens:
        raise ValueError("nothing has been read yet")
    arrays = {f"layer.{i}": buffer for i, buffer in enumerate(state.buffers)}
    arrays["tokens"] = mx.array(state.tokens, mx.int32)
    about = {_NEWEST: str(state.newest)}
    if state.place is not None:
        arrays |= {f"ring.{i}": ring for i, ring in enumerate(state.place.rings)} | {"hidden": state.place.hidden}
        about[_PLACE] = f"{state.place.length} {state.place.newest}"
    about[_SUM] = _sum(arrays)
    part = unfinished(path)
    try:
        mx.save_safetensors(str(part), arrays, {**label, **about})
        part.chmod(0o600)
        with part.open("rb") as file:
            os.fsync(file.fileno())  # else a name without contents may be what a power cut leaves
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path.stat().st_size


def _sum(arrays: Mapping[str, mx.array]) -> str:
    """Return a sum that every byte of `arrays` changes: MLX adds as fast as memory is read, which no hash does."""
    kinds = {1: mx.uint8, 2: mx.uint16, 4: mx.uint32}
    total = 0
    for at, name in enumerate(sorted(arrays)):  # one at a time: here 16-bit words take twice their memory
        words = arrays[name].view(kinds[arrays[name].itemsize]).astype(mx.uint32)
        total += (2 * at + 1) * cast("int", mx.sum(words).item())
    return str(total % 2**32)


def unfinished(path: Path) -> Path:
    """Return the file in which this process writes `path` until it is whole."""
    return path.with_name(f".{path.name}.{os.getpid()}.safetensors")


def sweep(folder: Path) -> None:
    """Remove what killed processes left of files they were writing there: nobody writes for an hour."""
    for path in folder.glob(".*.safetensors"):
        with suppress(OSError):  # another process has removed it
            if time.time() - path.stat().st_mtime > 3600:
                path.unlink()


def load(decoder: Decoder, path: Path, wanted: Label) -> int:
    """Import what was saved and return the number of tokens. Raises CacheRefused, and then changes nothing."""
    try:
        if decoder.texts is not None and path.stat().st_size > decoder.texts.limit:
            raise CacheRefused(f"{path} takes more memory than texts are held in: the text is read again.")
        loaded = mx.load(str(path), format="safetensors", return_metadata=True)
        arrays, label = cast("tuple[dict[str, mx.array], dict[str, str]]", loaded)
        about = {key: label.pop(key) for key in (_SUM, _NEWEST, _PLACE) if key in label}
        whole = about.get(_SUM) == _sum(arrays)
        state = _state(arrays, about) if whole else None
    except (RuntimeError, ValueError, KeyError, OSError) as error:
        raise CacheRefused(f"{path} holds no keys and values ({error}): the text is read again.") from error
    if label.get(_KV_BITS) != wanted.get(_KV_BITS):
        there, here = (f"in {one[_KV_BITS]} bits" if _KV_BITS in one else "unpacked" for one in (label, wanted))
        raise CacheRefused(f"{path} has keys and values {there}, and here they are {here}: the text is read again.")
    if label != wanted:
        raise CacheRefused(f"{path} is of another model or of another version of it: the text is read again.")
    if state is None:
        raise CacheRefused(f"{path} is damaged: the text is read again.")
    try:
        decoder.import_state(state)
    except ValueError as error:
        raise CacheRefused(f"{path} does not fit this model ({error}): the text is read again.") from error
    except RuntimeError as error:  # nothing has been changed
        raise CacheRefused(f"There is no memory for {path} ({error}): the text is read again.") from error
    return len(state.tokens)


def _state(arrays: Mapping[str, mx.array], about: Mapping[str, str]) -> CacheState:
    """Return the state that `save` wrote. Raises KeyError and ValueError for anything else."""

    def numbered(name: str) -> list[mx.array]:
        return [arrays[f"{name}.{i}"] for i in range(sum(key.startswith(f"{name}.") for key in arrays))]

    place = None
    if _PLACE in about:
        length, newest = map(int, about[_PLACE].split())
        place = Snapshot(length, newest, arrays["hidden"], numbered("ring"))
    return CacheState(cast("list[int]", arrays["tokens"].tolist()), int(about[_NEWEST]), numbered("layer"), place)
