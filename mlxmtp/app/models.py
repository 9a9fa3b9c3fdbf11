"""The models on this machine and on the hub, for any front end: lists, reports, downloads and removals."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxmtp.engine.media import IMAGE_TOKENS, SOUND_TOKENS
from mlxmtp.errors import DownloadError, LoadError, MlxmtpError, UsageError
from mlxmtp.files import is_path
from mlxmtp.hub import inventory
from mlxmtp.hub.inventory import Group, KnownModel, RemovalPlan
from mlxmtp.hub.registry import BUILT_IN, find_entry, split_revision
from mlxmtp.hub.store import Checkpoint, Store
from mlxmtp.machine.chip import Machine, this_machine
from mlxmtp.machine.memory import Largest
from mlxmtp.machine.pace import pace_here
from mlxmtp.machine.speed import Speed, predict
from mlxmtp.models.config import ModelConfig
from mlxmtp.models.safetensors import conversion_record
from mlxmtp.models.tensors import parameter_count
from mlxmtp.settings import Loaded

if TYPE_CHECKING:
    from mlxmtp.hub.client import OnWait
    from mlxmtp.hub.download import DownloadPlan, OnBytes

__all__ = ["BUILT_IN", "Catalog", "Checkpoint", "DownloadPlan", "Listing", "ModelReport", "NoDownload", "RemovalPlan"]

CONTEXTS = 4096, 32768, 131072  # tokens whose memory a report gives, as far as the model's context reaches


@dataclass(frozen=True, slots=True)
class Listing:
    """Models here and, if asked for, on the hub; a model may take `usable` bytes.

    `default`: the folder of the one that answers when none is named; None if that is none of this machine.
    """

    models: tuple[KnownModel, ...]
    total_bytes: int
    default: Path | None
    usable: int
    unfinished_downloads: tuple[tuple[str, int], ...]
    unfinished_conversions: tuple[tuple[str, int], ...]

    def is_default(self, model: KnownModel) -> bool:
        """Return whether a model answers when none is named, whatever names it has."""
        return model.modified is not None and model.config.folder.resolve() == self.default

    def to_json(self) -> dict[str, Any]:
        return {"models": [self._row(model) for model in self.models], "total_bytes": self.total_bytes}

    def _row(self, model: KnownModel) -> dict[str, Any]:
        installed, needed = model.modified is not None, model.needs().total
        return {
            "name": model.name,
            "repo": model.repo,
            "folder": str(model.config.folder) if installed else None,
            "parameters": model.parameters,
            "quantization": model.quantization,
            "bytes": model.size,
            "drafter": model.drafter,
            "modified": model.modified,
            "default": self.is_default(model),
            "installed": installed,
            "memory": needed,
            "fits": needed <= self.usable,
            "sees": model.sees,
        }


@dataclass(frozen=True, slots=True)
class FileReport:
    """A file of a model."""

    name: str
    bytes: int


@dataclass(frozen=True, slots=True)
class DrafterReport:
    """A drafter and its files."""

    name: str
    folder: str
    parameters: int
    quantization: str
    files: tuple[FileReport, ...]
    modules: tuple[Group, ...]


@dataclass(frozen=True, slots=True)
class MemoryReport:
    """Bytes of memory for a conversation of `context` tokens."""

    context: int
    target: int
    drafter: int
    cache: int
    activations: int
    total: int
    fits: bool

    @classmethod
    def of(cls, model: KnownModel, context: int, usable: int) -> MemoryReport:
        need = model.needs(context)
        fits = need.total <= usable
        return cls(context, need.target, need.drafter, need.cache, need.activations, need.total, fits)


@dataclass(frozen=True, slots=True)
class ModelReport:
    """A model as `show` prints it: `revision` is its commit, `pinned` if that one was pulled here."""

    name: str
    repo: str | None
    revision: str | None
    pinned: bool
    context: int
    folder: str
    parameters: int
    quantization: str
    files: tuple[FileReport, ...]
    modules: tuple[Group, ...]
    drafter: DrafterReport | None
    memory: tuple[MemoryReport, ...]
    picture_bytes: int | None  # of memory, beside that, once a picture is read; None for a model that sees none
    sound_bytes: int | None  # once a sound is
    prediction: Speed | None
    conversion: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class NoDownload:
    """The answer where a model needs no download, or can have none now: a sentence for the user."""

    reason: str


class Catalog:
    """The models that the settings' folders hold and that the hub has. `store` finds those that are here by name."""

    def __init__(self, loaded: Loaded) -> None:
        self.store = Store(loaded.places, loaded.aliases)
        self._model = loaded.settings.model
        self.broken_config = loaded.broken

    @property
    def machine(self) -> Machine:
        """This machine, with the memory limit that its device named if an earlier process asked it."""
        return this_machine().as_told(self.store.places.data)

    def default_name(self) -> str:
        """Return the name of the model that answers when none is named."""
        if self._model is not None:
            return self._model
        default = inventory.default(self.store, self.machine.usable)
        return BUILT_IN if default is None else default.name

    def default_folder(self) -> Path | None:
        """Return the folder of the model that answers when none is named; None if that is none of this machine."""
        try:
            return self.store.resolve(self.default_name()).folder.resolve()
        except MlxmtpError:
            return None

    def listing(self, *, every: bool = False) -> Listing:
        here = inventory.installed(self.store)
        return Listing(
            (*here, *(inventory.available(here) if every else [])),
            inventory.total_size(here),
            self.default_folder(),
            self.machine.usable,
            tuple(inventory.unfinished_downloads(self.store)),
            tuple(inventory.unfinished_conversions(self.store)),
        )

    def report(self, name: str) -> ModelReport:
        """Describe a model that is here. Raises ModelNotFound, LoadError."""
        from mlxmtp.engine.tokenizer import check_text_side

        checkpoint = self.store.resolve(name)
        model = inventory.describe(self.store, checkpoint)
        check_text_side(checkpoint.folder)
        commit = record = None
        if model.repo is not None:
            commit, record = checkpoint.folder.name, self.store.records.find(model.repo)
        paired, pace, usable = model.drafter_config, pace_here(self.store.places.data), self.machine.usable
        return ModelReport(
            name,
            model.repo,
            commit,
            record is not None and record.commit == commit,
            model.config.max_positions,
            *_described(model.config),
            None if model.drafter is None or paired is None else DrafterReport(model.drafter, *_described(paired)),
            tuple(MemoryReport.of(model, n, usable) for n in CONTEXTS if n <= model.config.max_positions),
            model.needs(media=Largest(picture=IMAGE_TOKENS)).vision if model.sees else None,
            model.needs(media=Largest(sound=SOUND_TOKENS)).audio if model.hears else None,
            None if pace is None else predict(model.config, paired, pace),
            conversion_record(checkpoint.folder),
        )

    def downloadable(self, name: str) -> bool:
        """True if a name can stand for something on the hub: an alias, or `org/repo`."""
        plain = self.store.unaliased(name)
        repo = split_revision(plain)[0]
        return find_entry(repo) is not None or (repo.count("/") == 1 and not is_path(repo))

    def plan_download(
        self,
        name: str,
        *,
        revision: str | None = None,
        draft: bool = True,
        to_convert: bool = False,
        on_wait: OnWait | None = None,
    ) -> DownloadPlan | NoDownload:
        """Plan a download. Raises UsageError for a folder or conversion, ModelNotFound, DownloadError, LoadError."""
        plain = self.store.unaliased(name)
        if plain == BUILT_IN:
            return NoDownload(f"{BUILT_IN} is built in: there is nothing to download.")
        if not self.downloadable(name):
            self.store.resolve(plain)  # says what is wrong with the name, unless it is a folder
            raise UsageError(f"{plain} is a folder on this machine: use it with -m {plain}.")
        if converted := self.store.conversion_named(plain):
            raise UsageError(
                f"{name} is the model that was converted here, in {converted}. Make it again with mlxmtp convert "
                f"{name} --force, or remove it with mlxmtp rm {name} and pull then."
            )
        from mlxmtp.hub import client
        from mlxmtp.hub.download import plan_download

        repo, named = split_revision(plain)
        if None not in (revision, named) and revision != named:
            raise UsageError(f"{name} names the revision {named}, and --revision {revision}: give one of them.")
        if client.offline():
            return self._offline(name, repo, revision or named)
        cache = self.store.places.hf_cache
        plan = plan_download(repo, cache, revision=revision or named, draft=draft, on_wait=on_wait)
        if to_convert:
            from mlxmtp.convert.tasks import refuse_quantized

            target = plan.parts[0]
            if target.config.is_drafter:
                raise LoadError(f"{target.repo} is a drafter. Give its target as SRC and this as --draft-model.")
            refuse_quantized(target.config, {}, target.repo)
        return plan

    def _offline(self, name: str, repo: str, revision: str | None) -> NoDownload:
        """Return the answer where the hub may not be asked. Raises DownloadError for a model that is not here."""
        entry, at = find_entry(repo), "" if revision is None else f"@{revision}"
        said = f"{repo}{at}" if at else name
        if self.store.cached(f"{repo if entry is None else entry.target.repo}{at}") is None:
            unset = "cannot be downloaded. Unset it and run the same command again."
            raise DownloadError(f"HF_HUB_OFFLINE is set, so {said} {unset}")
        return NoDownload(f"{said} is on this machine; HF_HUB_OFFLINE is set, so nothing was looked up or checked.")

    def download(self, plan: DownloadPlan, *, on_bytes: OnBytes, on_wait: OnWait | None = None) -> None:
        """Fetch what a plan lacks, and pin its commits. Raises DownloadError, LoadError; what has arrived stays."""
        from mlxmtp.engine.tokenizer import check_text_side
        from mlxmtp.hub.download import download

        download(plan, self.store.records, on_bytes=on_bytes, on_wait=on_wait, check_target=check_text_side)

    def cannot_answer(self, name: str) -> str | None:
        """Return why a model that is here cannot answer, in the sentence that asking it gives; None if it can.

        Downloads and conversions have read its tokenizer before, so that is not done again.
        """
        try:
            inventory.describe(self.store, self.store.resolve(name))
        except MlxmtpError as error:
            return str(error)
        return None

    def plan_removal(self, name: str) -> RemovalPlan:
        """Plan the removal of a model with its drafter. Raises ModelNotFound, UsageError for what is not ours."""
        return inventory.plan_removal(name, self.store)

    def remove(self, plan: RemovalPlan) -> None:
        """Carry out a removal."""
        inventory.remove(plan, self.store)


def _described(config: ModelConfig) -> tuple[str, int, str, tuple[FileReport, ...], tuple[Group, ...]]:
    """Return the fields that the reports of a model and of a drafter share."""
    files = sorted(item for item in config.folder.iterdir() if item.is_file())
    return (
        str(config.folder),
        parameter_count(config),
        inventory.quantization(config),
        tuple(FileReport(item.name, item.stat().st_size) for item in files),
        tuple(inventory.groups(config)),
    )
