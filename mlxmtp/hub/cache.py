"""The layout of the Hugging Face cache, which other tools share. Standard library only.

models--org--repo/refs/main             the commit that `main` was when somebody looked
                  snapshots/COMMIT/NAME  links to the files of one commit
                  blobs/ETAG             their contents
                  blobs/ETAG.incomplete  what has arrived of one so far
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

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
        write_whole(self.folder / "refs" / "main", commit, parents=True)

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


def write_whole(path: Path, text: str, *, parents: bool = False, private: bool = False) -> None:
    """Write a small file so that it is there whole or not at all: a full disk leaves what was there.

    What is no file (a pipe, a terminal) is written to. `parents`: make the folders above it. `private`: for its owner
    only. Raises OSError.
    """
    if parents:
        path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_file():
        path.write_text(text, encoding="utf-8", errors="replace")
        return
    path = path.resolve()  # a link stays one
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.touch(0o600 if private else 0o666)
        beside.write_text(text, encoding="utf-8", errors="replace")
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


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


def free_bytes(folder: Path) -> int:
    """Bytes that can still be written where `folder` is or will be."""
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    return shutil.disk_usage(there).free
