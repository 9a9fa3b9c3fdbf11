"""Carrying out a conversion: tensor by tensor, continued where it stopped, and a model only when all of it is right.

    DEST.partial/journal          which steps are on disk
    DEST.partial/model/…          grows, without config.json until every value has been read back
    DEST                          the same folder, renamed at the very end

Weight files are laid out in full before the first value, then filled in order. At most one slice is in memory.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from itertools import takewhile
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any
from zlib import crc32

from mlxmtp.convert.plan import Conversion, Part, Place, index, versions
from mlxmtp.convert.tasks import Slice, expected_layouts, output_config
from mlxmtp.errors import ConversionError
from mlxmtp.files import sync, try_lock
from mlxmtp.hub.cache import INDEX
from mlxmtp.hub.converted import RECORD
from mlxmtp.models.safetensors import Stored, read_folder, write_bytes

if TYPE_CHECKING:
    from mlxmtp.convert.compare import Agreement


_LINE = 9  # bytes: eight hexadecimal digits and a newline
_WHOLE = re.compile(rb"[0-9a-f]{8}\n")


class Journal:
    """The journal of one conversion, which no other process may open at the same time.

    ``fingerprint`` stands for everything that decides about the bytes written. A journal with another one is of another
    conversion: then ``checksums`` is empty and ``stale`` is set.
    """

    def __init__(self, path: Path, fingerprint: str) -> None:
        self._file = path.open("ab+", buffering=0)
        self._claim(path)
        self._file.seek(0)
        text = self._file.read()
        self._head = fingerprint.encode() + b"\n"
        self.stale = not self._head.startswith(text[: len(self._head)])
        if not text.startswith(self._head):
            self._file.truncate(0)
            self._file.write(self._head)
            text = self._head
        lines = (text[at : at + _LINE] for at in range(len(self._head), len(text), _LINE))
        # The last may be cut off, and after a power cut zeros may stand where nothing has been written.
        self.checksums = [int(line, 16) for line in takewhile(_WHOLE.fullmatch, lines)]
        self.keep(len(self.checksums))

    def add(self, checksum: int) -> None:
        """The next step is on disk."""
        self._file.write(b"%08x\n" % checksum)
        self.checksums.append(checksum)

    def keep(self, count: int) -> None:
        """Only the first `count` steps are."""
        del self.checksums[count:]
        self._file.truncate(len(self._head) + _LINE * count)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def _claim(self, path: Path) -> None:
        """The lock goes when the process does, however it ends."""
        try:
            if not try_lock(self._file.fileno()):
                raise ConversionError(f"Another process is converting into {path.parent}. Wait for it, or stop it.")
        except BaseException:
            self._file.close()
            raise


OnBytes = Callable[[int, bool], None]
"""Called with a number of bytes of the result that are right on disk, and whether they were converted just now."""

Compare = Callable[[Path, Path], "Agreement | None"]
"""Takes the folders of source and result; None if they were not compared."""

_KEPT = "What is done is kept: run the same command again to go on."


@dataclass(frozen=True, slots=True)
class Outcome:
    """A finished conversion. `started_over`: what a conversion with other settings had left was thrown away."""

    folder: Path
    agreement: Agreement | None
    started_over: bool


@dataclass(frozen=True, slots=True)
class Watch:
    """Who wants to know: bytes converted, bytes read back, and the moment before the comparison."""

    on_bytes: OnBytes = lambda size, fresh: None
    on_checked: OnBytes = lambda size, fresh: None
    on_compare: Callable[[], None] = lambda: None


def convert(plan: Conversion, *, compare: Compare | None = None, watch: Watch | None = None) -> Outcome:
    """Write the result, read it back, compare it with its source, and give it its name.

    Raises ConversionError (disk), LoadError (source). Whatever ends it, the next call goes on where this one stopped.
    """
    watch = watch or Watch()
    try:
        plan.work.mkdir(parents=True, exist_ok=True)
        with Journal(plan.work / "journal", plan.fingerprint) as journal:
            if not journal.checksums:  # nothing, or what a conversion with other settings has left
                shutil.rmtree(plan.work / "model", ignore_errors=True)
            _fill(plan, journal, watch.on_bytes)
            _read_back(plan, journal, watch.on_checked)
            watch.on_compare()
            agreement = _finish(plan, compare)
            started_over = journal.stale
        shutil.rmtree(plan.work, ignore_errors=True)
    except OSError as error:
        raise _explain(error, plan.dest) from error
    return Outcome(plan.dest, agreement, started_over)


def _fill(plan: Conversion, journal: Journal, on_bytes: OnBytes) -> None:
    """Every step that is not on disk yet."""
    from mlxmtp.convert.slices import little_memory, pack

    with _open_files(plan) as files, little_memory():
        done = _still_right(plan, journal, files, on_bytes)
        journal.keep(done)
        for at, (step, places) in enumerate(_steps(plan)):
            if at < done:
                continue
            checksum = 0
            for data, (file, start) in zip(pack(step), places, strict=True):
                write_bytes(files[file], data, start)
                checksum = crc32(data, checksum)
            journal.add(checksum)
            on_bytes(step.nbytes, True)
        for descriptor in files.values():
            os.fsync(descriptor)


def _still_right(plan: Conversion, journal: Journal, files: dict[Path, int], on_bytes: OnBytes) -> int:
    """How many steps of the journal are on disk as it says."""
    for at, (checksum, (step, places)) in enumerate(zip(journal.checksums, _steps(plan), strict=False)):
        if _checksum(_written(step, places, files)) != checksum:
            return at
        on_bytes(step.nbytes, False)
    return len(journal.checksums)


def _read_back(plan: Conversion, journal: Journal, on_checked: OnBytes) -> None:
    """Every tensor is there, is what was written, and stands for finite numbers. Raises ConversionError."""
    from mlxmtp.convert.slices import check_values, little_memory

    for part in plan.parts:
        there = {name: stored.layout for name, stored in _stored(part).items()}
        if there != expected_layouts(list(part.tasks)):
            raise ConversionError(f"{part.folder} lacks tensors. Remove {plan.work} and run the same command again.")
    with _open_files(plan) as files, little_memory():
        for checksum, (step, places) in zip(journal.checksums, _steps(plan), strict=True):
            data = _written(step, places, files)
            name = step.task.parts[0].name
            if _checksum(data) != checksum:
                raise ConversionError(f"The disk gives back other bytes of {name} than were written. {_KEPT}")
            if not check_values(step, data):
                raise ConversionError(f"{name} came out with values that are not finite: choose other --q-* flags.")
            on_checked(step.nbytes, True)


def _stored(part: Part) -> dict[str, Stored]:
    """The tensors in a part's files, from their headers."""
    _write_json(part.folder / INDEX, index(part))
    return read_folder(part.folder)


