"""The layout of the Hugging Face cache, which other tools share, and the commits that were pulled."""

import filecmp
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from mlxmtp.errors import LoadError
from mlxmtp.files import is_folder, try_lock, write_atomically
from mlxmtp.models.safetensors import weight_files

INCOMPLETE = ".incomplete"
PARTIAL = ".partial"  # ending of the folder in which a conversion grows


@dataclass(frozen=True, slots=True)
class CachedRepo:
    """The folder of one repository in the cache; it need not exist.

    models--org--repo/refs/main             the commit that `main` was when somebody looked
                      snapshots/COMMIT/NAME  links to the files of one commit
                      blobs/ETAG             their contents
                      blobs/ETAG.incomplete  bytes of one that have arrived so far
                      blobs/ETAG.xxxxxxxx.incomplete  the same of huggingface_hub, which never goes on with them
    """

    folder: Path

    @classmethod
    def of(cls, cache: Path, repo: str) -> Self:
        """Return the repository's folder, also where it is there in another case."""
        name = f"models--{repo.replace('/', '--')}"
        alike = () if is_folder(cache / name) else cache.glob("models--*")
        return cls(next((one for one in alike if one.name.lower() == name.lower()), cache / name))

    @classmethod
    def of_snapshot(cls, folder: Path) -> Self | None:
        """Return the repository of which a folder is a snapshot, None for any other folder."""
        found = folder.parent.parent
        return cls(found) if found.name.startswith("models--") else None

    @property
    def repo(self) -> str:
        return self.folder.name.removeprefix("models--").replace("--", "/", 1)

    def snapshot(self, commit: str) -> Path:
        return self.folder / "snapshots" / commit

    def commits(self) -> list[str]:
        snapshots = self.folder / "snapshots"
        return sorted(item.name for item in snapshots.iterdir() if item.is_dir()) if is_folder(snapshots) else []

    def ref(self, name: str = "main") -> str | None:
        """Return the commit that a branch or tag was last."""
        try:
            return (self.folder / "refs" / name).read_text(encoding="utf-8").strip() or None
        except (OSError, ValueError):
            return None

    def newest(self) -> list[str]:
        """Return the commits that are here, also in part, the newest first."""
        return sorted(self.commits(), key=lambda commit: -self.snapshot(commit).stat().st_mtime)

    def complete(self, commits: Iterable[str | None]) -> Path | None:
        """Return the snapshot of the first of some commits that is complete here."""
        return next(filter(is_complete, (self.snapshot(commit) for commit in commits if commit)), None)

    def set_main(self, commit: str) -> None:
        """Write what `main` is now, for other tools; a cache that cannot be written (ours are the records) stays."""
        if self.ref() != commit:
            with suppress(OSError):
                write_atomically(self.folder / "refs" / "main", commit, parents=True)

    def blob(self, etag: str) -> Path:
        return self.folder / "blobs" / etag

    def partial(self, etag: str) -> Path:
        """Return the path where the content with this tag grows while it arrives."""
        return self.folder / "blobs" / f"{etag}{INCOMPLETE}"

    def begun(self, etag: str) -> Path | None:
        """Return the file whose bytes a download of this content goes on from: ours, or one that was left there."""
        ours = self.partial(etag)
        return ours if ours.is_file() else next(iter(self.leftovers(etag)), None)

    def leftovers(self, etag: str) -> list[Path]:
        """Return what huggingface_hub left of this content, the largest first; none while it is at work on it."""
        with suppress(OSError), (self.folder.parent / ".locks" / self.folder.name / f"{etag}.lock").open("rb") as lock:
            if not try_lock(lock.fileno()):
                return []
        found = self.folder.glob(f"blobs/{etag}.*{INCOMPLETE}")
        return sorted(found, key=lambda one: one.stat().st_size, reverse=True)

    def content(self, commit: str, name: str, etag: str) -> Path | None:
        """Return the file with the content of `name`, among the blobs or in the snapshot; None if it is not here."""
        return next((path for path in (self.blob(etag), self.snapshot(commit) / name) if path.is_file()), None)

    def place(self, commit: str, name: str, etag: str) -> Path:
        """Link the blob into the snapshot; a file system without links gets the blob itself moved there."""
        link, blob = self.snapshot(commit) / name, self.blob(etag)
        # Without links huggingface_hub copies blobs; any other file in the link's place is not what was published.
        if link.exists() and (link.samefile(blob) or filecmp.cmp(link, blob, shallow=False)):
            return link
        link.parent.mkdir(parents=True, exist_ok=True)
        beside = link.with_name(f".{link.name}.{os.getpid()}")
        beside.unlink(missing_ok=True)
        try:
            beside.symlink_to(os.path.relpath(blob, link.parent))
        except OSError:
            beside = blob
        beside.replace(link)
        return link


def folder_size(folder: Path) -> int:
    """Return the bytes of all files in a folder and below it, without what links lead to."""
    return sum(item.lstat().st_size for item in folder.rglob("*") if item.is_file() and not item.is_symlink())


def is_complete(folder: Path) -> bool:
    """Return True if config.json and all weight files are there; the cache may hold links to files that it lacks."""
    try:
        return (folder / "config.json").is_file() and bool(weight_files(folder))
    except LoadError:
        return False


@dataclass(frozen=True, slots=True)
class Record:
    """A pulled repository: `revision` as asked for (None: the newest), `commit` it was, `pulled` in Unix seconds."""

    repo: str
    revision: str | None
    commit: str
    drafter: str | None
    pulled: float
    files: dict[str, str]
    """Name of each file and the tag of its content."""
    no_drafter: bool = False
    """None was found on the hub."""


class Records:
    """The records of pulls in the data folder; they pin repositories to commits."""

    def __init__(self, data: Path) -> None:
        self._folder = data / "pulled"

    def find(self, repo: str) -> Record | None:
        """Return the record of `org/repo`; None if there is none that can be read."""
        try:
            return Record(**json.loads(self._path(repo).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def write(self, record: Record, name: str | None = None) -> None:
        """Write the record of a repository, under another `name` that it was asked for by as well."""
        write_atomically(self._path(name or record.repo), json.dumps(asdict(record), indent=1) + "\n", parents=True)

    def forget(self, repo: str) -> None:
        """Remove what is recorded of a repository, by whatever names it was asked for."""
        self._path(repo).unlink(missing_ok=True)
        for path in self._folder.glob("*.json"):
            record = self.find(path.name.removesuffix(".json"))
            if record is not None and record.repo.lower() == repo.lower():
                path.unlink(missing_ok=True)

    def _path(self, repo: str) -> Path:
        return self._folder / f"{repo.replace('/', '--')}.json"
