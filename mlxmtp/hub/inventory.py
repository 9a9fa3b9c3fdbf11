"""The models on this machine, with their sizes and what their files hold, and taking one off the disk."""

import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from mlxmtp.errors import LoadError, MlxmtpError, ModelNotFound, UsageError
from mlxmtp.files import expand_home, is_folder
from mlxmtp.hub.cache import INCOMPLETE, PARTIAL, CachedRepo, folder_size, is_complete
from mlxmtp.hub.registry import BUILT_IN, Entry, entries, find_entry, split_revision
from mlxmtp.hub.store import CONTEXT, Checkpoint, Store
from mlxmtp.machine.memory import NO_MEDIA, Largest, Need, need
from mlxmtp.models.chat_template import check_text, read_from
from mlxmtp.models.checkpoint import check_target, match
from mlxmtp.models.config import ModelConfig, read_config
from mlxmtp.models.safetensors import conversion_record, read_folder
from mlxmtp.models.tensors import Names, Quantization, parameter_count
from mlxmtp.models.towers import AUDIO, VISION, stored_audio, stored_vision, vision_config

_WIDTHS = {"BF16": "bf16", "F16": "f16", "F32": "f32", "I64": "int64", "I32": "int32"}


@dataclass(frozen=True, slots=True)
class Group:
    """All tensors of one kind and storage: `storage` is `bf16` or `4 bit, groups of 64`."""

    kind: str
    storage: str
    parameters: int
    bytes: int


def groups(config: ModelConfig) -> list[Group]:
    """Return kinds and storage of a folder's weights, largest first. Raises LoadError for what cannot be used."""
    layouts = {name: one.layout for name, one in read_folder(config.folder).items()}
    names = Names(config)
    found: dict[tuple[str, str], Group] = {}
    loaded = {name: source for source in match(config, layouts, config.folder).values() for name in source.names}
    for name, layout in layouts.items():
        source = loaded.get(name)
        kind: str = names.kind(source.names[0] if source else name)
        if kind.endswith("tower"):
            use = "for images" if kind == VISION else "for audio"
            kind += f" ({use if _reads(config, kind) else 'not loaded'})"
        storage, parameters = _WIDTHS.get(layout.dtype, layout.dtype.lower()), prod(layout.shape)
        if source and (how := source.quantization):
            storage = f"{how.title}, groups of {how.group_size}" if how.mode == "affine" else how.title
            parameters = parameters * 32 // how.bits if name == source.names[0] else 0
        so_far = found.get((kind, storage), Group(kind, storage, 0, 0))
        found[kind, storage] = Group(kind, storage, so_far.parameters + parameters, so_far.bytes + layout.nbytes)
    return sorted(found.values(), key=lambda group: -group.bytes)