def _finish(plan: Conversion, compare: Compare | None) -> Agreement | None:
    """The small files, the comparison, the name."""
    agreement = None
    record = _record(plan)
    for part in plan.parts:
        for file in part.copied:
            shutil.copyfile(file, part.folder / file.name)
            sync(part.folder / file.name)
    for part in plan.parts:
        _write_json(part.folder / "config.json", output_config(part.config, part.recipe))
    model = plan.parts[0].folder
    if compare is not None:
        agreement = compare(plan.parts[0].config.folder, model)
        record["compared"] = None if agreement is None else asdict(agreement)
    _write_json(model / RECORD, record)
    for part in plan.parts:
        sync(part.folder)
    if plan.dest.exists():
        old = plan.work / "replaced"
        shutil.rmtree(old, ignore_errors=True)
        plan.dest.rename(old)
    model.rename(plan.dest)
    sync(plan.dest.parent)
    return agreement


def _record(plan: Conversion) -> dict[str, Any]:
    parts: dict[str, Any] = {
        part.role: {
            "source": part.config.folder.name if part.role == "drafter" else plan.origin,
            "files": {file.name: file.stat().st_size for file in part.sources},
            "stored": part.recipe.described(part.config),
            "left_out": len(part.left_out),
        }
        for part in plan.parts
    }
    return {"versions": versions(), "recipe": asdict(plan.parts[-1].recipe), **parts}


def _steps(plan: Conversion) -> Iterator[tuple[Slice, list[Place]]]:
    for part in plan.parts:
        yield from part.steps()


def _written(step: Slice, places: list[Place], files: dict[Path, int]) -> list[bytes]:
    return [
        os.pread(files[file], step.bytes_of(part)[1], start)
        for part, (file, start) in zip(step.task.parts, places, strict=True)
    ]


def _checksum(pieces: list[bytes]) -> int:
    checksum = 0
    for piece in pieces:
        checksum = crc32(piece, checksum)
    return checksum


@contextmanager
def _open_files(plan: Conversion) -> Iterator[dict[Path, int]]:
    """Descriptors of all weight files, each as long as it will be and with its header in place."""
    with ExitStack() as stack:
        files: dict[Path, int] = {}
        for part in plan.parts:
            part.folder.mkdir(parents=True, exist_ok=True)
            for shard in part.shards:
                descriptor = os.open(shard.file, os.O_RDWR | os.O_CREAT, 0o644)
                stack.callback(os.close, descriptor)
                files[shard.file] = descriptor
                os.ftruncate(descriptor, shard.size)
                write_bytes(descriptor, shard.header, 0)
        yield files


def _write_json(path: Path, value: object) -> None:
    """Write a small file and put it on the disk; nothing for None."""
    if value is not None:
        with path.open("w", encoding="utf-8") as stream:
            json.dump(value, stream, indent=2, ensure_ascii=False)
            stream.write("\n")
            stream.flush()
            os.fsync(stream.fileno())


def _explain(error: OSError, dest: Path) -> ConversionError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return ConversionError(f"The disk is full ({dest.parent}). Make room. {_KEPT}")
    name = error.filename or dest
    return ConversionError(f"{name} cannot be written: {error.strerror or error}. Give a DEST that can.")
