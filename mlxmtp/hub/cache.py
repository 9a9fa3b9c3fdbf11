"""The layout of the Hugging Face cache, which other tools share. Standard library only.

models--org--repo/refs/main             the commit that `main` was when somebody looked
                  snapshots/COMMIT/NAME  links to the files of one commit
                  blobs/ETAG             their contents
                  blobs/ETAG.incomplete  what has arrived of one so far
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mlxmtp.files import write_atomically

INCOMPLETE = ".incomplete"
PARTIAL = ".partial"  # ending of the folder in which a conversion grows
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class CachedRepo:
    """The folder of one repository in the cache; it need not exist."""

    folder: Path

    @classmethod
    def of(cls, cache: Path, repo: str) -> CachedRepo:
        """The folder that holds `org/repo`."""
        return cls(cache / f"models--{repo.replace('/', '--')}")

    @property
    def repo(self) -> str:
        """`org/repo` again."""
        return self.folder.name.removeprefix("models--").replace("--", "/", 1)

    def snapshot(self, commit: str) -> Path:
        """Folder of the files of one commit."""
        return self.folder / "snapshots" / commit

    def commits(self) -> list[str]:
        """Every commit with a snapshot."""
        snapshots = self.folder / "snapshots"
        return sorted(item.name for item in snapshots.iterdir() if item.is_dir()) if snapshots.is_dir() else []

    def main(self) -> str | None:
        """The commit that was `main` last."""
        try:
            return (self.folder / "refs" / "main").read_text(encoding="utf-8").strip() or None
        except OSError:
            return None

    def set_main(self, commit: str) -> None:
        """Remember that `main` is `commit`; readers see the old or the new one, never half of it."""
        write_atomically(self.folder / "refs" / "main", commit, parents=True)

    def blob(self, etag: str) -> Path:
        """Where the content with this tag is, or will be."""
        return self.folder / "blobs" / etag

    def partial(self, etag: str) -> Path:
        """Where the content with this tag grows while it arrives."""
        return self.folder / "blobs" / f"{etag}{INCOMPLETE}"

    def content(self, commit: str, name: str, etag: str) -> Path | None:
        """The file with the content of `name`, if it is here: behind the snapshot or already among the blobs."""
        return next((path for path in (self.blob(etag), self.snapshot(commit) / name) if path.is_file()), None)

    def place(self, commit: str, name: str, etag: str) -> Path:
        """Give the blob its name in the snapshot; a file system without links gets the blob itself moved there."""
        link, blob = self.snapshot(commit) / name, self.blob(etag)
        if link.exists() and not (link.is_symlink() and link.resolve() != blob.resolve()):
            return link
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        try:
            link.symlink_to(os.path.relpath(blob, link.parent))
        except OSError:
            blob.replace(link)
        return link

    def size_on_disk(self) -> int:
        """Bytes of everything in the folder, each content once."""
        return sum(item.lstat().st_size for item in self.folder.rglob("*") if item.is_file() and not item.is_symlink())


def is_complete(folder: Path) -> bool:
    """Whether config and every weight file named by the index are there (the cache links to files it may lack)."""
    if not (folder / "config.json").is_file():
        return False
    names = indexed(folder / INDEX)
    if names is None:
        return not (folder / INDEX).exists() and any(item.is_file() for item in folder.glob("*.safetensors"))
    return all((folder / name).is_file() for name in names)


def indexed(index: Path) -> frozenset[str] | None:
    """The weight files that an index names; None if there is none that can be read."""
    try:
        return frozenset(map(str, json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None


@dataclass(frozen=True, slots=True)
class Record:
    """One repository: `revision` as asked for (None: the newest), `commit` it was, `pulled` in seconds since 1970."""

    repo: str
    revision: str | None
    commit: str
    drafter: str | None
    pulled: float
    files: dict[str, str]
    """Name of each file and the tag of its content."""


class Records:
    """The records in the data folder."""

    def __init__(self, data: Path) -> None:
        self._folder = data / "pulled"

    def find(self, repo: str) -> Record | None:
        """The record of `org/repo`; None if there is none that can be read."""
        try:
            table: dict[str, Any] = json.loads(self._path(repo).read_text(encoding="utf-8"))
            return Record(**table)
        except (OSError, ValueError, TypeError):
            return None

    def all(self) -> list[Record]:
        """Every record, by name of the repository."""
        if not self._folder.is_dir():
            return []
        names = sorted(path.stem.replace("--", "/", 1) for path in self._folder.glob("*.json"))
        return [record for record in map(self.find, names) if record is not None]

    def write(self, record: Record) -> None:
        """Pin a repository."""
        write_atomically(self._path(record.repo), json.dumps(asdict(record), indent=1) + "\n", parents=True)

    def forget(self, repo: str) -> None:
        """Unpin a repository."""
        self._path(repo).unlink(missing_ok=True)

    def _path(self, repo: str) -> Path:
        return self._folder / f"{repo.replace('/', '--')}.json"