def _reads(config: ModelConfig, kind: str) -> bool:
    """Return True if the tensors stored here make soft tokens of pictures (VISION), or of sounds (AUDIO)."""
    try:
        return (stored_vision(config) if kind == VISION else stored_audio(config)) is not None
    except LoadError:  # a damaged configuration of the tower: the text side may be fine
        return False


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A model that is installed, or could be: then `modified` is None and config has no folder."""

    name: str
    repo: str | None
    config: ModelConfig
    drafter: str | None  # the paired one's name
    drafter_config: ModelConfig | None
    target_size: int | None  # bytes on disk, or of the download; None: unknown
    drafter_size: int | None
    modified: float | None  # seconds since 1970

    @property
    def size(self) -> int | None:
        """Bytes of target and drafter, as far as they are known."""
        return self.target_size and self.target_size + (self.drafter_size or 0)

    @property
    def parameters(self) -> int:
        return parameter_count(self.config)

    @property
    def quantization(self) -> str:
        return quantization(self.config)

    @property
    def drafter_quantization(self) -> str | None:
        return None if self.drafter_config is None else quantization(self.drafter_config)

    @property
    def sees(self) -> bool:
        """True if its checkpoint reads pictures; of one that is not here, if its configuration says so."""
        if self.modified is not None:
            return _reads(self.config, VISION)
        with suppress(LoadError):
            return vision_config(self.config) is not None
        return False

    @property
    def hears(self) -> bool:
        """True if its checkpoint, which is here, reads sounds."""
        return self.modified is not None and _reads(self.config, AUDIO)

    def needs(self, context: int = CONTEXT, *, media: Largest = NO_MEDIA) -> Need:
        return need(self.config, self.drafter_config, context, media=media)


def installed(store: Store) -> list[KnownModel]:
    """Return every model here that can answer, the built-in one first; what cannot be read is left out."""
    models: list[KnownModel] = []
    for checkpoint in _targets(store):
        with suppress(MlxmtpError):  # not a Gemma 4, or damaged: asking for it by name says so
            models.append(describe(store, checkpoint))
    return models


def unusable(store: Store) -> Iterator[tuple[str, str]]:
    """Yield names of Gemma 4 models here that cannot answer, each with the sentence that asking it gives."""
    for checkpoint in _targets(store):
        with suppress(MlxmtpError):  # not a Gemma 4
            if not read_config(checkpoint.folder).is_drafter:
                try:
                    describe(store, checkpoint)
                except LoadError as error:
                    yield checkpoint.name, str(error)


def default(store: Store, usable: int) -> Checkpoint | None:
    """Return the model to take when none was named: the largest that fits `usable` bytes, else the smallest.

    Those with short names come before others. The source of a conversion that is here does not count.
    """
    records = (conversion_record(folder) for folder in _conversions(store) if is_complete(folder))
    sources = {split_revision(str(record["target"]["source"]))[0].lower() for record in records if record is not None}
    here = [
        one
        for one in _targets(store)
        if one.name != BUILT_IN
        and (one.entry.target.repo if one.entry else split_revision(one.name)[0]).lower() not in sources
    ]
    short = {entry.name for entry in entries()}
    chosen = [one for one in here if one.name in short] or [one for one in here if _answers(store, one)]
    sized = sorted(((_memory(store, one), one) for one in chosen), key=lambda pair: pair[0])
    fitting = [one for size, one in sized if size <= usable]
    return next(iter(fitting[-1:] or [one for _, one in sized]), None)


def _memory(store: Store, checkpoint: Checkpoint) -> int:
    """Return the bytes of memory that a model takes with its drafter; 0 for a damaged one, which says so when asked."""
    drafter = store.drafter_for(checkpoint, None)
    try:
        drafting = None if drafter is None else read_config(drafter.folder)
        return need(read_config(checkpoint.folder), drafting, CONTEXT).total
    except LoadError:
        return 0


def _answers(store: Store, checkpoint: Checkpoint) -> bool:
    try:
        describe(store, checkpoint)
    except MlxmtpError:
        return False
    return True


def describe(store: Store, checkpoint: Checkpoint) -> KnownModel:
    """Return a model from its folder. Raises LoadError if that holds none that can answer."""
    config = read_config(checkpoint.folder)
    check_target(config, checkpoint.name)
    files = [item for item in checkpoint.folder.iterdir() if item.is_file()]
    check_text([item.name for item in files], read_from(checkpoint.folder), checkpoint.folder)
    cached = CachedRepo.of_snapshot(checkpoint.folder)
    repo = None if cached is None else cached.repo
    drafter = store.drafter_for(checkpoint, None)
    modified = max(item.stat().st_mtime for item in files)
    size = _files_size(checkpoint.folder)
    if drafter is None:
        return KnownModel(checkpoint.name, repo, config, None, None, size, 0, modified)
    paired = read_config(drafter.folder)
    return KnownModel(checkpoint.name, repo, config, drafter.name, paired, size, _files_size(drafter.folder), modified)


def available(models: list[KnownModel]) -> list[KnownModel]:
    """Return the models with short names that are not here, in the variants that are not just another name."""
    here = {model.repo for model in models}
    converted = {(one.family, one.variant) for model in models if (one := find_entry(model.name)) is not None}
    others: dict[str, Entry] = {}
    for entry in entries():
        if entry.target.repo not in here and (entry.family, entry.variant) not in converted:
            others.setdefault(entry.target.repo, entry)
    found = []
    for repo, one in others.items():
        pair, sizes = (one.drafter.repo, one.drafter_config()), (one.target.size, one.drafter.size)
        found.append(KnownModel(one.name, repo, one.target_config(), *pair, *sizes, None))
    return found


def unfinished_downloads(store: Store) -> list[tuple[str, int]]:
    """Return the repositories of which only a part has arrived, with its bytes."""
    return [
        (cached.repo, folder_size(cached.folder))
        for cached in _cached_repos(store)
        if any(cached.folder.glob(f"blobs/*{INCOMPLETE}")) and store.cached(cached.repo) is None
    ]


def unfinished_conversions(store: Store) -> list[tuple[str, int]]:
    """Return the names of conversions that were interrupted, with the bytes they have so far."""
    return [
        (folder.name, sum(item.stat().st_blocks * 512 for item in folder.rglob("*.safetensors")))
        for folder in _conversions(store)
        if folder.name.endswith(PARTIAL) and (folder / "model").is_dir()
    ]


def total_size(models: list[KnownModel]) -> int:
    """Return the bytes of all of them; a drafter that several use counts once."""
    drafters = {model.drafter_config.folder: model.drafter_size or 0 for model in models if model.drafter_config}
    return sum(model.target_size or 0 for model in models) + sum(drafters.values())


def quantization(config: ModelConfig) -> str:
    """Return `4bit`, `mxfp4`, or the dtype of weights that are not quantized."""
    if (block := config.quantization) is not None:
        return Quantization.read(block).title.replace(" ", "")
    dtype = config.raw.get("dtype") or config.raw.get("torch_dtype") or config.text.get("dtype") or "bfloat16"
    return {"bfloat16": "bf16", "float16": "f16", "float32": "f32"}.get(str(dtype), str(dtype))


def _targets(store: Store) -> Iterator[Checkpoint]:
    """Yield every target: the built-in one, complete snapshots of the cache, conversions."""
    with suppress(LoadError):  # an installation without it: `doctor` says so
        yield store.resolve(BUILT_IN)
    for cached in _cached_repos(store):
        if folder := store.cached(cached.repo):
            entry = find_entry(cached.repo)
            named = entry is not None and store.converted(entry) is None
            yield Checkpoint(entry.name if entry and named else cached.repo, folder, entry)
    names: dict[Path | None, str] = {}
    for entry in entries():
        names.setdefault(store.converted(entry), entry.name)
    for folder in _conversions(store):
        if is_complete(folder):
            yield Checkpoint(names.get(folder, folder.name), folder)


def _files_size(folder: Path) -> int:
    return sum(item.stat().st_size for item in folder.iterdir() if item.is_file())


def _conversions(store: Store) -> list[Path]:
    folder = store.models
    return [item for item in sorted(folder.iterdir()) if not item.name.startswith(".")] if folder.is_dir() else []


def _cached_repos(store: Store) -> list[CachedRepo]:
    return [CachedRepo(item) for item in sorted(store.places.hf_cache.glob("models--*--*")) if item.is_dir()]


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
        return sum(item.size for item in self.folders)


def plan_removal(name: str, store: Store) -> RemovalPlan:
    """Plan the removal of a model with its drafter, half-finished or whole. Raises ModelNotFound, UsageError."""
    plain = store.unaliased(name)
    if not plain.strip():  # the folder of all models
        raise UsageError("Name the model to remove. See: mlxmtp ls")
    if plain == BUILT_IN:
        raise UsageError(f"{BUILT_IN} is part of the program and goes with it.")
    own, entry = store.models / plain, find_entry(plain)
    if entry is None and "/" not in plain and not plain.startswith(".") and is_folder(own):
        return RemovalPlan((RemovedFolder(plain, own, folder_size(own)),))
    if entry is None and is_folder(expand_home(plain)) and store.pulled(plain) is None:
        raise UsageError(f"{plain} is a folder of yours: remove it with rm -r.")
    if converted := store.conversion_named(plain):
        return RemovalPlan((RemovedFolder(converted.name, converted, folder_size(converted)),))
    repo = _own_name(store, split_revision(plain)[0] if entry is None else entry.target.repo)
    paired = _paired(store, repo, entry)
    used = {_own_name(store, other.drafter) for other in installed(store) if other.drafter and other.repo != repo}
    repos = {one: CachedRepo.of(store.places.hf_cache, one) for one in (repo, paired) if one and "/" in one}
    here = {one: cached for one, cached in repos.items() if is_folder(cached.folder)}
    shared = tuple(one for one in here if one == paired and one != repo and one in used)
    if not here.keys() - set(shared):
        raise ModelNotFound(f"Model '{name}' is not on this machine, so there is nothing to remove. See: mlxmtp ls")
    found = []
    for cached in (cached for one, cached in here.items() if one not in shared):
        size = folder_size(cached.folder)
        if strategy := _shared_blobs(cached):
            blobs = (cached.folder / "blobs").iterdir()
            size += max(
                0, strategy.expected_freed_size - sum(one.stat().st_size for one in blobs if not one.is_symlink())
            )
        found.append(RemovedFolder(cached.repo, cached.folder, size, tuple(cached.commits()) or ("",)))
    return RemovalPlan(tuple(found), shared)


def _own_name(store: Store, repo: str) -> str:
    """Return a repository's name in the cache: it may have been asked for by an older one, and in another case."""
    record = store.records.find(repo)
    return CachedRepo.of(store.places.hf_cache, repo if record is None else record.repo).repo


