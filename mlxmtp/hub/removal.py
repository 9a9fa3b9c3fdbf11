"""Taking a model off the disk: a plan with the bytes it frees, and carrying it out."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mlxmtp.errors import ModelNotFound, UsageError
from mlxmtp.hub.cache import CachedRepo, folder_size
from mlxmtp.hub.inventory import installed
from mlxmtp.hub.registry import BUILT_IN, find_entry

if TYPE_CHECKING:
    from huggingface_hub.utils import DeleteCacheStrategy

    from mlxmtp.hub.store import Store


@dataclass(frozen=True, slots=True)
class RemovedFolder:
    """A folder that would go: `org/repo` (or the name of a conversion), its bytes, its commits in the cache."""

    name: str
    folder: Path
    size: int
    commits: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RemovalPlan:
    """The folders that a removal deletes, and the drafters that stay because another model uses them."""

    folders: tuple[RemovedFolder, ...]
    shared: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Bytes that come free."""
        return sum(item.size for item in self.folders)


def plan_removal(name: str, store: Store) -> RemovalPlan:
    """Plan the removal of a model with its drafter, half-finished downloads and conversions included.

    Raises ModelNotFound if nothing of it is here, UsageError for what is not ours to remove.
    """
    plain = store.unaliased(name)
    if not plain.strip():  # the folder of all models
        raise UsageError("Name the model to remove. See: mlxmtp ls")
    if plain == BUILT_IN:
        raise UsageError(f"{BUILT_IN} is part of the program and goes with it.")
    own = store.models / plain
    if "/" not in plain and not plain.startswith(".") and own.is_dir():
        return RemovalPlan((RemovedFolder(plain, own, folder_size(own)),))
    if Path(plain).expanduser().is_dir():
        raise UsageError(f"{plain} is a folder of yours: remove it with rm -r.")
    entry = find_entry(plain)
    converted = store.converted(entry) if entry is not None and entry.name == plain.lower() else None
    if converted is not None:
        return RemovalPlan((RemovedFolder(converted.name, converted, folder_size(converted)),))
    repo = plain if entry is None else entry.target.repo
    record = store.records.find(repo)
    paired = record.drafter if record is not None else entry.drafter.repo if entry is not None else None
    used = {other.drafter for other in installed(store) if other.repo != repo}
    repos = {one: CachedRepo.of(store.places.hf_cache, one) for one in (repo, paired) if one and "/" in one}
    here = {one: cached for one, cached in repos.items() if cached.folder.is_dir()}
    shared = tuple(one for one in here if one == paired and one != repo and one in used)
    if not here.keys() - set(shared):
        raise ModelNotFound(f"Model '{name}' is not on this machine, so there is nothing to remove. See: mlxmtp ls")
    return RemovalPlan(tuple(_removed(cached) for one, cached in here.items() if one not in shared), shared)


def remove(plan: RemovalPlan, store: Store) -> None:
    """Delete the folders. What is left after an interruption is no model any more, and can be removed again."""
    for item in plan.folders:
        if item.commits:
            store.records.forget(item.name)
            _remove_shared_blobs(item.folder)
        for part in ("refs", "snapshots"):  # first what makes it a model
            shutil.rmtree(item.folder / part, ignore_errors=True)
        shutil.rmtree(item.folder)
        shutil.rmtree(store.places.hf_cache / ".locks" / item.folder.name, ignore_errors=True)


def _removed(cached: CachedRepo) -> RemovedFolder:
    size = cached.size_on_disk()
    strategy = _shared_blobs(cached)
    if strategy is not None:
        own = sum(path.stat().st_size for path in (cached.folder / "blobs").iterdir() if not path.is_symlink())
        size += max(0, strategy.expected_freed_size - own)
    return RemovedFolder(cached.repo, cached.folder, size, tuple(cached.commits()) or ("",))


def _remove_shared_blobs(folder: Path) -> None:
    strategy = _shared_blobs(CachedRepo(folder))
    if strategy is not None:
        strategy.execute()
        folder.mkdir(exist_ok=True)


def _shared_blobs(cached: CachedRepo) -> DeleteCacheStrategy | None:
    """Return the client's deletion of a repository whose contents lie in the store that it shares between repositories.

    The client knows which of them nobody else uses. None if there are no such contents.
    """
    blobs, commits = cached.folder / "blobs", cached.commits()
    if not commits or not blobs.is_dir() or not any(item.is_symlink() for item in blobs.iterdir()):
        return None
    from huggingface_hub import scan_cache_dir

    return scan_cache_dir(cached.folder.parent).delete_revisions(*commits)
