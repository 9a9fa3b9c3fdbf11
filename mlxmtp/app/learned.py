"""Learned drafting state, read when a model is opened and written after every answer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from mlxmtp.engine.model import Model
from mlxmtp.files import write_atomically
from mlxmtp.machine.chip import this_machine
from mlxmtp.version import installed_version

_FORMAT = 1
"""Changes with what the numbers mean."""


class LearnedDrafting:
    """The file for what `of` names: model, drafter, chip, versions; any other word makes another file.

    With `of` None, which is a model without a drafter, nothing is read or written.
    """

    def __init__(self, data: Path, of: Mapping[str, str] | None) -> None:
        self._of = None if of is None else {"format": str(_FORMAT), **of}
        digest = hashlib.sha256(json.dumps(self._of, sort_keys=True).encode()).hexdigest()
        self._path = data / "tuning" / f"{digest[:24]}.json"

    @classmethod
    def of_pair(cls, model: Model, drafter: Path | None, data: Path, draft_bits: int | None = None) -> LearnedDrafting:
        """Return the file for a model with the drafter in a folder, on this machine."""
        if drafter is None:
            return cls(data, None)
        from importlib.metadata import version

        from mlxmtp.engine.kv_file import fingerprint

        of = {
            "model": fingerprint(model.config.folder),
            "drafter": fingerprint(drafter),
            "draft_bits": str(draft_bits),
            "chip": this_machine().chip,
            "mlx": version("mlx"),
            "mlxmtp": installed_version(),
        }
        return cls(data, of if model.kv_bits is None else {**of, "kv_bits": str(model.kv_bits)})

    def start(self, model: Model) -> None:
        """Let a model begin with what is known."""
        known = {} if self._of is None else self.read()
        if known:
            with suppress(ValueError):  # written by somebody else: find out anew
                model.start_from(known)

    def save(self, model: Model) -> None:
        """Write what a model knows now, if it has learned anything."""
        learned = {} if self._of is None else model.learned()
        if learned:
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
        try:
            text = json.dumps({"of": self._of, "learned": learned}, indent=1) + "\n"
            write_atomically(self._path, text, parents=True)
        except OSError:  # a full or read-only disk: the next start finds out again
            return
