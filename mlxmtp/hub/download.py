"""One file from the hub into the cache: continued where it stopped, checked before anything sees it.

A file grows under `blobs/ETAG.incomplete`, unbuffered, so whatever ends the process (a cut connection, Ctrl-C, kill -9,
a full disk) leaves what had arrived, and the next run asks for the rest. Only a file of the right size and hash gets
its final name.
"""

from __future__ import annotations

import errno
import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Protocol

import httpx2
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from mlxmtp.errors import DownloadError
from mlxmtp.files import try_lock
from mlxmtp.hub.cache import CachedRepo, Record, Records
from mlxmtp.hub.client import OnWait, Patience, RemoteFile, explain, open_file
from mlxmtp.hub.plan import Part, Plan

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_PIECE = 1 << 20

OnBytes = Callable[[int, bool], None]
"""Called with a number of bytes that are here now, and whether they came over the network; negative for bytes that
turned out to be useless."""


class _Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...
    def hexdigest(self) -> str: ...


class Transfer:
    """Fetches files of one repository at one commit."""

    def __init__(self, cached: CachedRepo, commit: str, *, on_bytes: OnBytes, on_wait: OnWait | None = None) -> None:
        self._cached, self._commit = cached, commit
        self._on_bytes, self._on_wait = on_bytes, on_wait

    def fetch(self, file: RemoteFile) -> Path:
        """The file in its snapshot, whole and checked, downloaded as far as it is not here.

        Raises DownloadError; what has arrived stays.
        """
        blob = self._cached.blob(file.etag)
        here = self._cached.content(self._commit, file.name, file.etag)
        if here is not None:
            if self._is_intact(here, file):
                if here != blob:  # on a file system without links the content is in the snapshot itself
                    return here
                return self._cached.place(self._commit, file.name, file.etag)
            here.resolve().unlink(missing_ok=True)
        try:
            self._download(file)
        except OSError as error:
            if isinstance(error, HfHubHTTPError | OfflineModeIsEnabled):
                raise explain(error, self._cached.repo, self._commit) from error
            raise _explain_disk(error, blob) from error
        return self._cached.place(self._commit, file.name, file.etag)

    def _is_intact(self, path: Path, file: RemoteFile) -> bool:
        if path.stat().st_size != file.size:
            return False
        digest = _new_hash(file)
        with path.open("rb") as stream:
            self._read_into(digest, stream)
        intact = digest.hexdigest() == file.etag
        if not intact:
            self._on_bytes(-file.size, False)
        return intact

    def _download(self, file: RemoteFile) -> None:
        partial = self._cached.partial(file.etag)
        partial.parent.mkdir(parents=True, exist_ok=True)
        # A mismatch after continuing may be the fault of the part that was here: once, everything is fetched anew.
        for _ in range(2):
            with partial.open("ab+", buffering=0) as stream:
                _claim(stream, partial)
                if not partial.exists() and self._cached.blob(file.etag).is_file():
                    self._on_bytes(file.size, False)  # another process finished it between opening and locking
                    return
                started_with = min(stream.tell(), file.size)
                intact = self._complete(file, stream)
                if intact:
                    os.fsync(stream.fileno())
                    partial.replace(self._cached.blob(file.etag))
                    return
                stream.truncate(0)
            self._on_bytes(-file.size, False)
            if not started_with:
                break
        partial.unlink(missing_ok=True)
        raise DownloadError(
            f"{file.name} of {self._cached.repo} arrived damaged (its hash is not the one that the hub names). "
            "Run the same command again; if that repeats, a proxy or mirror in between changes files."
        )

    def _complete(self, file: RemoteFile, stream: BinaryIO) -> bool:
        """Append what is missing; False if the hash is wrong in the end."""
        if stream.tell() > file.size:
            stream.truncate(0)
        digest = _new_hash(file)
        stream.seek(0)
        have = self._read_into(digest, stream)
        patience = Patience(self._on_wait)
        while have < file.size:
            try:
                with open_file(self._cached.repo, self._commit, file.name, have) as (begins, pieces):
                    if begins != have:  # the server does not know ranges
                        self._on_bytes(-have, False)
                        stream.truncate(0)
                        digest, have = _new_hash(file), 0
                    for piece in pieces:
                        patience.reset()
                        have += self._append(piece[: file.size - have], digest, stream)
                if have < file.size:
                    raise httpx2.RemoteProtocolError(f"{file.name} ended after {have} of {file.size} bytes")
            except (HfHubHTTPError, httpx2.TransportError) as error:
                if not patience.wait_after(error):
                    raise explain(error, self._cached.repo, self._commit) from error
        return digest.hexdigest() == file.etag

    def _append(self, piece: bytes, digest: _Hash, stream: BinaryIO) -> int:
        rest = memoryview(piece)
        while rest:  # an unbuffered write may take a part only, on a disk that is about to be full
            rest = rest[stream.write(rest) :]
        digest.update(piece)
        self._on_bytes(len(piece), True)
        return len(piece)

    def _read_into(self, digest: _Hash, stream: BinaryIO) -> int:
        total = 0
        while piece := stream.read(_PIECE):
            digest.update(piece)
            self._on_bytes(len(piece), False)
            total += len(piece)
        return total


def _new_hash(file: RemoteFile) -> _Hash:
    """What names this file's content: sha256 for large files, git's blob id (sha1 with a header) for the others."""
    if file.lfs:
        return hashlib.sha256()
    return hashlib.sha1(f"blob {file.size}\0".encode(), usedforsecurity=False)


def _claim(stream: BinaryIO, path: Path) -> None:
    """Two processes must not append to one file. The lock goes when the process does, however it ends."""
    if not try_lock(stream.fileno()):
        raise DownloadError(f"Another process is downloading this file ({path.name}). Wait for it, or stop it.")


def _explain_disk(error: OSError, blob: Path) -> DownloadError:
    if error.errno in _FULL:
        return DownloadError(
            f"The disk is full ({blob.parent}). Make room, or set HF_HOME to another disk, and run the same command "
            "again: what has arrived is kept."
        )
    return DownloadError(f"{error.filename or blob} cannot be written: {error.strerror or error}. Check HF_HOME.")


def pull(plan: Plan, records: Records, *, on_bytes: OnBytes, on_wait: OnWait | None = None) -> list[Path]:
    """Fetch what is missing and check everything; the folders of the parts.

    Raises DownloadError; what has arrived stays and the next call goes on from there.
    """
    plan.check_space()
    folders = [_fetch(part, on_bytes, on_wait) for part in plan.parts]
    drafter = next((part.repo for part in plan.parts if part.role == "drafter"), None)
    # The drafter first: a target is pinned only together with the drafter it was pulled with.
    for part in reversed(plan.parts):
        records.write(_record(part, drafter if part.role == "target" else None))
        if part.revision in (None, "main"):
            part.cached.set_main(part.commit)
    return folders


def _fetch(part: Part, on_bytes: OnBytes, on_wait: OnWait | None) -> Path:
    transfer = Transfer(part.cached, part.commit, on_bytes=on_bytes, on_wait=on_wait)
    for file in part.files:
        transfer.fetch(file)
    return part.cached.snapshot(part.commit)


def _record(part: Part, drafter: str | None) -> Record:
    files = {file.name: file.etag for file in part.files}
    return Record(part.repo, part.revision, part.commit, drafter, time.time(), files)
