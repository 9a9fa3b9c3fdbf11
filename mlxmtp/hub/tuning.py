"""What was learned about drafting on this machine, from one start to the next.

One small JSON file per pair, machine and versions in the data folder. It only saves a few rounds of finding out, so a
file that is missing, damaged or of something else is no file, and one that cannot be written is not written.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlxmtp.hub.cache import write_whole

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
            write_whole(self._path, text, parents=True)
        except OSError:  # a full or read-only disk: the next start finds out again
            return