def _paired(store: Store, repo: str, entry: Entry | None) -> str | None:
    """Return the repository of the drafter that `ls` and `ask` pair with one, or that would have come with it."""
    folder, record = store.cached(repo), store.records.find(repo)
    drafter = None if folder is None else store.drafter_for(Checkpoint(repo, folder, entry), None)
    found = None if drafter is None else CachedRepo.of_snapshot(drafter.folder)
    if found is not None:
        return found.repo
    pulled = None if record is None else record.drafter
    wanted = pulled or (None if entry is None else entry.drafter.repo)
    return None if wanted is None else _own_name(store, wanted)


def remove(plan: RemovalPlan, store: Store) -> None:
    """Delete the folders, also where they are links to another disk.

    What is left after an interruption is no model any more, and can be removed again.
    """
    for item in plan.folders:
        if item.commits:
            store.records.forget(item.name)
            if strategy := _shared_blobs(CachedRepo(item.folder)):
                strategy.execute()
                item.folder.mkdir(exist_ok=True)
        folder = item.folder.resolve()
        for part in ("refs", "snapshots"):  # first what makes it a model
            shutil.rmtree(folder / part, ignore_errors=True)
        shutil.rmtree(folder)
        if item.folder.is_symlink():
            item.folder.unlink()
        shutil.rmtree(store.places.hf_cache / ".locks" / item.folder.name, ignore_errors=True)


def _shared_blobs(cached: CachedRepo) -> Any:
    """Return the client's deletion (DeleteCacheStrategy) of contents that it shares between repositories, else None."""
    blobs, commits = cached.folder / "blobs", cached.commits()
    if not commits or not blobs.is_dir() or not any(item.is_symlink() for item in blobs.iterdir()):
        return None
    from huggingface_hub import scan_cache_dir

    return scan_cache_dir(cached.folder.parent).delete_revisions(*commits)
