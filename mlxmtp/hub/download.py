"""Files from the hub into the cache: continued where they stopped, checked before anything sees them.

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
from typing import BinaryIO

import httpx2
from huggingface_hub.errors import HfHubHTTPError

from mlxmtp.errors import DownloadError
from mlxmtp.files import try_lock
from mlxmtp.hub.cache import Record, Records
from mlxmtp.hub.client import OnWait, Patience, RemoteFile, TransferError, explain, open_file
from mlxmtp.hub.plan import DownloadPlan, RepoPart

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_PIECE = 1 << 20

OnBytes = Callable[[int, bool], None]
"""Called with a number of bytes that are here now, and whether they came over the network; negative for bytes that
turned out to be useless."""


def download(plan: DownloadPlan, records: Records, *, on_bytes: OnBytes, on_wait: OnWait | None = None) -> None:
    """Fetch what is missing, check everything, and pin the commits.

    Raises DownloadError; what has arrived stays and the next call goes on from there.
    """
    plan.check_space()
    for part in plan.parts:
        transfer = Transfer(part, on_bytes, on_wait)
        for file in part.files:
            transfer.fetch(file)
    drafter = next((part.repo for part in plan.parts if part.role == "drafter"), None)
    # The drafter first: a target is pinned only together with the drafter it was pulled with.
    for part in reversed(plan.parts):
        files, paired = {file.name: file.etag for file in part.files}, drafter if part.role == "target" else None
        records.write(Record(part.repo, part.revision, part.commit, paired, time.time(), files))
        if part.revision in (None, "main"):
            part.cached.set_main(part.commit)


class Transfer:
    """Fetches files of one repository at one commit."""

    def __init__(self, part: RepoPart, on_bytes: OnBytes, on_wait: OnWait | None = None) -> None:
        self._cached, self._commit = part.cached, part.commit
        self._on_bytes, self._on_wait = on_bytes, on_wait

    def fetch(self, file: RemoteFile) -> Path:
        """Return the file in its snapshot, whole and checked, downloaded as far as it is not here.

        Raises DownloadError; what has arrived stays.
        """
        blob = self._cached.blob(file.etag)
        content = self._cached.content(self._commit, file.name, file.etag)
        if content is not None:
            if self._is_intact(content, file):
                if content != blob:  # on a file system without links the content is in the snapshot itself
                    return content
                return self._cached.place(self._commit, file.name, file.etag)
            content.resolve().unlink(missing_ok=True)
        try:
            self._download(file, blob)
        except OSError as error:
            if isinstance(error, TransferError):
                raise explain(error, self._cached.repo, self._commit) from error
            raise _explain_disk(error, blob) from error
        return self._cached.place(self._commit, file.name, file.etag)

    def _is_intact(self, path: Path, file: RemoteFile) -> bool:
        if path.stat().st_size != file.size:
            return False
        with path.open("rb") as stream:
            content = _Content(file, stream, self._on_bytes)
            content.read()
        if not content.intact:
            self._on_bytes(-file.size, False)
        return content.intact

    def _download(self, file: RemoteFile, blob: Path) -> None:
        partial = self._cached.partial(file.etag)
        partial.parent.mkdir(parents=True, exist_ok=True)
        # A mismatch after continuing may be the fault of the part that was here: once, everything is fetched anew.
        for _ in range(2):
            with partial.open("ab+", buffering=0) as stream:
                _lock(stream, partial)
                if not partial.exists() and blob.is_file():
                    self._on_bytes(file.size, False)  # another process finished it between opening and locking
                    return
                continued = stream.tell() > 0
                content = _Content(file, stream, self._on_bytes)
                if stream.tell() > file.size:
                    content.discard()
                content.read()
                self._fetch_rest(file, content)
                if content.intact:
                    os.fsync(stream.fileno())
                    partial.replace(blob)
                    return
                content.discard()
            if not continued:
                break
        partial.unlink(missing_ok=True)
        raise DownloadError(
            f"{file.name} of {self._cached.repo} arrived damaged (its hash is not the one that the hub names). "
            "Run the same command again; if that repeats, a proxy or mirror in between changes files."
        )

    def _fetch_rest(self, file: RemoteFile, content: _Content) -> None:
        patience = Patience(self._on_wait)
        while content.size < file.size:
            try:
                with open_file(self._cached.repo, self._commit, file.name, content.size) as (begins, pieces):
                    if begins != content.size:  # the server does not know ranges
                        content.discard()
                    for piece in pieces:
                        patience.reset()
                        content.append(piece[: file.size - content.size])
                if content.size < file.size:
                    said = f"{file.name} ended after {content.size} of {file.size} bytes"
                    raise httpx2.RemoteProtocolError(said)
            except (HfHubHTTPError, httpx2.TransportError) as error:
                if not patience.wait_after(error):
                    raise explain(error, self._cached.repo, self._commit) from error


class _Content:
    """The bytes of a file in a stream: hashed and counted as they are read, or appended as they arrive."""

    def __init__(self, file: RemoteFile, stream: BinaryIO, on_bytes: OnBytes) -> None:
        self._file, self._stream, self._on_bytes = file, stream, on_bytes
        self._start()

    @property
    def intact(self) -> bool:
        """True if the hash is the one that the hub names."""
        return self._hash.hexdigest() == self._file.etag

    def read(self) -> None:
        self._stream.seek(0)
        while piece := self._stream.read(_PIECE):
            self._count(piece, False)

    def append(self, piece: bytes) -> None:
        rest = memoryview(piece)
        while rest:  # an unbuffered write may take a part only, on a disk that is about to be full
            rest = rest[self._stream.write(rest) :]
        self._count(piece, True)

    def discard(self) -> None:
        """Empty the file: what is in it is useless."""
        self._on_bytes(-self.size, False)
        self._stream.truncate(0)
        self._start()

    def _start(self) -> None:
        # Large files are named by their sha256, the others by git's blob id: sha1 with a header.
        header = f"blob {self._file.size}\0".encode()
        self._hash = hashlib.sha256() if self._file.lfs else hashlib.sha1(header, usedforsecurity=False)
        self.size = 0

    def _count(self, piece: bytes, over_network: bool) -> None:
        self._hash.update(piece)
        self.size += len(piece)
        self._on_bytes(len(piece), over_network)


def _lock(stream: BinaryIO, path: Path) -> None:
    """Refuse to append to a file that another process appends to. The lock goes when the process does."""
    if not try_lock(stream.fileno()):
        raise DownloadError(f"Another process is downloading this file ({path.name}). Wait for it, or stop it.")


def _explain_disk(error: OSError, blob: Path) -> DownloadError:
    if error.errno in _FULL:
        return DownloadError(
            f"The disk is full ({blob.parent}). Make room, or set HF_HOME to another disk, and run the same command "
            "again: what has arrived is kept."
        )
    return DownloadError(f"{error.filename or blob} cannot be written: {error.strerror or error}. Check HF_HOME.")
