"""A way of choosing draft lengths, played on recorded texts and on the times of a machine. No clock is read.

Time is counted without the noise that the controller sees: what is judged are its choices.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol


class Controller(Protocol):
    """What `mlxmtp.decode.draft_length.DraftLength` offers to the decoder."""

    def choose(self, room: int = ..., traced: Collection[int] = ...) -> int:
        """The draft length of the next round of a text of `room` more tokens; lengths that are not `traced` cost."""

    def among(self, traced: Collection[int]) -> int:
        """The best of the lengths that are traced."""

    def observe(self, k: int, accepted: int, seconds: float | None) -> None:
        """What came of a round."""


@dataclass(frozen=True, slots=True)
class Noise:
    """How measured times differ from true ones: by `jitter` (relative, normal), now and then by a `pause` three times
    as long as the round, and in busy stretches by half as much again. The first use of a length is never timed.
    """

    jitter: float = 0.08
    pauses: float = 0.01
    busy: float = 0.002  # chance that a busy stretch of 40 rounds begins

    def times(self, seed: int) -> Clock:
        return Clock(self, random.Random(seed))


class Clock:
    """The times that a controller gets to see."""

    def __init__(self, noise: Noise, numbers: random.Random) -> None:
        self._noise, self._numbers = noise, numbers
        self._used: set[int] = set()
        self._busy = 0

    def read(self, k: int, cost: float) -> float | None:
        """What is measured of a round with `k` drafts that takes `cost`."""
        draw = self._numbers.random
        self._busy = 40 if draw() < self._noise.busy else max(self._busy - 1, 0)
        factor = (1.5 if self._busy else 1.0) * (3.0 if draw() < self._noise.pauses else 1.0)
        factor *= max(1 + self._noise.jitter * self._numbers.gauss(0, 1), 0.5)
        if k not in self._used:
            self._used.add(k)
            return None
        return cost * factor * 0.01


@dataclass(frozen=True, slots=True)
class Played:
    """One text played: its time in plain rounds, and (position, draft length) of every round."""

    spent: float
    tokens: int
    rounds: Sequence[tuple[int, int]]

    @property
    def per_token(self) -> float:
        return self.spent / self.tokens


def play(
    controller: Controller,
    accepted: Sequence[int],
    costs: Sequence[float],
    noise: Noise,
    seed: int,
    ahead: int = 0,
    trace: float = 0.0,
) -> Played:
    """Decodes the text once. `costs[k]`: time of a round with k drafts in plain rounds.

    `ahead` rounds are dispatched before the result of one is known, as on a GPU. A length is traced beside a round of
    one that is, in the time of so many plain rounds (`trace`; 0: all are traced).
    """
    clock, position, spent = noise.times(seed), 0, 0.0
    rounds: list[tuple[int, int]] = []
    unread: list[tuple[int, int, float | None]] = []
    traced: set[int] = set()
    while position < len(accepted):
        k = controller.choose(len(accepted) - position, traced) if trace else controller.choose()
        if trace and k not in traced:
            spent += trace
            traced.add(k)
            k = controller.among(traced - {k}) if len(traced) > 1 else k
        kept = min(k, accepted[position])
        rounds.append((position, k))
        spent += costs[k]
        unread.append((k, kept, clock.read(k, costs[k])))
        if len(unread) > ahead:
            controller.observe(*unread.pop(0))
        position += kept + 1
    return Played(spent, position, rounds)


def best_fixed(accepted: Sequence[int], costs: Sequence[float], trace: float = 0.0) -> tuple[int, float]:
    """The best fixed length known afterwards, and its time per token."""
    found = {k: play(Fixed(k), accepted, costs, Noise(), 0, trace=trace).per_token for k in range(len(costs))}
    best = min(found, key=found.__getitem__)
    return best, found[best]


@dataclass(slots=True)
class Fixed:
    """Always the same."""

    length: int

    def choose(self, *_: object) -> int:
        return self.length

    def among(self, traced: Collection[int]) -> int:
        return self.length

    def observe(self, k: int, accepted: int, seconds: float | None) -> None:
        """Learns nothing."""
