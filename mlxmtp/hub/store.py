"""From a name to folders on this machine. Reads the disk, never the network, and loads nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mlxmtp.errors import LoadError, ModelNotFound
from mlxmtp.hub.cache import CachedRepo, Records, is_complete
from mlxmtp.hub.converted import made_folder
from mlxmtp.hub.registry import BUILT_IN, Entry, entries, find_entry, known_names, same_shape
from mlxmtp.machine.memory import fits, machine_memory
from mlxmtp.models.config import read_config
from mlxmtp.units import format_bytes, nearest

if TYPE_CHECKING:
    from mlxmtp.settings import Places

_PACKAGE = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class Found:
    """A target on this machine: what to call it, where it is, and the registry's entry if it has one."""

    name: str
    folder: Path
    entry: Entry | None = None


class Store:
    """The models on this machine: the built-in one, folders, the Hugging Face cache, models made here. Read only."""

    def __init__(self, places: Places, aliases: Mapping[str, str] | None = None) -> None:
        self._places = places
        self._aliases = dict(aliases or {})
        self._records = Records(places.data)

    def meaning(self, name: str) -> str:
        """What the user's own aliases make of a name."""
        return self._aliases.get(name, name)

    def resolve(self, name: str) -> Found:
        """The folder of a target. Raises ModelNotFound with the command that gets it."""
        meant = self.meaning(name)
        if meant == BUILT_IN:
            return Found(BUILT_IN, _built_in("target"))
        entry = find_entry(meant)
        if entry is not None:
            made = self.made(entry) if entry.name == meant.lower() else None
            if made is not None:
                return Found(name, made)
            folder = self.cached(entry.target.repo)
            if folder is None:
                raise ModelNotFound(missing_sentence(entry, machine_memory()))
            return Found(name, folder, entry)
        return Found(name, self._anything_else(meant, "Model"))

    def drafter_for(self, target: Found, wanted: str | Literal[False] | None) -> Found | None:
        """The drafter: the one asked for, none (False), or the paired one if it is here (None).

        Its name is one that asks for it again. Raises ModelNotFound for a named one that is not here.
        """
        if wanted is False:
            return None
        if wanted is not None:
            meant = self._aliases.get(wanted, wanted)
            return Found(wanted, _built_in("drafter") if meant == BUILT_IN else self._named_drafter(meant))
        if target.entry is not None:
            repo = target.entry.drafter.repo
            folder = self.cached(repo)
            return None if folder is None else Found(repo, folder)
        folder = _beside(target.folder)
        if folder is not None:
            return Found(BUILT_IN if target.name == BUILT_IN else str(folder), folder)
        return self._published_for(target)

    def default(self) -> Found | None:
        """The installed model to take when none was named: the largest that fits, else the smallest."""
        installed: dict[Path, tuple[Entry, Found]] = {}
        for entry in sorted(entries(), key=_needed):
            made = self.made(entry)
            folder = made or self.cached(entry.target.repo)
            if folder is not None:  # of two names for one model the registry has the bare one first
                installed.setdefault(folder, (entry, Found(entry.name, folder, None if made else entry)))
        memory = machine_memory()
        fitting = [one for entry, one in installed.values() if fits(_needed(entry), memory)]
        return next(iter(fitting[-1:] or [one for _, one in installed.values()]), None)

    def made(self, entry: Entry) -> Path | None:
        """The folder of a variant that was converted here; its name means that one, and no longer the hub's."""
        return made_folder(entry, self._places.data / "models")

    def _published_for(self, target: Found) -> Found | None:
        """The drafter of a repository without a short name: the one pulled with it, else that of its shape."""
        record = self._records.find(self.meaning(target.name))
        repos = [record.drafter] if record is not None and record.drafter is not None else []
        if not repos and (target.folder / "config.json").is_file():
            try:
                alike = same_shape(read_config(target.folder))
            except LoadError:  # said in full when the target itself is read
                alike = None
            repos = [] if alike is None else [alike.drafter.repo]
        for repo in repos:
            folder = self.cached(repo)
            if folder is not None:
                return Found(repo, folder)
        return None

    def _named_drafter(self, name: str) -> Path:
        """`e2b` as a drafter's name means the drafter of e2b."""
        entry = find_entry(name)
        if entry is None:
            return self._anything_else(name, "Drafter")
        folder = self.cached(entry.drafter.repo)
        if folder is None:
            raise ModelNotFound(f"The drafter of '{name}' is not on this machine. Run: mlxmtp pull {entry.name}")
        return folder

    def _anything_else(self, name: str, what: str) -> Path:
        """A folder, or a repository of the cache."""
        made = self._places.data / "models" / name
        if "/" not in name and not name.startswith(".") and (made / "config.json").is_file():
            return made
        path = Path(name).expanduser()
        if path.is_dir():
            return path
        if path.exists():
            raise LoadError(f"{path} is a file. Give the folder that holds config.json and model.safetensors.")
        if _looks_like_path(name):
            raise ModelNotFound(
                f"There is no folder {name}. Give the folder that holds config.json, or one of: {_names()}."
            )
        if "/" in name:
            folder = self.cached(name)
            if folder is not None:
                return folder
            raise ModelNotFound(f"{what} '{name}' is not on this machine. Run: mlxmtp pull {name}")
        raise ModelNotFound(
            f"{what} '{name}' is not known{_suggestion(name)}. There are: {_names()}, any org/repo or path."
        )

    def cached(self, repo: str) -> Path | None:
        """The complete snapshot of `repo` in the Hugging Face cache: the one that was pulled, else the newest."""
        cached = CachedRepo.of(self._places.hf_cache, repo)
        record = self._records.find(repo)
        for commit in (None if record is None else record.commit, cached.main()):
            if commit is not None and is_complete(cached.snapshot(commit)):
                return cached.snapshot(commit)
        return None


