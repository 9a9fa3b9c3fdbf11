"""The plan of a download: the files of target and drafter, how much of them is here, and the configurations.

Reads small files (config.json, the index) into memory and writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal

from mlxmtp.errors import DownloadError, LoadError, ModelNotFound
from mlxmtp.files import free_bytes
from mlxmtp.hub.cache import INDEX, CachedRepo, indexed_files
from mlxmtp.hub.client import OnWait, RemoteFile, RemoteRepo, look_up, read_file
from mlxmtp.hub.registry import Entry, find_entry, same_shape
from mlxmtp.machine.memory import Need, need
from mlxmtp.models.config import ModelConfig, check_pair
from mlxmtp.units import format_bytes

_NETWORK = ("config.json", "generation_config.json", INDEX)
_TEXT_SIDE = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.*",
    "processor_config.json", "preprocessor_config.json",  # a kilobyte each; other tools need them for the towers
)  # fmt: skip
_LARGEST_SMALL = 50_000_000  # bytes; an index of a model this program runs has well under one million


@dataclass(frozen=True, slots=True)
class RepoPart:
    """One repository of a download: its files, small ones first, so that it is complete only at the very end."""

    role: Literal["target", "drafter"]
    commit: str
    revision: str | None
    files: tuple[RemoteFile, ...]
    cached: CachedRepo
    config: ModelConfig

    @property
    def repo(self) -> str:
        """`org/repo`."""
        return self.cached.repo

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    @property
    def missing(self) -> int:
        """Bytes that are not on this machine yet."""
        return sum(file.size - self._arrived(file) for file in self.files)

    def _arrived(self, file: RemoteFile) -> int:
        if self.cached.content(self.commit, file.name, file.etag) is not None:
            return file.size
        partial = self.cached.partial(file.etag)
        return min(partial.stat().st_size, file.size) if partial.is_file() else 0


@dataclass(frozen=True, slots=True)
class DownloadPlan:
    """A download before it starts. `parts` are the target with its drafter, or one alone; `notes` are for the user."""

    name: str
    parts: tuple[RepoPart, ...]
    cache: Path
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(part.size for part in self.parts)

    @property
    def missing(self) -> int:
        """Bytes that are not on this machine yet."""
        return sum(part.missing for part in self.parts)

    @property
    def free(self) -> int:
        """Bytes free where they would go."""
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
    """Plan the download of an alias or `org/repo`, with its drafter if `draft`.

    Raises ModelNotFound, DownloadError, LoadError (not a Gemma 4).
    """
    entry = find_entry(name)
    planner = _Planner(cache, on_wait)
    target = planner.part(entry.target.repo if entry else name, revision)
    if target.role == "drafter" or not draft:
        return DownloadPlan(name, (target,), cache)
    tried = list(dict.fromkeys(_drafter_repos(target, entry)))
    for repo in tried:
        try:
            drafter = planner.part(repo, None)
            check_pair(target.config, drafter.config)
        except (ModelNotFound, LoadError):
            continue
        return DownloadPlan(name, (target, drafter), cache)
    note = f"No drafter for {target.repo} was found (tried {', '.join(tried)}), so it will decode without one."
    return DownloadPlan(name, (target,), cache, (note,))


def _drafter_repos(target: RepoPart, entry: Entry | None) -> Iterator[str]:
    """Yield where a target's drafter may be: the registry's, one published beside it, that of the model it varies."""
    yield f"{target.repo}-assistant" if entry is None else entry.drafter.repo
    alike = same_shape(target.config)
    if alike is not None:
        yield alike.drafter.repo
        official = find_entry(f"{alike.family}:bf16")
        if official is not None:
            yield official.drafter.repo


class _Planner:
    def __init__(self, cache: Path, on_wait: OnWait | None) -> None:
        self._cache, self._on_wait = cache, on_wait

    def part(self, repo: str, revision: str | None) -> RepoPart:
        remote = look_up(repo, revision, on_wait=self._on_wait)
        cached = CachedRepo.of(self._cache, remote.repo)
        if "config.json" not in remote.files:
            raise LoadError(f"{repo} has no config.json, so it is no model that mlxmtp runs. Try another repository.")
        config = ModelConfig.parse(self._read(remote, cached, "config.json"), repo)
        weights = self._weights(remote, cached)
        patterns = _NETWORK if config.is_drafter else _NETWORK + _TEXT_SIDE
        small = [file for name, file in remote.files.items() if any(fnmatch(name, pattern) for pattern in patterns)]
        return RepoPart(
            "drafter" if config.is_drafter else "target",
            remote.commit,
            revision,
            (*sorted(small, key=lambda file: file.size), *(remote.files[name] for name in weights)),
            cached,
            config,
        )

    def _weights(self, remote: RemoteRepo, cached: CachedRepo) -> list[str]:
        if INDEX in remote.files:
            try:
                names = indexed_files(self._read(remote, cached, INDEX))
            except ValueError:
                raise LoadError(f"The index of {remote.repo} cannot be read. Try another --revision.") from None
        else:
            names = sorted(name for name in remote.files if fnmatch(name, "model*.safetensors") and "/" not in name)
        if not names:
            raise LoadError(f"{remote.repo} holds no safetensors weights. Try another repository.")
        absent = [name for name in names if name not in remote.files]
        if absent:
            raise LoadError(f"{remote.repo} lacks {absent[0]}, which its index names. Try another --revision.")
        return names

    def _read(self, remote: RemoteRepo, cached: CachedRepo, name: str) -> bytes:
        """Return the bytes of a small file, without leaving a trace in the cache."""
        file = remote.files[name]
        content = cached.content(remote.commit, file.name, file.etag)
        if content is not None and content.stat().st_size == file.size:
            return content.read_bytes()
        if file.size > _LARGEST_SMALL:
            raise LoadError(f"{file.name} of {remote.repo} has {file.size} bytes, which is no such file.")
        return read_file(remote.repo, remote.commit, file.name, on_wait=self._on_wait)
