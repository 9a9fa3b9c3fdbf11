"""Downloads into the cache: a plan of what target and drafter lack, then files that continue where they stopped."""

import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, BinaryIO, Literal

import httpx2

from mlxmtp.errors import DownloadError, LoadError, ModelNotFound
from mlxmtp.files import free_bytes, is_full, try_lock
from mlxmtp.hub import client
from mlxmtp.hub.cache import CachedRepo, Record, Records
from mlxmtp.hub.client import OnWait, RemoteFile
from mlxmtp.hub.registry import find_entry, same_shape
from mlxmtp.machine.memory import Need, need
from mlxmtp.models.chat_template import check_text
from mlxmtp.models.checkpoint import match
from mlxmtp.models.config import ModelConfig, check_pair, no_config
from mlxmtp.models.safetensors import INDEX, Chosen, assign, choose_files, header_length, parse_header
from mlxmtp.units import format_bytes

_NETWORK = ("config.json", "generation_config.json", INDEX)
_TEXT_SIDE = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.*",
    "additional_chat_templates/*",
    "processor_config.json", "preprocessor_config.json",  # a kilobyte each; other tools need them for the towers
)  # fmt: skip
_LARGEST_SMALL = 50_000_000  # bytes; an index has well under one million
_PIECE = 1 << 20

OnBytes = Callable[[int, bool], None]
"""Called with bytes that are here now (negative: useless ones that go), and whether they came over the network."""


@dataclass(frozen=True, slots=True)
class RepoPart:
    """One repository of a download: small files come before weights, so that it is complete only at the very end."""

    role: Literal["target", "drafter"]
    commit: str
    revision: str | None
    small: tuple[RemoteFile, ...]
    weights: tuple[RemoteFile, ...]
    cached: CachedRepo
    config: ModelConfig
    asked: str  # the name it was asked for by, which an older one or in another case may be

    @property
    def repo(self) -> str:
        return self.cached.repo

    @property
    def files(self) -> tuple[RemoteFile, ...]:
        return self.small + self.weights

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def missing(self) -> int:
        """Bytes that are not on this machine yet."""
        total = 0
        for file in self.files:
            if _whole(self.cached, self.commit, file) is None:
                begun = self.cached.begun(file.etag)
                total += max(0, file.size - (0 if begun is None else begun.stat().st_size))
        return total


@dataclass(frozen=True, slots=True)
class DownloadPlan:
    """A download before it starts. `parts` are the target with its drafter, or one alone; `notes` are for the user."""

    name: str
    parts: tuple[RepoPart, ...]
    cache: Path
    notes: tuple[str, ...] = ()
    no_drafter: bool = False  # one was looked for, and none was found

    @property
    def size(self) -> int:
        return sum(part.size for part in self.parts)

    @property
    def missing(self) -> int:
        return sum(part.missing for part in self.parts)

    @property
    def free(self) -> int:
        return free_bytes(self.cache)

    def needs(self, context: int) -> Need | None:
        """Return the memory for a conversation of `context` tokens; None for a drafter alone."""
        configs = {part.role: part.config for part in self.parts}
        return need(configs["target"], configs.get("drafter"), context) if "target" in configs else None

    def check_space(self) -> None:
        """Raise DownloadError if the disk is too small for what is missing."""
        if self.missing > self.free:
            raise DownloadError(
                f"{self.name} needs {format_bytes(self.missing)} more on disk; "
                f"{format_bytes(self.free)} are free in {self.cache}. "
                "Make room (`mlxmtp rm`), or set HF_HOME to another disk."
            )


def plan_download(
    name: str, cache: Path, *, revision: str | None = None, draft: bool = True, on_wait: OnWait | None = None
) -> DownloadPlan:
    """Plan the download of an alias or `org/repo`, with its drafter if `draft`. Raises MlxmtpError."""
    entry = find_entry(name)
    target = _plan_part(entry.target.repo if entry else name, revision, cache, on_wait)
    if target.role == "drafter" or not draft:
        return DownloadPlan(name, (target,), cache)
    # The registry's drafter or one published beside the target, then that of the model it varies.
    tried = [f"{target.repo}-assistant" if entry is None else entry.drafter.repo]
    if alike := same_shape(target.config):
        official = find_entry(f"{alike.family}:bf16")
        tried += [one.drafter.repo for one in (alike, official) if one]
    for repo in (tried := list(dict.fromkeys(tried))):
        try:
            drafter = _plan_part(repo, None, cache, on_wait)
            check_pair(target.config, drafter.config)
        except (ModelNotFound, LoadError):
            continue
        return DownloadPlan(name, (target, drafter), cache)
    note = f"No drafter for {target.repo} was found (tried {', '.join(tried)}), so it will decode without one."
    return DownloadPlan(name, (target,), cache, (note,), no_drafter=True)