def missing_sentence(entry: Entry, memory: int) -> str:
    """What to say when a model with a short name is not here; `memory` in bytes decides whether it fits."""
    return f"Model '{entry.name}' is not on this machine. Run: mlxmtp pull {entry.name}{_size_note(entry, memory)}"


def best_fit(memory: int) -> Entry | None:
    """The largest model in its default variant that fits `memory` bytes."""
    fitting = [entry for entry in entries() if ":" not in entry.name and fits(_needed(entry), memory)]
    return fitting[-1] if fitting else None


def _needed(entry: Entry) -> int:
    # A drafter of unknown size is small beside its target: only the target counts then.
    return entry.size or entry.target.size or 0


def _size_note(entry: Entry, memory: int) -> str:
    if entry.target.size is None:
        return ""
    verdict = "fits" if fits(_needed(entry), memory) else f"does not fit {format_bytes(memory)} of memory"
    return f" ({format_bytes(entry.target.size)}, {verdict})"


def _built_in(part: str) -> Path:
    """In a wheel the model is inside the package, in a source tree beside it."""
    for root in (_PACKAGE, _PACKAGE.parent):
        folder = root / "assets" / BUILT_IN / part
        if (folder / "config.json").is_file():
            return folder
    raise LoadError("The built-in model's files are missing from this installation. Install mlxmtp again.")


def _beside(folder: Path) -> Path | None:
    """The drafter of a target that is just a folder: inside it, or next to it."""
    here = folder.resolve()
    candidates = (here / "drafter", here.parent / "drafter", here.parent / f"{here.name}-assistant")
    return next((place for place in candidates if place != here and (place / "config.json").is_file()), None)


def _looks_like_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or (name.count("/") != 1 and "/" in name)


def _names() -> str:
    return ", ".join(known_names())


def _suggestion(name: str) -> str:
    near = nearest(name.lower(), [*known_names(), *(entry.name for entry in entries())])
    return f" (did you mean '{near}'?)" if near else ""
