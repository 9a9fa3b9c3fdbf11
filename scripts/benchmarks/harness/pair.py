"""Pairs whose configuration allows a longer context than they were trained for. Standard library only."""

from __future__ import annotations

import json
from pathlib import Path


def allowing(pair: Path, context: int, temporary: Path) -> Path:
    """The pair, or in the empty folder `temporary` links to its files beside a configuration for `context` tokens."""
    found = json.loads((pair / "target/config.json").read_text(encoding="utf-8"))
    if found["text_config"]["max_position_embeddings"] >= context:
        return pair
    for part in ("target", "drafter"):
        (temporary / part).mkdir(parents=True)
        for file in (pair / part).iterdir():
            (temporary / part / file.name).symlink_to(file.resolve())
        config = json.loads((pair / part / "config.json").read_text(encoding="utf-8"))
        config["text_config"]["max_position_embeddings"] = context
        (temporary / part / "config.json").unlink()
        (temporary / part / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return temporary
