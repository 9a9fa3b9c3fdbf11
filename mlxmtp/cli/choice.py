"""Which target and which drafter settings mean, how to answer with them, and the moment they are read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from mlxmtp.errors import ModelNotFound
from mlxmtp.hub.store import Found, Store

if TYPE_CHECKING:
    from mlxmtp.cli.output import Output
    from mlxmtp.engine.engine import Model
    from mlxmtp.engine.params import Params
    from mlxmtp.engine.prompt import Tokenizer
    from mlxmtp.settings import Loaded, Settings


def choose_target(loaded: Loaded, out: Output) -> Found:
    """The model to ask: the one named, else one installed, else the built-in one, which says so.

    One that is named and not here can be downloaded now, if there is somebody to ask. Raises ModelNotFound.
    """
    store = Store(loaded.places, loaded.aliases)
    if loaded.settings.model is not None:
        return named_target(loaded, out, loaded.settings.model)
    installed = store.default()
    if installed is not None:
        return installed
    out.note(_built_in_note())
    return store.resolve("pocket")


def named_target(loaded: Loaded, out: Output, name: str) -> Found:
    """The model of that name, downloaded first if it is not here and somebody agrees. Raises ModelNotFound."""
    store = Store(loaded.places, loaded.aliases)
    try:
        return store.resolve(name)
    except ModelNotFound as missing:
        from mlxmtp.cli.pull import offer

        offer(loaded, out, name, missing)
        return store.resolve(name)


def choose_drafter(loaded: Loaded, out: Output, target: Found, *, off: bool = False) -> Found | None:
    """The drafter the settings mean, None without one; a person is told when the paired one is missing.

    `off` leaves it out. Raises ModelNotFound if a drafter was asked for and is not here.
    """
    settings = loaded.settings
    wanted: str | Literal[False] | None = False if off or settings.draft is False else settings.draft_model
    drafter = Store(loaded.places, loaded.aliases).drafter_for(target, wanted)
    if drafter is None and wanted is None:
        if settings.draft:
            raise ModelNotFound(f"There is no drafter for '{target.name}' here: name one with --draft-model.")
        if out.error_terminal:
            out.note(f"There is no drafter for '{target.name}' here, so it decodes without one.")
    return drafter


def answer_params(settings: Settings) -> Params:
    """What the settings say about answering."""
    from mlxmtp.engine.params import Params

    return Params(
        max_tokens=settings.max_tokens,
        temp=settings.temp,
        top_p=settings.top_p,
        top_k=settings.top_k,
        min_p=settings.min_p,
        seed=settings.seed,
        num_draft_tokens="auto" if settings.num_draft_tokens is None else settings.num_draft_tokens,
        think=bool(settings.think),
        think_tokens=settings.think_tokens,
    )


def read_tokenizer(found: Found) -> Tokenizer:
    """The text side of a model. Raises LoadError."""
    from mlxmtp.engine.prompt import Tokenizer

    return Tokenizer.load(found.folder)


def read_model(found: Found, drafter: Found | None, tokenizer: Tokenizer, draft_bits: int | None) -> Model:
    """Target and drafter in memory. Raises LoadError."""
    from mlxmtp.engine.engine import Model

    return Model.load(
        found.folder,
        None if drafter is None else drafter.folder,
        name=found.name,
        drafter_name=None if drafter is None else drafter.name,
        draft_bits=draft_bits,
        tokenizer=tokenizer,
    )


def _built_in_note() -> str:
    """One line: who answers, and the command that gets a model for this machine."""
    from mlxmtp.hub.fit import machine_memory, shown
    from mlxmtp.hub.store import best_fit

    note = "No model is installed, so the built-in pocket answers: a demonstration, small and often wrong."
    best = best_fit(machine_memory())
    if best is None or best.target.size is None:
        return note
    return f"{note} {best.title} ({shown(best.target.size)}) fits this machine. Run: mlxmtp pull {best.name}"
