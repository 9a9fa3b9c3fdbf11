"""What a pull would fetch: which files of which commits, how much of them is here, and whether the model will run.

Reads small files (config.json, the index) into memory and writes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import httpx2
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from mlxmtp.errors import DownloadError, LoadError, ModelNotFound
from mlxmtp.files import free_bytes
from mlxmtp.hub.cache import INDEX, CachedRepo
from mlxmtp.hub.client import OnWait, Patience, RemoteFile, RemoteRepo, explain, look_up, open_file
from mlxmtp.hub.registry import Entry, find_entry, same_shape
from mlxmtp.machine.memory import Need, need
from mlxmtp.models.config import ModelConfig, check_pair, read_config

_TEXT_SIDE = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.*",
    "processor_config.json", "preprocessor_config.json",  # a kilobyte each; other tools need them for the towers
)  # fmt: skip
_NETWORK = ("config.json", "generation_config.json", INDEX)
_LARGEST_SMALL = 50_000_000  # bytes; an index of a model this program runs has well under one million


@dataclass(frozen=True, slots=True)
class Part:
    """One repository of a pull: the files to have, small ones first, so that it is complete only at the very end."""

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
        return sum(file.size - self._here(file) for file in self.files)

    def _here(self, file: RemoteFile) -> int:
        if self.cached.content(self.commit, file.name, file.etag) is not None:
            return file.size
        partial = self.cached.partial(file.etag)
        return min(partial.stat().st_size, file.size) if partial.is_file() else 0


@dataclass(frozen=True, slots=True)
class Plan:
    """A pull before it starts. `notes` are things the user should know."""

    name: str
    entry: Entry | None
    parts: tuple[Part, ...]
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
        """Memory for a conversation of `context` tokens; None for a drafter alone."""
        target = next((part.config for part in self.parts if part.role == "target"), None)
        drafter = next((part.config for part in self.parts if part.role == "drafter"), None)
        return None if target is None else need(target, drafter, context)

    def check_space(self) -> None:
        """Raises DownloadError if the disk is too small for what is missing."""
        from mlxmtp.units import format_bytes

        if self.missing > self.free:
            raise DownloadError(
                f"{self.name} needs {format_bytes(self.missing)} more on disk; "
                f"{format_bytes(self.free)} are free in {self.cache}. "
                "Make room (`mlxmtp rm`), or set HF_HOME to another disk."
            )


def make_plan(
    name: str,
    cache: Path,
    *,
    revision: str | None = None,
    draft: bool = True,
    on_wait: OnWait | None = None,
) -> Plan:
    """The plan for an alias or `org/repo`. Raises ModelNotFound, DownloadError, LoadError (not a Gemma 4)."""
    entry = find_entry(name)
    planner = _Planner(cache, on_wait)
    target = planner.part(entry.target.repo if entry else name, revision)
    if target.role == "drafter" or not draft:
        return Plan(name, entry, (target,), cache)
    drafter, tried = planner.drafter(target, entry)
    if drafter is not None:
        return Plan(name, entry, (target, drafter), cache)
    note = f"No drafter for {target.repo} was found (tried {', '.join(tried)}), so it will decode without one."
    return Plan(name, entry, (target,), cache, (note,))


class _Planner:
    def __init__(self, cache: Path, on_wait: OnWait | None) -> None:
        self._cache, self._on_wait = cache, on_wait

    def part(self, repo: str, revision: str | None) -> Part:
        remote = look_up(repo, revision, on_wait=self._on_wait)
        cached = CachedRepo.of(self._cache, remote.repo)
        listed = {file.name: file for file in remote.files}
        if "config.json" not in listed:
            raise LoadError(f"{repo} has no config.json, so it is no model that mlxmtp runs. Try another repository.")
        config = _parse(repo, self._small(remote, cached, listed["config.json"]))
        names = self._weights(remote, cached, listed)
        patterns = _NETWORK if config.is_drafter else _NETWORK + _TEXT_SIDE
        small = [file for file in remote.files if any(fnmatch(file.name, pattern) for pattern in patterns)]
        return Part(
            "drafter" if config.is_drafter else "target",
            remote.commit,
            revision,
            (*sorted(small, key=lambda file: file.size), *(listed[name] for name in names)),
            cached,
            config,
        )

    def drafter(self, target: Part, entry: Entry | None) -> tuple[Part | None, list[str]]:
        """The drafter that was made for a target, and the repositories that were tried.

        The registry's, else one published beside the target, else the one of the model it is a variant of.
        """
        tried: list[str] = []
        for repo in dict.fromkeys(_candidates(target, entry)):
            tried.append(repo)
            try:
                part = self.part(repo, None)
                check_pair(target.config, part.config)
            except (ModelNotFound, LoadError):
                continue
            return part, tried
        return None, tried

    def _weights(self, remote: RemoteRepo, cached: CachedRepo, listed: dict[str, RemoteFile]) -> list[str]:
        if INDEX in listed:
            try:
                table = json.loads(self._small(remote, cached, listed[INDEX]))
                names = sorted(set(table["weight_map"].values()))
            except (ValueError, KeyError, TypeError, AttributeError):
                raise LoadError(f"The index of {remote.repo} cannot be read. Try another --revision.") from None
        else:
            names = sorted(name for name in listed if fnmatch(name, "model*.safetensors") and "/" not in name)
        if not names:
            raise LoadError(f"{remote.repo} holds no safetensors weights. Try another repository.")
        absent = [name for name in names if name not in listed]
        if absent:
            raise LoadError(f"{remote.repo} lacks {absent[0]}, which its index names. Try another --revision.")
        return names

    def _small(self, remote: RemoteRepo, cached: CachedRepo, file: RemoteFile) -> bytes:
        """A small file as bytes, without leaving a trace in the cache."""
        here = cached.content(remote.commit, file.name, file.etag)
        if here is not None and here.stat().st_size == file.size:
            return here.read_bytes()
        if file.size > _LARGEST_SMALL:
            raise LoadError(f"{file.name} of {remote.repo} has {file.size} bytes, which is no such file.")
        patience = Patience(self._on_wait)
        while True:
            try:
                with open_file(remote.repo, remote.commit, file.name, 0) as (_, pieces):
                    return b"".join(pieces)
            except (HfHubHTTPError, httpx2.TransportError, OfflineModeIsEnabled) as error:
                if not patience.wait_after(error):
                    raise explain(error, remote.repo, remote.commit) from error


def _candidates(target: Part, entry: Entry | None) -> Iterator[str]:
    if entry is not None:
        yield entry.drafter.repo
    else:
        yield f"{target.repo}-assistant"
    alike = same_shape(target.config)
    if alike is not None:
        yield alike.drafter.repo
        official = find_entry(f"{alike.family}:bf16")
        if official is not None:
            yield official.drafter.repo


def _parse(repo: str, content: bytes) -> ModelConfig:
    with _folder_with(content) as folder:
        try:
            return read_config(folder)
        except LoadError as error:
            said = str(error).replace(f"{folder / 'config.json'}", f"config.json of {repo}")
            raise LoadError(said.replace(str(folder), repo).replace("Download the model again.", "")) from None


@contextmanager
def _folder_with(content: bytes) -> Iterator[Path]:
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "config.json").write_bytes(content)
        yield folder
