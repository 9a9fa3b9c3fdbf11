"""Drafting begins with what the last start learned, and leaves what this one learns.

with remembered(model, drafter, places): ...          # a single turn
memory = Memory(model, drafter, places)               # a chat: memory.keep() after each turn
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from typing import TYPE_CHECKING

import mlxmtp
from mlxmtp.hub.machine import this_machine
from mlxmtp.hub.tuning import Tuning

if TYPE_CHECKING:
    from mlxmtp.engine.engine import Model
    from mlxmtp.hub.store import Found
    from mlxmtp.settings import Places


class Memory:
    """What is known about drafting with one pair on this machine. Without a drafter it does nothing."""

    def __init__(self, model: Model, drafter: Found | None, places: Places, draft_bits: int | None = None) -> None:
        self._model = model
        self._tuning = None if drafter is None else Tuning(places.data, _names(model, drafter, draft_bits))
        if self._tuning is None:
            return
        known = self._tuning.read()
        if known:
            with suppress(ValueError):  # written by somebody else: find out anew
                model.start_from(known)

    def keep(self) -> None:
        """Write what is known now, if this process has learned anything."""
        if self._tuning is None:
            return
        learned = self._model.learned()
        if learned:
            self._tuning.write(learned)


@contextmanager
def remembered(model: Model, drafter: Found | None, places: Places, draft_bits: int | None = None) -> Iterator[None]:
    """A turn that begins with what is known; what it teaches is kept however it ends."""
    memory = Memory(model, drafter, places, draft_bits)
    try:
        yield
    finally:
        memory.keep()


def _names(model: Model, drafter: Found, draft_bits: int | None) -> dict[str, str]:
    from mlxmtp.engine.kept import fingerprint

    packed = {} if model.kv_bits is None else {"kv_bits": str(model.kv_bits)}
    return {
        "model": fingerprint(model.config.folder),
        "drafter": fingerprint(drafter.folder),
        "draft_bits": str(draft_bits),
        "chip": this_machine().chip,
        "mlx": version("mlx"),
        "mlxmtp": mlxmtp.__version__,
        **packed,
    }
