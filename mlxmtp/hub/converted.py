"""Models that were converted on this machine: where they are and what they were made of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mlxmtp.hub.registry import Entry, entries

RECORD = "mlxmtp.json"
"""In a converted model: what it was made of, and how."""

_SUFFIX = "-assistant"


def master_of(entry: Entry) -> str:
    """The repository of Google's own 16-bit weights for a variant."""
    if entry.variant == "qat":
        return entry.drafter.repo.removesuffix(_SUFFIX)
    return next(one.target.repo for one in entries() if (one.family, one.variant) == (entry.family, "bf16"))


def made_folder(entry: Entry, models: Path) -> Path | None:
    """The conversion of a variant's own weights among the models made here, under its usual name."""
    folder = models / f"{entry.family}-{entry.variant}"
    return folder if (folder / "config.json").is_file() and source_of(folder) == master_of(entry) else None


def source_of(folder: Path) -> str | None:
    """What a model made here was made of; None if nothing says so."""
    record = conversion_record(folder)
    return None if record is None else str(record["target"]["source"])


def conversion_record(folder: Path) -> dict[str, Any] | None:
    """What a conversion wrote about itself; None if the folder holds no such thing."""
    try:
        table: dict[str, Any] = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        return table if table["target"]["source"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
