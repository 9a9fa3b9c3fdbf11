"""What a worker is asked for and what an engine has to offer. Standard library only: every environment imports this."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

Emit = Callable[[Sequence[int]], None]
"""Called with the new tokens the moment the engine hands them out; may raise `Enough`."""

TOP_DRAFT = 8
"""Longest draft that mlxmtp's automatic length can choose: all of them are warmed up."""


class Enough(Exception):
    """Raised out of `Emit` when a stop token has come or there are enough tokens."""


@dataclass(frozen=True, slots=True)
class Job:
    """One generation. `draft`: draft tokens per round, 0 is plain, "auto" is whatever the engine does by itself.

    Stop tokens are ignored unless `stop` names them. `keyed` asks mlx-vlm for noise keyed by seed and position, `blind`
    mlxmtp for a drafter that has learned nothing.
    """

    prompt: tuple[int, ...]
    tokens: int
    draft: int | str = 0
    temp: float = 0.0
    seed: int = 0
    stop: tuple[int, ...] = ()
    keyed: bool = False
    blind: bool = False


@dataclass(frozen=True, slots=True)
class Counts:
    """Passes of the target after the first token, tokens drafted and accepted; None where the engine does not say."""

    rounds: int | None = None
    drafted: int | None = None
    accepted: int | None = None


class Engine(Protocol):
    """A library with the pair loaded."""

    def describe(self) -> dict[str, Any]:
        """Versions and settings for the report."""

    def warm(self, jobs: Sequence[Job]) -> None:
        """Build every kernel that jobs like these can need, by running them."""
        for job in jobs:
            self.run(job, lambda _: None)

    def run(self, job: Job, emit: Emit) -> Counts:
        """Generate; nothing may still be running when it returns."""

    def ask(self, what: str, request: dict[str, Any]) -> Any:
        """Answer anything else (tokenize, profile); most engines have nothing else."""
        raise NotImplementedError(what)
