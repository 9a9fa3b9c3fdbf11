"""Drafting begins with what the last start learned, and leaves what this one learns.

with remembered(model, drafter, places): ...          # a single turn
memory = Memory(model, drafter, places)               # a chat: memory.keep() after each turn
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlxmtp
from mlxmtp.files import write_atomically
from mlxmtp.machine.chip import this_machine

if TYPE_CHECKING:
    from mlxmtp.engine.model import Model
    from mlxmtp.hub.store import Found
    from mlxmtp.settings import Places


_FORMAT = 1
"""Changes with what the numbers mean."""


class Tuning:
    """The file for what `of` names: model, drafter, chip, versions; any other word makes another file."""

    def __init__(self, data: Path, of: Mapping[str, str]) -> None:
        self._of = {"format": str(_FORMAT), **of}
        digest = hashlib.sha256(json.dumps(self._of, sort_keys=True).encode()).hexdigest()
        self._path = data / "tuning" / f"{digest[:24]}.json"

    def read(self) -> dict[str, Any]:
        """What was written last; empty if there is nothing that can be used."""
        try:
            table = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        if not isinstance(table, dict) or table.get("of") != self._of or not isinstance(table.get("learned"), dict):
            return {}
        return dict(table["learned"])

    def write(self, learned: Mapping[str, Any]) -> None:
        """Replace it as a whole, if that is possible here."""
        try:
            text = json.dumps({"of": self._of, "learned": learned}, indent=1) + "\n"
            write_atomically(self._path, text, parents=True)
        except OSError:  # a full or read-only disk: the next start finds out again
            return


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
    from mlxmtp.engine.kv_file import fingerprint

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
