"""Carrying out a conversion: slice by slice, continued where it stopped."""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import reduce
from itertools import islice, takewhile
from pathlib import Path
from typing import Any, BinaryIO, Self
from zlib import crc32

from mlxmtp.convert.plan import ConversionPlan, Place, versions
from mlxmtp.convert.tasks import Slice, output_config
from mlxmtp.errors import ConversionError, DeviceFailed, TooLarge
from mlxmtp.files import is_full, sync, try_lock, write_atomically
from mlxmtp.models.safetensors import INDEX, RECORD, read_folder, write_bytes

_GO_ON = "What is done is kept: run the same command again to go on."
_LINE = 9  # bytes of a journal's line: eight hexadecimal digits and a newline
_WHOLE_LINE = re.compile(rb"[0-9a-f]{8}\n")

OnBytes = Callable[[int, bool], None]
"""Called with a number of bytes of the result that are right on disk, and whether they were converted just now."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """Mean divergence KL(source || result) in nats and the share of positions with the same likeliest token."""

    kl: float
    top1: float
    tokens: int


Compare = Callable[[Path, Path], Agreement]  # of source and result by their folders; raises TooLarge, DeviceFailed


@dataclass(frozen=True, slots=True)
class Watch:
    """Callbacks of a conversion: bytes converted, bytes read back, and the moment before the comparison."""

    on_bytes: OnBytes = lambda size, fresh: None
    on_checked: OnBytes = lambda size, fresh: None
    on_compare: Callable[[], None] = lambda: None


@dataclass(frozen=True, slots=True)
class ConversionResult:
    """A finished conversion."""

    folder: Path
    agreement: Agreement | None
    not_compared: str | None  # why there is no agreement although one was wanted
    started_over: bool  # the rest of a conversion with other settings was thrown away


def convert(plan: ConversionPlan, *, compare: Compare | None = None, watch: Watch | None = None) -> ConversionResult:
    """Write, check, compare and name the result, or go on with it. Raises ConversionError, LoadError."""
    watch = watch or Watch()
    try:
        plan.work.mkdir(parents=True, exist_ok=True)
        with StepJournal.open(plan.work / "journal", plan.fingerprint) as journal:
            if not journal.checksums:  # nothing, or the rest of a conversion with other settings
                shutil.rmtree(plan.work / "model", ignore_errors=True)
            _fill(plan, journal, watch.on_bytes)
            _read_back(plan, journal, watch.on_checked)
            watch.on_compare()
            agreement, not_compared = _finish(plan, compare)
            started_over = journal.stale
        shutil.rmtree(plan.work, ignore_errors=True)
    except OSError as error:
        said = f"{error.filename or plan.dest} cannot be written: {error.strerror or error}. "
        said += "Give mlxmtp convert a DEST that can."
        if is_full(error):
            said = f"The disk is full ({plan.dest.parent}). Make room. {_GO_ON}"
        raise ConversionError(said) from error
    return ConversionResult(plan.dest, agreement, not_compared, started_over)


class StepJournal:
    """The checksums of the steps on disk; empty, and ``stale``, if the conversion had another fingerprint."""

    @classmethod
    @contextmanager
    def open(cls, path: Path, fingerprint: str) -> Iterator[Self]:
        """Open a journal and lock it. Raises ConversionError if another process has it."""
        with path.open("ab+", buffering=0) as file:
            if not try_lock(file.fileno()):
                raise ConversionError(f"Another process is converting into {path.parent}. Wait for it, or stop it.")
            yield cls(file, fingerprint)

    def __init__(self, file: BinaryIO, fingerprint: str) -> None:
        self._file = file
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
        self.checksums = [int(line, 16) for line in takewhile(_WHOLE_LINE.fullmatch, lines)]
        self.truncate(len(self.checksums))

    def add(self, checksum: int) -> None:
        self._file.write(b"%08x\n" % checksum)
        self.checksums.append(checksum)

    def truncate(self, count: int) -> None:
        """Forget all but the first `count` steps."""
        del self.checksums[count:]
        self._file.truncate(len(self._head) + _LINE * count)


def _fill(plan: ConversionPlan, journal: StepJournal, on_bytes: OnBytes) -> None:
    """Write every step that is not on disk yet."""
    from mlxmtp.convert.slices import convert_slice, little_memory

    with _open_files(plan) as files, little_memory():
        done = 0
        for checksum, (step, places) in zip(journal.checksums, plan.steps(), strict=False):
            if _checksum(_written(step, places, files)) != checksum:
                break
            done += 1
            on_bytes(step.nbytes, False)
        journal.truncate(done)
        for step, places in islice(plan.steps(), done, None):
            data = convert_slice(step)
            for piece, (file, start) in zip(data, places, strict=True):
                write_bytes(files[file], piece, start)
            journal.add(_checksum(data))
            on_bytes(step.nbytes, True)
        for descriptor in files.values():
            os.fsync(descriptor)


def _read_back(plan: ConversionPlan, journal: StepJournal, on_checked: OnBytes) -> None:
    """Raise ConversionError unless every tensor is there, is what was written, and stands for finite numbers."""
    from mlxmtp.convert.slices import check_values, little_memory

    for part in plan.parts:
        if index := part.index():
            _write_json(part.folder / INDEX, index)
        stored = {name: tensor.layout for name, tensor in read_folder(part.folder).items()}
        if stored != {layout.name: layout for task in part.tasks for layout in task.parts}:
            raise ConversionError(f"{part.folder} lacks tensors. Remove {plan.work} and run the same command again.")
    with _open_files(plan) as files, little_memory():
        for checksum, (step, places) in zip(journal.checksums, plan.steps(), strict=True):
            data = _written(step, places, files)
            name = step.task.parts[0].name
            if _checksum(data) != checksum:
                raise ConversionError(f"The disk gives back other bytes of {name} than were written. {_GO_ON}")
            if not check_values(step, data):
                raise ConversionError(f"{name} came out with values that are not finite: choose other --q-* flags.")
            on_checked(step.nbytes, True)


def _finish(plan: ConversionPlan, compare: Compare | None) -> tuple[Agreement | None, str | None]:
    """Write the small files, compare, and give the result its name; the agreement, or why there is none."""
    record: dict[str, Any] = {"versions": versions(), "recipe": asdict(plan.parts[-1].recipe)}
    for part in plan.parts:
        record[part.role] = {
            "source": part.config.folder.name if part.role == "drafter" else plan.origin,
            "files": {file.name: file.stat().st_size for file in part.sources},
            "stored": part.recipe.described(part.config),
            "left_out": len(part.left_out),
        }
        for file in part.copied:
            copy = part.folder / file.relative_to(part.config.folder)
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, copy)
            sync(copy)
    for part in plan.parts:
        _write_json(part.folder / "config.json", output_config(part.config, part.recipe))
    model, agreement, not_compared = plan.parts[0].folder, None, None
    if compare is not None:
        try:
            agreement = compare(plan.parts[0].config.folder, model)
        except (TooLarge, DeviceFailed) as error:
            not_compared = str(error)
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
    return agreement, not_compared


def _written(step: Slice, places: list[Place], files: dict[Path, int]) -> list[bytes]:
    sizes = [step.bytes_of(part)[1] for part in step.task.parts]
    return [os.pread(files[file], size, start) for size, (file, start) in zip(sizes, places, strict=True)]


def _checksum(pieces: Sequence[bytes]) -> int:
    return reduce(lambda checksum, piece: crc32(piece, checksum), pieces, 0)


@contextmanager
def _open_files(plan: ConversionPlan) -> Iterator[dict[Path, int]]:
    """Yield descriptors of all weight files, each as long as it will be and with its header in place."""
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
    write_atomically(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
    sync(path)