def _plan_part(repo: str, revision: str | None, cache: Path, on_wait: OnWait | None) -> RepoPart:
    """Plan one repository, and refuse what `ask` would. Raises ModelNotFound, DownloadError, LoadError."""
    remote = _Remote(repo, revision, cache, on_wait)
    repo = remote.found.repo
    if (described := remote.read("config.json")) is None:
        raise LoadError(no_config(remote.found.files, repo))
    config = ModelConfig.parse(described, repo, generation=remote.read("generation_config.json"))
    weights = remote.weights(config)
    if not config.is_drafter:
        check_text(remote.found.files, remote.read, repo)
    patterns = _NETWORK if config.is_drafter else _NETWORK + _TEXT_SIDE
    small = [file for name, file in remote.found.files.items() if any(fnmatch(name, pattern) for pattern in patterns)]
    small.sort(key=lambda file: file.size)
    role: Literal["target", "drafter"] = "drafter" if config.is_drafter else "target"
    commit, cached = remote.found.commit, remote.cached
    return RepoPart(role, commit, revision, tuple(small), tuple(weights), cached, config, remote.asked)


class _Remote:
    """A repository before its download: small files and headers of weights, without leaving a trace in the cache."""

    def __init__(self, repo: str, revision: str | None, cache: Path, on_wait: OnWait | None) -> None:
        self.asked, self.found, self._on_wait = repo, client.look_up(repo, revision, on_wait=on_wait), on_wait
        self.cached = CachedRepo.of(cache, self.found.repo)

    def read(self, name: str) -> bytes | None:
        """Return the bytes of a small file, None if there is none. What is here counts only with the right hash."""
        if (file := self.found.files.get(name)) is None:
            return None
        if path := self._here(file):
            content = path.read_bytes()
            if _hasher(file, content).hexdigest() == file.etag:
                return content
        if file.size > _LARGEST_SMALL:
            raise LoadError(f"{name} of {self.found.repo} has {file.size} bytes, which is no such file.")
        return client.read_file(self.found.repo, self.found.commit, name, on_wait=self._on_wait)

    def weights(self, config: ModelConfig) -> list[RemoteFile]:
        """Return the files of the weights. Raises LoadError unless their headers are those of the network."""
        chosen = choose_files({name for name in self.found.files if "/" not in name}, self.read(INDEX), self.found.repo)
        files = [self.found.files[name] for name in chosen.files]
        here = any(map(self._here, files))
        try:
            self._check(config, chosen, files, local=here)
        except LoadError:
            if not here:  # else a file is damaged here, and the download repairs it
                raise
            self._check(config, chosen, files, local=False)
        return files

    def _check(self, config: ModelConfig, chosen: Chosen, files: list[RemoteFile], *, local: bool) -> None:
        headers = {}
        for file in files:
            named = f"{file.name} of {self.found.repo}"
            length = header_length(self._part(file, 0, 8, local), file.size, named)
            headers[file.name] = parse_header(self._part(file, 8, length, local), file.size, named)
        stored, _ = assign(headers, chosen, self.found.repo)
        match(config, {name: one.layout for name, one in stored.items()}, self.found.repo)

    def _part(self, file: RemoteFile, start: int, count: int, local: bool) -> bytes:
        if local and (path := self._here(file)) is not None:
            with path.open("rb") as stream:
                stream.seek(start)
                return stream.read(count)
        return client.read_part(self.found.repo, self.found.commit, file.name, start, count, on_wait=self._on_wait)

    def _here(self, file: RemoteFile) -> Path | None:
        return _whole(self.cached, self.found.commit, file)


def _whole(cached: CachedRepo, commit: str, file: RemoteFile) -> Path | None:
    """Return a file's content in the cache if it has the right size."""
    path = cached.content(commit, file.name, file.etag)
    return path if path is not None and path.stat().st_size == file.size else None


