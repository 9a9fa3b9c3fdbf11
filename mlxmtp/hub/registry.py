"""Short names of models: `e2b`, `12b:8bit`. The data is in `registry.toml`; nothing here touches the disk beyond it."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

BUILT_IN = "pocket"


@dataclass(frozen=True, slots=True)
class Repo:
    """A repository on the Hugging Face hub; `size` in bytes, None where nobody has measured it."""

    repo: str
    size: int | None


@dataclass(frozen=True, slots=True)
class Entry:
    """One alias in one variant: what `pull NAME` would fetch."""

    name: str
    title: str
    target: Repo
    drafter: Repo

    @property
    def size(self) -> int | None:
        """Bytes of target and drafter together, None if one is unknown."""
        if self.target.size is None or self.drafter.size is None:
            return None
        return self.target.size + self.drafter.size


def find_entry(name: str) -> Entry | None:
    """The entry of `alias`, `alias:variant`, or of a repository that an alias stands for. Case does not matter."""
    wanted = name.lower()
    for entry in entries():
        if wanted in (entry.name, entry.target.repo.lower()):
            return entry
    return None


@cache
def entries() -> tuple[Entry, ...]:
    """Every alias in every variant, from the smallest model to the largest; the default variant has the bare name."""
    table = tomllib.loads(Path(__file__).with_name("registry.toml").read_text(encoding="utf-8"))
    return tuple(entry for alias, model in table.items() for entry in _variants(alias, model))


def known_names() -> tuple[str, ...]:
    """The bare aliases, the built-in model first."""
    return (BUILT_IN, *(entry.name for entry in entries() if ":" not in entry.name))


def _variants(alias: str, model: Mapping[str, Any]) -> Iterator[Entry]:
    paired = model["drafter"]
    for variant, target in model["variants"].items():
        drafter = target.get("drafter", paired)
        names = [alias, f"{alias}:{variant}"] if variant == model["default"] else [f"{alias}:{variant}"]
        for name in names:
            yield Entry(name, model["title"], _repo(target), _repo(drafter))


def _repo(table: Mapping[str, Any]) -> Repo:
    return Repo(table["repo"], table.get("bytes"))
