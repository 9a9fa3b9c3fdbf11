"""Which model and which drafter a command works with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from mlxmtp.errors import ModelNotFound

if TYPE_CHECKING:
    from mlxmtp.cli.output import Output
    from mlxmtp.hub.store import Found, Store
    from mlxmtp.settings import Loaded, Settings


def pick_target(loaded: Loaded, out: Output, store: Store, name: str | None) -> Found:
    """The model of that name; without one an installed model, else the built-in one, which says so.

    One that is not here can be downloaded now, if there is somebody to ask. Raises ModelNotFound.
    """
    if name is not None:
        return _named(loaded, out, store, name)
    installed = store.default()
    if installed is not None:
        return installed
    out.note(_built_in_note())
    return store.resolve("pocket")


def pick_drafter(settings: Settings, out: Output, store: Store, found: Found, *, off: bool) -> Found | None:
    """The drafter the settings mean for a target; `off` is none. Raises ModelNotFound for one that is not here."""
    wanted: str | Literal[False] | None = settings.draft_model
    if settings.draft is False or off:
        wanted = False
    drafter = store.drafter_for(found, wanted)
    if drafter is None and wanted is None:
        if settings.draft:
            raise ModelNotFound(f"There is no drafter for '{found.name}' here: name one with --draft-model.")
        if out.error_terminal:
            out.note(f"There is no drafter for '{found.name}' here, so it decodes without one.")
    return drafter


def _named(loaded: Loaded, out: Output, store: Store, name: str) -> Found:
    try:
        return store.resolve(name)
    except ModelNotFound as missing:
        from mlxmtp.cli.pull import offer

        offer(loaded, out, name, missing)
        return store.resolve(name)


def _built_in_note() -> str:
    """One line: who answers, and the command that gets a model for this machine."""
    from mlxmtp.hub.fit import machine_memory, shown
    from mlxmtp.hub.store import best_fit

    note = "No model is installed, so the built-in pocket answers: a demonstration, small and often wrong."
    best = best_fit(machine_memory())
    if best is None or best.target.size is None:
        return note
    return f"{note} {best.title} ({shown(best.target.size)}) fits this machine. Run: mlxmtp pull {best.name}"
