"""From a name to folders on this machine. Reads the disk, never the network, and loads nothing."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mlxmtp.errors import LoadError, ModelNotFound
from mlxmtp.files import exists, expand_home, is_file, is_folder, is_path
from mlxmtp.hub import registry
from mlxmtp.hub.cache import CachedRepo, Records
from mlxmtp.hub.registry import BUILT_IN, Entry, entries, find_entry, plain_name, same_shape, split_revision
from mlxmtp.machine.chip import Machine, this_machine
from mlxmtp.machine.memory import need
from mlxmtp.models.config import check_pair, read_config
from mlxmtp.models.safetensors import conversion_record
from mlxmtp.settings import Places
from mlxmtp.units import format_bytes, nearest

CONTEXT = 4096  # tokens of the conversation for which it is decided if a model fits
_PACKAGE = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A target or drafter on this machine: a name that asks for it again, its folder, its registry entry if any."""

    name: str
    folder: Path
    entry: Entry | None = None


class Store:
    """The models on this machine: the built-in one, folders, the Hugging Face cache, conversions. Read only."""

    def __init__(self, places: Places, aliases: Mapping[str, str] | None = None) -> None:
        self.places = places
        self.records = Records(places.data)
        self.models = places.data / "models"
        """The folder of conversions."""
        self._aliases = dict(aliases or {})

    def unaliased(self, name: str) -> str:
        """Return what the user's own aliases make of a name; addresses of pages become `org/repo` or `org/repo@rev`."""
        return plain_name(self._aliases.get(name, name))

    def resolve(self, name: str) -> Checkpoint:
        """Return the target of that name. Raises ModelNotFound with the command that gets it."""
        plain = self.unaliased(name)
        if plain == BUILT_IN:
            return Checkpoint(BUILT_IN, built_in("target"))
        entry = find_entry(plain)
        if entry is None:
            return Checkpoint(name, self._unregistered(plain, "Model"))
        if converted := self.conversion_named(plain):
            return Checkpoint(name, converted)
        if folder := self.cached(entry.target.repo):
            return Checkpoint(name, folder, entry)
        raise ModelNotFound(missing_sentence(entry, this_machine().as_told(self.places.data)))

    def drafter_for(self, target: Checkpoint, wanted: str | Literal[False] | None) -> Checkpoint | None:
        """Return the named drafter, none (False), or the paired one if it is here (None). Raises ModelNotFound."""
        if wanted is False:
            return None
        if wanted is not None:
            plain = self.unaliased(wanted)
            return Checkpoint(wanted, built_in("drafter") if plain == BUILT_IN else self._named_drafter(plain))
        if target.entry is not None:
            return self._published_drafter(target.entry.target.repo, target)
        here = target.folder.resolve()
        for folder in (here / "drafter", here.parent / "drafter", here.parent / f"{here.name}-assistant"):
            if folder != here and (folder / "config.json").is_file():
                return Checkpoint(BUILT_IN if target.name == BUILT_IN else str(folder), folder)
        cached = CachedRepo.of_snapshot(here)
        repo = split_revision(self.unaliased(target.name))[0] if cached is None else cached.repo
        return self._published_drafter(repo, target)

    def _published_drafter(self, repo: str, target: Checkpoint) -> Checkpoint | None:
        """Return the drafter pulled with a repository, else the registry's, else the one beside it or of its shape."""
        record = self.records.find(repo)
        for name in (record and record.drafter, target.entry and target.entry.drafter.repo):
            if name and (found := self._cached_drafter(name)) is not None:
                return found
        if target.entry is not None:
            return None  # that of other weights, which may have the same shape, would draft for these
        with suppress(LoadError):  # said in full when the target itself is read
            config = read_config(target.folder)
            alike = same_shape(config)
            for name in (f"{repo}-assistant", *([] if alike is None else [alike.drafter.repo])):
                if (found := self._cached_drafter(name)) is not None:
                    check_pair(config, read_config(found.folder))
                    return found
        return None

    def converted(self, entry: Entry) -> Path | None:
        """Return the folder of a variant that was converted here; its name means that one, and no longer the hub's."""
        folder = self.models / f"{entry.family}-{entry.variant}"
        record = conversion_record(folder)
        if record is None or not (folder / "config.json").is_file():
            return None
        return folder if record["target"]["source"] == entry.source_repo else None

    def conversion_named(self, plain: str) -> Path | None:
        """Return the folder of the conversion that a short name means; a repository's name never means one."""
        entry = find_entry(plain)
        return self.converted(entry) if entry is not None and entry.name == plain.lower() else None

    def cached(self, name: str) -> Path | None:
        """Return the complete snapshot of `org/repo` or `org/repo@rev` in the Hugging Face cache.

        Without a revision that is the pulled one, else `main` as it was last, else the newest that is complete.
        """
        repo, revision = split_revision(name)
        record = self.records.find(repo)
        cached = CachedRepo.of(self.places.hf_cache, repo if record is None else record.repo)
        pulled = record.commit if record is not None and revision in (None, record.revision) else None
        if revision is None:
            return cached.complete([pulled, cached.ref(), *cached.newest()])
        begins = [commit for commit in cached.commits() if len(revision) >= 7 and commit.startswith(revision)]
        return cached.complete([pulled, cached.ref(revision), *begins])

    def pulled(self, name: str) -> Path | None:
        """Return the snapshot of `org/repo` if it was pulled: the name means that, even beside such a folder."""
        known = "/" in name and self.records.find(split_revision(name)[0]) is not None
        return self.cached(name) if known else None

    def _cached_drafter(self, repo: str) -> Checkpoint | None:
        return Checkpoint(repo, folder) if (folder := self.cached(repo)) else None

    def _named_drafter(self, name: str) -> Path:
        """Return a drafter's folder; `e2b` means the drafter of e2b."""
        if (entry := find_entry(name)) is None:
            return self._unregistered(name, "Drafter")
        with suppress(ModelNotFound):
            if (paired := self.drafter_for(self.resolve(name), None)) is not None:
                return paired.folder
        if folder := self.cached(entry.drafter.repo):
            return folder
        raise ModelNotFound(f"The drafter of '{name}' is not on this machine. Run: mlxmtp pull {entry.name}")

    def _unregistered(self, name: str, role: str) -> Path:
        """Return the conversion, folder or repository of the cache that has this name."""
        names = ", ".join(registry.known_names())
        if not name.strip():  # which would be the folder in which the command runs
            raise ModelNotFound(f"Give the name of a model: there are {names}, any org/repo or path.")
        converted = self.models / name
        if "/" not in name and not name.startswith(".") and is_file(converted / "config.json"):
            return converted
        path = expand_home(name)
        if is_folder(path):
            if (pulled := self.pulled(name)) is not None:
                return pulled
            cached = CachedRepo(path)  # a repository's folder in the cache means its newest complete commit
            return (None if (path / "config.json").exists() else cached.complete(cached.newest())) or path
        if exists(path):
            raise LoadError(f"{path} is a file. Give the folder that holds config.json and model.safetensors.")
        if "://" in name:
            sentence = (
                f"{name} is not the page of a model on huggingface.co. Give its org/repo, a path or one of: {names}."
            )
            raise ModelNotFound(sentence)
        if is_path(name) or split_revision(name)[0].count("/") > 1:
            sentence = f"There is no folder {name}. Give the folder that holds config.json, or one of: {names}."
            raise ModelNotFound(sentence)
        if "/" in name:
            if folder := self.cached(name):
                return folder
            raise ModelNotFound(f"{role} '{name}' is not on this machine. Run: mlxmtp pull {name}")
        near = nearest(name.lower(), [*registry.known_names(), *(entry.name for entry in entries())])
        hint = f" (did you mean '{near}'?)" if near else ""
        raise ModelNotFound(f"{role} '{name}' is not known{hint}. There are: {names}, any org/repo or path.")


