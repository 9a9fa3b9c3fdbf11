"""Choose a model by name and open it: target and drafter, memory, weights, learned drafting state."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from mlxmtp.app.endpoints import others_of
from mlxmtp.app.structured import constraint_of
from mlxmtp.engine.media import Media
from mlxmtp.engine.model import Model, context_of
from mlxmtp.engine.params import Params
from mlxmtp.engine.tokenizer import Message, Tokenizer
from mlxmtp.engine.written import Written
from mlxmtp.errors import LoadError, ModelNotFound, TooLarge, UsageError
from mlxmtp.files import expand_home, is_folder, write_atomically
from mlxmtp.hub import inventory
from mlxmtp.hub.registry import BUILT_IN, entries
from mlxmtp.hub.store import Checkpoint, Store, best_fit
from mlxmtp.limits import EXACT_DRAFT, Exact
from mlxmtp.machine.chip import Machine, this_machine
from mlxmtp.machine.memory import NO_MEDIA, Largest, held_bytes, most_tokens, need
from mlxmtp.machine.pace import Measured, measured, pace_of
from mlxmtp.models.checkpoint import check_folder, check_target
from mlxmtp.models.config import FULL, read_config
from mlxmtp.settings import Loaded, Settings, load_settings
from mlxmtp.units import format_bytes, nearest
from mlxmtp.version import installed_version

__all__ = [
    "ANSWER", "Asked", "Checkpoint", "LearnedDrafting", "OpenModel", "Opener",
    "answer_params", "exact_here", "exact_of", "load", "read_tokenizer", "require_memory",
]  # fmt: skip

ANSWER = 1024  # tokens of an answer without a limit of its own that must fit the memory


class TextStore(Protocol):
    """Texts on disk for a model to go on with (see `app/prompt_cache.py`)."""

    def extend(self, model: Model, ids: Sequence[int]) -> None:
        """Load what is stored of `ids`, if it saves reading."""

    def keep(self, model: Model) -> None:
        """Store what the model holds."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A turn before it begins, as a router sees it.

    `material`: there are files in the prompt. `before`: the model of the answer before, empty if there is none.
    `goes_on`: more of that answer is wanted. `wanted`: "small" or "big" answers whatever skills say.
    """

    messages: Sequence[Message]
    params: Params
    question: str = ""
    tools: bool = False
    material: bool = False
    before: str = ""
    goes_on: bool = False
    wanted: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class OpenModel:
    """A target and its drafter in memory."""

    model: Model
    target: Checkpoint
    drafter: Checkpoint | None
    learned: LearnedDrafting
    cache: TextStore | None = field(default=None, kw_only=True)  # keeps its texts when it is closed
    written: Written = field(default_factory=Written, kw_only=True)  # answers with calls

    @property
    def context(self) -> int:
        return self.model.config.max_positions

    def prepare(self) -> None:
        """Do now what the first answer would have to wait for, where that was left for later."""

    def begin_turn(self, asked: Asked) -> str:
        """Hear of a turn, all of whose answers follow; return what will be done first, in a word or two, if anything.

        Raises MlxmtpError if nobody can answer.
        """
        del asked
        return ""

    def save_learned(self) -> None:
        """Write what drafting has learned."""
        self.learned.save(self.model)

    def close(self) -> None:
        if self.cache is not None:
            self.cache.keep(self.model)
        self.model.close()


@dataclass
class Opener:
    """Chooses among the models here and opens them; remarks go to `tell`, which a person reads if `attended`.

    `here`: the model is one of this machine, so that it can be asked by token ids.
    """

    here: ClassVar[bool] = True
    loaded: Loaded
    tell: Callable[[str], None]
    obtain: Callable[[str, ModelNotFound], None] | None = None  # get a missing model, or raise the error given
    attended: bool = False
    agree: Callable[[str], bool] | None = None  # ask a person, if there is one, who may say no
    calls: bool = False  # tools will be called

    def __post_init__(self) -> None:
        self._store = Store(self.loaded.places, self.loaded.aliases)

    def target(self, name: str | None) -> Checkpoint:
        """Return that model, by default an installed one or the built-in one. Raises ModelNotFound, LoadError."""
        if name is None:
            if (installed := inventory.default(self._store, self.machine.usable)) is None:
                self._tell_built_in()
            return installed or self._store.resolve(BUILT_IN)
        try:
            found = self._store.resolve(name)
        except ModelNotFound as missing:
            known = name.partition(":")[0] in {entry.name for entry in entries()}
            near = None if known else nearest(name, others_of(self.loaded))
            if near is not None:
                raise ModelNotFound(f"Model '{name}' is not known: did you mean '{near}'?") from None
            if self.obtain is None:
                raise
            self.obtain(name, missing)
            return self._store.resolve(name)
        plain = self._store.unaliased(name)
        if is_folder(expand_home(plain)) and found.folder == self._store.pulled(plain):
            self.tell(f"{plain} is the repository that was pulled; ./{plain} names the folder.")
        return found

    def drafter(self, target: Checkpoint, settings: Settings, *, off: bool = False) -> Checkpoint | None:
        """Return the drafter that the settings mean for a target; `off` is none. Raises ModelNotFound."""
        wanted: str | Literal[False] | None = False if off or settings.draft is False else settings.draft_model
        drafter = self._store.drafter_for(target, wanted)
        if drafter is None and wanted is None:
            if settings.draft:
                raise ModelNotFound(f"There is no drafter for '{target.name}' here: name one with --draft-model.")
            if self.attended or settings.num_draft_tokens not in (None, "auto", 0):
                self.tell(f"There is no drafter for '{target.name}' here, so it decodes without one.")
        return drafter

    def _tell_built_in(self) -> None:
        """Tell who answers, and the command that gets a model for this machine."""
        note = "No model is installed, so the built-in pocket answers: a demonstration, small and often wrong."
        best = best_fit(self.machine.usable)
        if best is not None and best.target.size is not None:
            note += f" {best.title} ({format_bytes(best.target.size)}) fits this machine. Run: mlxmtp pull {best.name}"
        self.tell(note)

    def about(self, target: Checkpoint, drafter: Checkpoint | None) -> str:
        """Return who answers, in a line."""
        with_ = "without a drafter" if drafter is None else f"with the drafter {drafter.name}"
        return f"{target.name}, {with_}, in {target.folder}"

    def tokenizer(self, target: Checkpoint) -> Tokenizer:
        """Return the text side of a model. Raises LoadError."""
        return read_tokenizer(target)

    def media(self, target: Checkpoint) -> Media:
        """Return what a model can see and hear. Raises LoadError."""
        return Media(read_config(target.folder))

    def context(self, target: Checkpoint) -> int:
        """Return the longest context of a model in tokens. Raises LoadError."""
        return context_of(target.folder)

    def require_memory(
        self,
        target: Checkpoint,
        drafter: Checkpoint | None,
        tokens: int,
        settings: Settings,
        *,
        turns: bool,
        media: Largest = NO_MEDIA,
    ) -> None:
        """Raise TooLarge if the memory does not hold it all."""
        bits: dict[str, Any] = {"draft_bits": settings.draft_bits, "kv_bits": settings.kv_bits}
        how: dict[str, Any] = {"force": bool(settings.force), "turns": turns, "media": media, "machine": self.machine}
        require_memory(target, drafter, tokens, **bits, **how)

    def longest_conversation(
        self,
        target: Checkpoint,
        drafter: Checkpoint | None,
        settings: Settings,
        least: int,
        *,
        holds_texts: bool = False,
    ) -> int:
        """Return how many tokens of a conversation the memory holds beside the weights, and beside held texts.

        At most the context, and at least `least`, for which `require_memory` was asked.
        """
        if settings.force or not self.here:
            return self.context(target)
        configs = read_config(target.folder), None if drafter is None else read_config(drafter.folder)
        machine, kv_bits = self.machine, settings.kv_bits
        left = machine.usable - (held_bytes(machine.memory) if holds_texts else 0)
        return most_tokens(*configs, left, least, draft_bits=settings.draft_bits, kv_bits=kv_bits)

    @property
    def machine(self) -> Machine:
        """This machine, with the memory limit that its device named if an earlier process asked it."""
        return this_machine().as_told(self.loaded.places.data)

    def has_drafter(self, target: Checkpoint) -> bool:
        return self._store.drafter_for(target, None) is not None

    def has(self, name: str) -> bool:
        try:
            self._store.resolve(name)
        except (ModelNotFound, LoadError):  # an alias may name anything
            return False
        return True

    def names(self) -> list[str]:
        here = [entry.name for entry in entries() if self._store.cached(entry.target.repo) is not None]
        return [BUILT_IN, *here, *self.loaded.aliases, *others_of(self.loaded)]

    def open(
        self, target: Checkpoint, drafter: Checkpoint | None, settings: Settings, tokenizer: Tokenizer | None = None
    ) -> OpenModel:
        """Read the weights, and the tokenizer unless it is given; prepare for what is asked. Raises LoadError."""
        if settings.debug:
            for folder in [one.folder for one in (target, drafter) if one is not None]:
                for note in check_folder(read_config(folder)):
                    self.tell(note)
        bits, data = settings.draft_bits, self.loaded.places.data
        how = {"draft_bits": bits, "kv_bits": settings.kv_bits, "exact": exact_of(settings)}
        how["constrained"] = settings.in_form or self.calls
        model = _read_weights(target, drafter, tokenizer or read_tokenizer(target), data, **how)
        learned = LearnedDrafting.of_pair(model, None if drafter is None else drafter.folder, data, bits)
        learned.start(model)
        return OpenModel(model, target, drafter, learned)


def load(
    target: str | Path,
    drafter: str | Path | Literal[False] | None = None,
    *,
    draft_bits: int | None = None,
    kv_bits: int | None = None,
    exact: Exact = "auto",
) -> Model:
    """Load a target and its drafter: an alias (`pocket`, `e2b`, `12b:8bit`), `org/repo`, or the path of a folder.

    `drafter=None` takes the paired one: for a name the drafter published for it, for a folder the one in or next to it
    (`drafter`, or the folder's own name with `-assistant`), if there is one; `drafter=False` never loads one.
    `draft_bits` quantizes the drafter while it is read (None: by its size), `kv_bits` (4 or 8) keys and values of
    full-attention layers. `exact` "on": texts are the same bit for bit with any drafts and with none; "auto": on a GPU
    where that costs nothing; "off". A folder without tokenizer.json is fine for `Model.rounds`, not for `Model.stream`.
    Raises ModelNotFound when a name is not on this machine, LoadError when files cannot be used together or exact
    texts cannot be had here.
    """
    loaded = load_settings({})
    store = Store(loaded.places, loaded.aliases)
    found = store.resolve(str(target))
    paired = store.drafter_for(found, None if drafter is None else drafter if drafter is False else str(drafter))
    how: dict[str, Any] = {"draft_bits": draft_bits, "kv_bits": kv_bits, "exact": exact}
    return _read_weights(found, paired, None, loaded.places.data, **how)


def exact_of(settings: Settings, drafts: Sequence[int | Literal["auto"]] = ()) -> Exact:
    """Return how exact texts have to be, with these draft lengths or those of the settings.

    Raises UsageError if more drafts are asked for than exact texts can have. Left to us, what is asked for comes first.
    """
    lengths = drafts or (settings.num_draft_tokens,)
    longest = max((one for one in lengths if isinstance(one, int)), default=0)
    copies = "copy" in (settings.draft_from or "")
    if longest <= EXACT_DRAFT and not copies:
        return settings.exact or "auto"
    if settings.exact == "on":
        what = "no copied drafts" if copies else f"at most {EXACT_DRAFT} drafts a round, not {longest}"
        raise UsageError(f"Exact text takes {what}: leave one of the two options out.")
    return "off"


def exact_here(exact: Exact, known: Measured | None) -> Exact:
    """Return how exact texts will be on this machine: "auto" is "off" unless `doctor --check` found them exact.

    To look for it takes some twenty passes, before the first token.
    """
    return "off" if exact == "auto" and not (known is not None and known.exact) else exact


def answer_params(settings: Settings) -> Params:
    """Return the choices for one answer that the settings make. Raises UsageError for a constraint that will not do."""
    return Params(**settings.of_answer(), constraint=constraint_of(settings))


def read_tokenizer(found: Checkpoint) -> Tokenizer:
    """Return the text side of a model. Raises LoadError, which names what is wrong with the weights first."""
    try:
        return Tokenizer.load(found.folder)
    except LoadError:
        check_target(read_config(found.folder), found.name)
        raise


def require_memory(
    found: Checkpoint,
    drafter: Checkpoint | None,
    tokens: int,
    *,
    force: bool = False,
    turns: bool = False,
    draft_bits: int | None = None,
    kv_bits: int | None = None,
    media: Largest = NO_MEDIA,
    machine: Machine | None = None,
) -> None:
    """Raise TooLarge if `tokens` tokens cannot run on `machine` (None: this one), in one turn or `turns`.

    Raises LoadError for impossible `kv_bits`.
    """
    if force:
        return
    config = read_config(found.folder)
    drafting = None if drafter is None else read_config(drafter.folder)
    how: dict[str, Any] = {"turns": turns, "draft_bits": draft_bits}
    needed = need(config, drafting, tokens, kv_bits=kv_bits, media=media, **how)
    machine = machine or this_machine()
    if needed.total <= machine.usable:
        return
    weights = needed.target + needed.drafter
    if (plain := need(config, drafting, tokens, kv_bits=kv_bits, **how).total) <= machine.usable:
        what = "images and audio" if needed.vision and needed.audio else "images" if needed.vision else "audio"
        advice = f"Without {what} it fits; {format_bytes(needed.total - plain)} are for reading them: "
        advice += "ask with fewer --image-tokens" if needed.vision else "take a smaller model with -m"
    elif weights < 0.9 * machine.usable:
        advice = f"It is the {tokens} tokens that are too many: shorten the prompt or --max-tokens"
        if kv_bits is None and config.head_dim(FULL) % 32 == 0:
            quantized = {
                bits: need(config, drafting, tokens, kv_bits=bits, media=media, **how).total for bits in (8, 4)
            }
            fitting = next((bits for bits, total in quantized.items() if total <= machine.usable), None)
            advice += "" if fitting is None else f", take --kv-bits {fitting}"
    else:
        best = best_fit(machine.usable, tokens)
        advice = f"{BUILT_IN if best is None else best.name} fits: take it with -m"
    raise TooLarge(
        f"Model '{found.name}' needs {format_bytes(needed.total)} of memory; of the "
        f"{format_bytes(machine.memory)} here {format_bytes(machine.usable)} can be used. "
        f"{advice}, or try anyway with --force."
    )


def _read_weights(
    target: Checkpoint, drafter: Checkpoint | None, text: Tokenizer | None, data: Path, **how: Any
) -> Model:
    """Load a model; what `doctor --check` found out about this machine, it begins with."""
    folder, name = (None, None) if drafter is None else (drafter.folder, drafter.name)
    known = measured(data)
    how["exact"] = exact_here(how["exact"], known)
    model = Model.load(target.folder, folder, name=target.name, drafter_name=name, tokenizer=text, **how)
    from mlxmtp.models.device import memory_limit

    this_machine().keep(data, memory_limit())
    if (pace := pace_of(known)) is not None:
        model.expect(pace)
    return model


class LearnedDrafting:
    """A file of the drafting state learned on what `of` names; without it (no drafter) nothing is read or written."""

    def __init__(self, data: Path, of: Mapping[str, str] | None) -> None:
        self._of = None if of is None else {"format": "3", **of}  # the format changes with what the numbers mean
        digest = hashlib.sha256(json.dumps(self._of, sort_keys=True).encode()).hexdigest()
        self._path = data / "tuning" / f"{digest[:24]}.json"

    @classmethod
    def of_pair(cls, model: Model, drafter: Path | None, data: Path, draft_bits: int | None = None) -> LearnedDrafting:
        if drafter is None:
            return cls(data, None)
        from mlxmtp.engine.kv_file import fingerprint

        of = {"model": model.fingerprint, "drafter": fingerprint(drafter), "draft_bits": str(draft_bits)}
        of |= {"chip": this_machine().chip, "mlx": installed_version("mlx"), "mlxmtp": installed_version()}
        return cls(data, of if model.kv_bits is None else {**of, "kv_bits": str(model.kv_bits)})

    def start(self, model: Model) -> None:
        if self._of is not None and (known := self.read()):
            with suppress(ValueError):  # written by somebody else: find out anew
                model.start_from(known)

    def save(self, model: Model) -> None:
        if self._of is not None and (learned := model.learned()):
            self.write(learned)

    def read(self) -> dict[str, Any]:
        """Return what was written last; empty if there is nothing that can be used."""
        try:
            table = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        if not isinstance(table, dict) or table.get("of") != self._of or not isinstance(table.get("learned"), dict):
            return {}
        return dict(table["learned"])

    def write(self, learned: Mapping[str, Any]) -> None:
        """Replace the file as a whole, if that is possible here."""
        text = json.dumps({"of": self._of, "learned": learned}, indent=1) + "\n"
        with suppress(OSError):  # a full or read-only disk: the next start finds out again
            write_atomically(self._path, text, parents=True)