def _hasher(file: RemoteFile, content: bytes = b"") -> Any:
    """Return the hash that names a content: sha256 of large files, git's blob id (sha1 with a header) of others."""
    if file.lfs:
        return hashlib.sha256(content)
    return hashlib.sha1(f"blob {file.size}\0".encode() + content, usedforsecurity=False)


class _Content:
    """The bytes of a file in a stream: hashed and counted as they are read, or appended as they arrive."""

    def __init__(self, file: RemoteFile, stream: BinaryIO, on_bytes: OnBytes) -> None:
        self._file, self._stream, self._on_bytes = file, stream, on_bytes
        self._start()

    @property
    def intact(self) -> bool:
        return str(self._hash.hexdigest()) == self._file.etag

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
        self._on_bytes(-self.size, False)
        self._stream.truncate(0)
        self._start()

    def _start(self) -> None:
        self._hash = _hasher(self._file)
        self.size = 0

    def _count(self, piece: bytes, over_network: bool) -> None:
        self._hash.update(piece)
        self.size += len(piece)
        self._on_bytes(len(piece), over_network)


class Transfer:
    """Fetches files of one repository at one commit: unbuffered, so that whatever ends the process leaves its bytes."""

    def __init__(self, part: RepoPart, on_bytes: OnBytes, on_wait: OnWait | None = None) -> None:
        self._cached, self._commit = part.cached, part.commit
        self._on_bytes, self._on_wait = on_bytes, on_wait

    def fetch(self, file: RemoteFile) -> Path:
        """Return the file in its snapshot, whole and checked. Raises DownloadError; what has arrived stays."""
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
            said = f"{error.filename or blob} cannot be written: {error.strerror or error}. Check HF_HOME."
            if is_full(error):
                said = f"The disk is full ({blob.parent}). Make room, or set HF_HOME to another disk, and run the same "
                said += "command again: what has arrived is kept."
            raise DownloadError(said) from error
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
        if (begun := self._cached.begun(file.etag)) is not None:
            begun.rename(partial)
        # A mismatch after continuing may be the fault of the part that was here: once, everything is fetched anew.
        for _ in range(2):
            with partial.open("ab+", buffering=0) as stream:
                if not try_lock(stream.fileno()):  # the lock goes when the process that has it does
                    said = f"Another process is downloading this file ({partial.name}). Wait for it, or stop it."
                    raise DownloadError(said)
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
                    for leftover in self._cached.leftovers(file.etag):
                        leftover.unlink(missing_ok=True)
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
        patience, most = client.Patience(self._on_wait), content.size
        while content.size < file.size:
            try:
                with client.open_file(self._cached.repo, self._commit, file.name, content.size) as (begins, pieces):
                    if begins != content.size:  # the server does not know ranges
                        content.discard()
                    for piece in pieces:
                        content.append(piece[: file.size - content.size])
                        if content.size > most:  # what was discarded and comes again is no progress
                            most, patience.tries = content.size, 0
                if content.size < file.size:
                    raise httpx2.RemoteProtocolError(f"{file.name} ended after {content.size} of {file.size} bytes")
            except client.TransferError as error:
                if not patience.wait_after(error):
                    raise client.explain(error, self._cached.repo, self._commit) from error


def download(
    plan: DownloadPlan,
    records: Records,
    *,
    on_bytes: OnBytes,
    on_wait: OnWait | None = None,
    check_target: Callable[[Path, str], None],
) -> None:
    """Fetch what is missing, check everything, pin the commits. Raises DownloadError; what has arrived stays.

    ``check_target`` gets the folder of the target's small files, and its repository, before the weights come.
    """
    plan.check_space()
    for part in plan.parts:
        transfer = Transfer(part, on_bytes, on_wait)
        for file in part.small:
            transfer.fetch(file)
        if part.role == "target":
            check_target(part.cached.snapshot(part.commit), part.repo)
        for file in part.weights:
            transfer.fetch(file)
    drafter = next((part.repo for part in plan.parts if part.role == "drafter"), None)
    # The drafter first: a target is pinned only together with the drafter it was pulled with.
    for part in reversed(plan.parts):
        files, paired = {file.name: file.etag for file in part.files}, drafter if part.role == "target" else None
        alone = plan.no_drafter and part.role == "target"
        record = Record(part.repo, part.revision, part.commit, paired, time.time(), files, alone)
        for name in {part.repo, part.asked}:
            records.write(record, name)
        if part.revision in (None, "main"):
            part.cached.set_main(part.commit)
