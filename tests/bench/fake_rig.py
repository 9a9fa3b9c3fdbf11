"""A rig without a network: made-up times, the same tokens whatever drafts, and samples made directly."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlxmtp.bench.harness import Draft, Split, Step, Take, Tie
from mlxmtp.bench.samples import Arm, Parting, RoundTime, Sample
from mlxmtp.decode.sampling import Sampling

BASE, STEP = 0.010, 0.002  # seconds of a round: 10 ms and 2 ms for each draft token
ACCEPTED = 2  # of every draft
_AUTO = 3


@dataclass
class FakeRig:
    """`interrupt_at`: Ctrl-C comes in that take. `wrong`: the first token of an automatic take that is not plain's."""

    interrupt_at: int | None = None
    wrong: int | None = None
    device = "CPU"
    dtype = "float32"
    compiled = True
    sampling = Sampling()
    bits: dict[str, int | None] = field(default_factory=dict)
    takes: list[tuple[tuple[int, ...], Draft]] = field(default_factory=list)
    prepared: list[tuple[int, int, tuple[Draft, ...]]] = field(default_factory=list)

    def load(self, folder: Path, drafter: Path | None = None, params: Any = None, **bits: int | None) -> FakeRig:
        self.bits = bits
        return self

    def prepare(self, prompt: Sequence[int], tokens: int, drafts: Iterable[Draft]) -> None:
        self.prepared.append((len(prompt), tokens, tuple(drafts)))

    def take(self, prompt: Sequence[int], tokens: int, draft: Draft) -> Take:
        if len(self.takes) == self.interrupt_at:
            raise KeyboardInterrupt
        self.takes.append((tuple(prompt), draft))
        k = _AUTO if draft == "auto" else draft
        steps, left = [], tokens - 1
        while left:
            accepted = min(ACCEPTED, k, left)
            kept = min(accepted + 1, left)
            steps.append(Step(k, accepted, kept, BASE + STEP * k))
            left -= kept
        said = [300 + (prompt[-1] + i) % 50 for i in range(tokens)]
        if self.wrong is not None and draft == "auto":
            said[self.wrong :] = [400] * (tokens - self.wrong)
        total = 0.1 + sum(step.seconds for step in steps)
        return Take(tuple(said), tuple(steps), 0.09, 0.1, total, 10_000_000)

    def tie(self, read: Sequence[int], token: int, other: int) -> Tie:
        return Tie(1e-6, 1e-6)

    def split(self, prompt: Sequence[int], k: int, rounds: int) -> Split:
        return Split(k, (BASE + STEP * k,) * rounds, (BASE + STEP * k / 4,) * rounds)


def sample(
    arm: Arm,
    repetition: int = 0,
    *,
    kind: str = "code",
    prompt: str = "one",
    accepted: int = 0,
    seconds: float = 0.01,
    rounds: int = 10,
    model: str = "m",
    length: int | None = None,
    parting: Parting | None = None,
) -> Sample:
    """A run of equal rounds that last `seconds` each."""
    drafted = 3 if arm == "auto" else arm
    steps = (RoundTime(drafted, accepted, accepted + 1, seconds),) * rounds
    tokens = tuple(range(1 + rounds * (accepted + 1)))
    total = 0.5 + rounds * seconds
    return Sample(
        model, kind, prompt, length, 40, arm, repetition, 0.4, 0.5, total, 10**7, tokens, steps, parting
    )  # fmt: skip
