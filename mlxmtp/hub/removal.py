"""Taking a model off the disk: what would go, how many bytes that frees, and doing it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mlxmtp.errors import ModelNotFound, UsageError
from mlxmtp.hub.cache import CachedRepo, Records
from mlxmtp.hub.inventory import installed
from mlxmtp.hub.registry import BUILT_IN, find_entry

if TYPE_CHECKING:
    from huggingface_hub.utils import DeleteCacheStrategy

    from mlxmtp.hub.store import Store
    from mlxmtp.settings import Places


@dataclass(frozen=True, slots=True)
class Item:
    """A folder that would go: `org/repo` (or the name of a model made here), its bytes, its commits in the cache."""

    name: str
    folder: Path
    size: int
    commits: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Removal:
    """What a removal takes away, and which drafter stays because another model uses it."""

    items: tuple[Item, ...]
    kept: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Bytes that come free."""
        return sum(item.size for item in self.items)


def plan_removal(name: str, store: Store, places: Places) -> Removal:
    """What `rm NAME` takes away: the model with its drafter, half-finished downloads included.

    Raises ModelNotFound if nothing of it is here, UsageError for what is not ours to remove.
    """
    meant = store.meaning(name)
    if not meant.strip():  # the folder of all models
        raise UsageError("Name the model to remove. See: mlxmtp ls")
    if meant == BUILT_IN:
        raise UsageError(f"{BUILT_IN} is part of the program and goes with it.")
    made = places.data / "models" / meant
    if "/" not in meant and not meant.startswith(".") and made.is_dir():
        return Removal((Item(meant, made, _size(made)),))
    if Path(meant).expanduser().is_dir():
        raise UsageError(f"{meant} is a folder of yours: remove it with rm -r.")
    entry = find_entry(meant)
    converted = store.made(entry) if entry is not None and entry.name == meant.lower() else None
    if converted is not None:
        return Removal((Item(converted.name, converted, _size(converted)),))
    repo = meant if entry is None else entry.target.repo
    record = Records(places.data).find(repo)
    paired = record.drafter if record is not None else entry.drafter.repo if entry is not None else None
    used = {
        other.drafter.name for other in installed(store, places) if other.drafter is not None and other.repo != repo
    }
    wanted = [one for one in (repo, paired) if one is not None and "/" in one]
    kept = tuple(one for one in wanted[1:] if one in used and CachedRepo.of(places.hf_cache, one).folder.is_dir())
    here = [CachedRepo.of(places.hf_cache, one) for one in dict.fromkeys(wanted) if one not in kept]
    items = tuple(_item(cached) for cached in here if cached.folder.is_dir())
    if not items:
        raise ModelNotFound(f"Model '{name}' is not on this machine, so there is nothing to remove. See: mlxmtp ls")
    return Removal(items, kept)


def remove(removal: Removal, places: Places, on_done: Callable[[Item], None] | None = None) -> None:
    """Do it. What is left after an interruption is no model any more, and can be removed again."""
    records = Records(places.data)
    for item in removal.items:
        if item.commits:
            records.forget(item.name)
            _remove_shared(item)
        for part in ("refs", "snapshots"):  # first what makes it a model
            shutil.rmtree(item.folder / part, ignore_errors=True)
        shutil.rmtree(item.folder)
        shutil.rmtree(places.hf_cache / ".locks" / item.folder.name, ignore_errors=True)
        if on_done is not None:
            on_done(item)


def _item(cached: CachedRepo) -> Item:
    size = cached.size_on_disk() + (_shared_size(cached) if _has_shared(cached) else 0)
    return Item(cached.repo, cached.folder, size, tuple(cached.commits()) or ("",))


def _has_shared(cached: CachedRepo) -> bool:
    """Whether some contents lie in the store that newer hub clients share between repositories."""
    blobs = cached.folder / "blobs"
    return blobs.is_dir() and any(item.is_symlink() for item in blobs.iterdir())


def _shared_size(cached: CachedRepo) -> int:
    """Bytes of shared contents that nobody else uses: the client knows."""
    strategy = _strategy(cached)
    own = sum(path.stat().st_size for path in (cached.folder / "blobs").iterdir() if not path.is_symlink())
    return 0 if strategy is None else max(0, strategy.expected_freed_size - own)


def _remove_shared(item: Item) -> None:
    cached = CachedRepo(item.folder)
    if _has_shared(cached):
        strategy = _strategy(cached)
        if strategy is not None:
            strategy.execute()
            item.folder.mkdir(exist_ok=True)


def _strategy(cached: CachedRepo) -> DeleteCacheStrategy | None:
    from huggingface_hub import scan_cache_dir

    commits = cached.commits()
    return scan_cache_dir(cached.folder.parent).delete_revisions(*commits) if commits else None


def _size(folder: Path) -> int:
    return sum(item.lstat().st_size for item in folder.rglob("*") if item.is_file() and not item.is_symlink())
