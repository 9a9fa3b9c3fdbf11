"""One conversion: its source (`e2b`: Google's own weights, `e2b:qat`: those trained for 4 bits), plan and result."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxmtp.app.models import Catalog
from mlxmtp.convert.plan import MAKE_ROOM, ConversionPlan, check_free, plan_conversion
from mlxmtp.convert.recipe import Recipe, make_recipe
from mlxmtp.convert.run import ConversionResult, Watch, convert
from mlxmtp.errors import ConversionError, LoadError, MlxmtpError
from mlxmtp.files import disk_of, expand_home, free_bytes, is_folder
from mlxmtp.hub.registry import entries, find_entry, split_revision
from mlxmtp.hub.store import Checkpoint
from mlxmtp.units import format_bytes

if TYPE_CHECKING:
    from mlxmtp.hub.download import DownloadPlan

_BITS = {"4bit": 4, "8bit": 8, "bf16": 16, "qat": 4}


@dataclass(frozen=True, slots=True)
class Source:
    """Published weights: `repo` on the hub, None for a folder; alias `family`; `qat`: trained to be quantized."""

    origin: str
    repo: str | None
    family: str | None
    qat: bool
    recipe: Mapping[str, Any] = field(default_factory=dict)  # what the name says about it

    def result_name(self, recipe: Recipe) -> str:
        """Return the usual name of the result: `e2b-4bit`, `e2b-qat`, `my-model-mxfp4`."""
        if recipe.bits == 16:
            kind = {None: "bf16", "bfloat16": "bf16", "float16": "f16", "float32": "f32"}[recipe.dtype]
        elif recipe.mode != "affine":
            kind = recipe.mode
        else:
            kind = "qat" if self.qat and recipe.bits == 4 else f"{recipe.bits}bit"
        return f"{self.family or Path(self.origin).name.lower()}-{kind}"


def find_source(name: str, *, published: bool = False) -> Source:
    """Return the weights that a name stands for; `published`: no folder of that name.

    Raises LoadError for those known to be quantized already.
    """
    entry = find_entry(name)
    if entry is not None and entry.name == name.lower():
        bits = {"bits": _BITS[entry.variant]}
        return Source(name, entry.source_repo, entry.family, entry.variant == "qat", bits)
    if entry is not None and entry.variant != "bf16":
        raise LoadError(
            f"{name} is already quantized and cannot be converted again. For Google's own weights: "
            f"mlxmtp convert {entry.name}"
        )
    official = next((known for known in entries() if known.source_repo.lower() == name.lower()), None)
    if official is not None:
        return Source(name, official.source_repo, official.family, official.variant == "qat")
    folder = expand_home(name).resolve()
    if name and is_folder(folder) and not published:
        return Source(folder.name, None, None, "-qat-" in folder.name.lower())
    return Source(name, name if name.count("/") == 1 else None, None, "-qat-" in name.lower())


@dataclass(frozen=True, slots=True)
class ConversionRequest:
    """A conversion to be made: `source` is an alias, `org/repo` or a folder, `recipe` fields of `Recipe` by name."""

    source: str
    dest: str | None = None
    draft_model: str | None = None
    draft: bool = True
    recipe: Mapping[str, Any] = field(default_factory=dict)
    force: bool = False
    revision: str | None = None  # of the source
    update: bool = False  # and check weights that are here, as `pull` does


class Conversion:
    """Raises UsageError for a recipe or destination that will not do, LoadError for weights known to be quantized."""

    def __init__(self, catalog: Catalog, request: ConversionRequest) -> None:
        self._store, self._request = catalog.store, request
        name = self._store.unaliased(request.source)
        published = self._store.pulled(name) is not None or (request.update and catalog.downloadable(name))
        self._source = find_source(name, published=published)
        asked = {name: value for name, value in request.recipe.items() if value is not None}
        # A mode that was asked for decides about the bits itself.
        named = self._source.recipe if asked.get("mode", "affine") == "affine" else {}
        self._recipe = make_recipe({**named, **asked}, qat=self._source.qat)
        usual = self._store.models / self._source.result_name(self._recipe)
        dest = usual if request.dest is None else expand_home(request.dest)
        self._dest = dest.resolve() if dest.name in ("", "..") else dest  # it is written beside, under another name
        how = {"advice": f"Make it again with: mlxmtp convert {request.source} --force"} if request.update else {}
        check_free(self._dest, force=request.force, **how)

    @property
    def repo(self) -> str | None:
        return self._source.repo

    @property
    def wants_drafter(self) -> bool:
        """True if the drafter paired with the source is converted, too."""
        return self._request.draft and self._request.draft_model is None

    @property
    def to_download(self) -> str | None:
        """The repository to fetch first, because it or its drafter is not here, or to bring it up to date."""
        return self.repo if self._request.update or self._lacks() else None

    def _lacks(self) -> bool:
        """True if the source is not here, or a drafter is wanted that is not here and was not looked for in vain."""
        if self.repo is None or (source := self._cached()) is None:
            return True
        if not self.wants_drafter or self._store.drafter_for(source, None) is not None:
            return False
        record = self._store.records.find(split_revision(self.repo)[0])
        return record is None or not record.no_drafter

    def room(self, download: DownloadPlan) -> str:
        """Return a line about the disk for the result of what is about to be downloaded.

        Raises DownloadError or ConversionError if the disk is too small for both.
        """
        download.check_space()
        size, free, beside = self._estimate(download), free_bytes(self._dest), self._dest.parent
        both = size + download.missing if disk_of(beside) == disk_of(download.cache) else size
        if download.missing and both > free:  # else all is here: the plan, which knows what has been written, checks it
            raise ConversionError(
                f"With its conversion {download.name} needs {format_bytes(both)} more on disk; {format_bytes(free)} "
                f"are free at {beside}. {MAKE_ROOM}"
            )
        return f"about {format_bytes(size)} to write then, {format_bytes(free)} free at {beside}"

    def _estimate(self, download: DownloadPlan) -> int:
        """Return the bytes that the result will have; towers stay as they are stored."""
        total = 0
        for part in download.parts:
            total += self._recipe.for_drafter(part.config).size(part.config)
            if not (part.config.is_drafter or self._recipe.text_only):
                stored = sum(file.size for file in part.weights)
                total += max(0, stored - Recipe(bits=16).size(part.config))
        return total

    def plan(self) -> ConversionPlan:
        """Plan it. Raises ModelNotFound, and LoadError for weights that are no Gemma 4, quantized or damaged."""
        request, store = self._request, self._store
        source = self._cached() or store.resolve(self.repo or request.source)
        drafter = store.drafter_for(source, request.draft_model if request.draft else False)
        beside, origin = None if drafter is None else drafter.folder, self.repo or self._source.origin
        named = request.draft_model is not None
        plan = plan_conversion(source.folder, beside, self._dest, self._recipe, origin=origin, drafter_named=named)
        notes = [*plan.notes]
        if len(plan.parts) == 1 and request.draft and not notes:
            notes.append("No drafter was found, so the result will decode without one. --draft-model names it.")
        family = self._source.family
        if family is not None and not self._source.qat and self._recipe.bits == 4:
            notes.append(f"{family}:qat are weights that were trained to be quantized to 4 bits; they lose less.")
        return replace(plan, notes=tuple(notes))

    def carry_out(self, plan: ConversionPlan, *, compare: bool = True, watch: Watch | None = None) -> ConversionResult:
        """Write the result and compare it with its source. Raises UsageError, ConversionError (disk), LoadError."""
        plan.check(force=self._request.force)
        if compare:
            _check_buffers(plan)
        from mlxmtp.convert.compare import compare_on_text

        return convert(plan, compare=compare_on_text if compare else None, watch=watch)

    def result_name(self) -> str:
        for name in (self._request.source, self._dest.name):
            with suppress(MlxmtpError):
                if self._store.resolve(name).folder == self._dest:
                    return name
        return str(self._dest)

    def _cached(self) -> Checkpoint | None:
        if self.repo is None:
            return None
        revision = self._request.revision
        folder = self._store.cached(self.repo if revision is None else f"{split_revision(self.repo)[0]}@{revision}")
        return None if folder is None else Checkpoint(self.repo, folder, find_entry(self.repo))


def _check_buffers(plan: ConversionPlan) -> None:
    """Raise LoadError if this GPU cannot load the result, which the comparison would find when it is written."""
    from mlxmtp.models import device

    limit = device.largest_buffer()
    largest = max(layout.nbytes for part in plan.parts for task in part.tasks for layout in task.parts)
    if limit is not None and largest > limit:
        what = f"has {format_bytes(largest)} in one piece, and this GPU takes {format_bytes(limit)}"
        raise LoadError(f"The result {what}: choose fewer --q-bits, or --no-compare to use it elsewhere.")
