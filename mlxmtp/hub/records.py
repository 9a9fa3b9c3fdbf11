"""What `pull` has brought, pinned: a model stays at the commit that was checked until it is pulled again.

One JSON file per repository in the data folder. The cache itself remembers only what `main` was when any tool looked
last, which may be a commit whose files are not all here.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mlxmtp.hub.cache import write_whole


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
        write_whole(self._path(record.repo), json.dumps(asdict(record), indent=1) + "\n", parents=True)

    def forget(self, repo: str) -> None:
        """Unpin a repository."""
        self._path(repo).unlink(missing_ok=True)

    def _path(self, repo: str) -> Path:
        return self._folder / f"{repo.replace('/', '--')}.json"
