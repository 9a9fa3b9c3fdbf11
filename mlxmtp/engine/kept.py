"""Keys and values on disk: a conversation, or a text of which much is asked, goes on without being read again.

One safetensors file: the tokens, the buffers of the layers with keys and values of their own, and as metadata what
wrote it. A file of another model, another version of it, of MLX or of this layout, or a damaged one is refused; nothing
of it is used.
"""

from __future__ import annotations

import hashlib
import os
import time
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, cast

# isort: split
import mlxmtp.models  # noqa: F401  (before mlx, because it puts OpenBLAS under it)

# isort: split
import mlx.core as mx

from mlxmtp.errors import CacheRefused

if TYPE_CHECKING:
    from mlxmtp.engine.answer import DecoderLike

_FORMAT = "2"
"""Changes with the layout of the buffers and with what stands in them (norms, rotation)."""

_KV_BITS = "kv_bits"
"""Stands in a file only if its keys and values are packed."""

_HOUR = 3600


def fingerprint(folder: Path) -> str:
    """What the files of a checkpoint are: changes when one is replaced. Reads the configuration, stats the weights."""
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for path in sorted(folder.glob("*.safetensors")):
        real = path.resolve()  # in the Hugging Face cache the name behind the link is the content's hash
        status = real.stat()
        digest.update(f"{real.name} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def label_hash(folder: Path, kv_bits: int | None = None) -> str:
    """One hexadecimal word for all that must be the same for a file to be taken up again."""
    return hashlib.sha256(repr(sorted(_label(folder, kv_bits).items())).encode()).hexdigest()


def save(
    decoder: DecoderLike, path: Path, folder: Path, length: int | None = None, *, kv_bits: int | None = None
) -> int:
    """Writes what `decoder` holds of the model in `folder`; returns the bytes. The file appears whole or not at all.

    `length`: as it was after that many tokens. Raises ValueError if nobody asked for that, or nothing was read.
    """
    tokens, newest, buffers = decoder.held(length)
    if not tokens:
        raise ValueError("nothing has been read yet")
    arrays = {f"layer.{i}": buffer for i, buffer in enumerate(buffers)}
    arrays["tokens"] = mx.array(tokens, mx.int32)
    part = unfinished(path)
    try:
        mx.save_safetensors(str(part), arrays, _label(folder, kv_bits) | {"newest": str(newest)})
        part.chmod(0o600)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path.stat().st_size


def unfinished(path: Path) -> Path:
    """Where this process writes `path` until it is whole."""
    return path.with_name(f".{path.name}.{os.getpid()}.safetensors")


def sweep(folder: Path) -> None:
    """Removes what killed processes left of files they were writing there: nobody writes for an hour."""
    for path in folder.glob(".*.safetensors"):
        with suppress(OSError):  # another process has removed it
            if time.time() - path.stat().st_mtime > _HOUR:
                path.unlink()


def load(decoder: DecoderLike, path: Path, folder: Path, *, kv_bits: int | None = None) -> int:
    """Takes up what was saved; returns the number of tokens. Raises CacheRefused, and then changes nothing."""
    try:
        loaded = mx.load(str(path), format="safetensors", return_metadata=True)
        arrays, label = cast("tuple[dict[str, mx.array], dict[str, str]]", loaded)
        newest = int(label.pop("newest"))
        tokens = cast("list[int]", arrays.pop("tokens").tolist())
        buffers = [arrays[f"layer.{i}"] for i in range(len(arrays))]
        mx.eval(buffers)
    except (RuntimeError, ValueError, KeyError, OSError) as error:
        raise CacheRefused(f"{path} holds no keys and values ({error}): the text is read again.") from error
    wanted = _label(folder, kv_bits)
    if label.get(_KV_BITS) != wanted.get(_KV_BITS):
        there, here = (f"in {one[_KV_BITS]} bits" if _KV_BITS in one else "unpacked" for one in (label, wanted))
        raise CacheRefused(f"{path} has keys and values {there}, and here they are {here}: the text is read again.")
    if label != wanted:
        raise CacheRefused(f"{path} is of another model or of another version of it: the text is read again.")
    try:
        decoder.take_up(tokens, newest, buffers)
    except ValueError as error:
        raise CacheRefused(f"{path} does not fit this model ({error}): the text is read again.") from error
    return len(tokens)


def _label(folder: Path, kv_bits: int | None) -> dict[str, str]:
    packed = {} if kv_bits is None else {_KV_BITS: str(kv_bits)}
    return {"format": _FORMAT, "model": fingerprint(folder), "mlx": version("mlx"), **packed}