def missing_sentence(entry: Entry, machine: Machine) -> str:
    """Return the sentence for a model with a short name that is not here, with whether it fits a machine."""
    note = ""
    if entry.target.size is not None:
        fits = _needs(entry, CONTEXT) <= machine.usable
        verdict = "fits" if fits else f"does not fit {format_bytes(machine.memory)} of memory"
        note = f" ({format_bytes(entry.target.size)}, {verdict})"
    return f"Model '{entry.name}' is not on this machine. Run: mlxmtp pull {entry.name}{note}"


def best_fit(usable: int, context: int = CONTEXT) -> Entry | None:
    """Return the largest model in its default variant that takes `usable` bytes at most with `context` tokens."""
    bare = (entry for entry in reversed(entries()) if ":" not in entry.name)
    return next((entry for entry in bare if _needs(entry, context) <= usable), None)


def _needs(entry: Entry, context: int) -> int:
    return need(entry.target_config(), entry.drafter_config(), context).total


def built_in(part: str) -> Path:
    """Return a folder of the built-in model: in a wheel it is inside the package, in a source tree beside it."""
    for root in (_PACKAGE, _PACKAGE.parent):
        folder = root / "assets" / BUILT_IN / part
        if (folder / "config.json").is_file():
            return folder
    raise LoadError("The built-in model's files are missing from this installation. Install mlxmtp again.")
