"""A harness without a network: made-up times, the same tokens whatever drafts, and samples made directly."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlxmtp.bench.environment import Conditions, Environment
from mlxmtp.bench.harness import Run
from mlxmtp.bench.report import ModelInfo, Plan, Report, RunSettings, SamplingUsed
from mlxmtp.bench.samples import Divergence, DraftSetting, Round, Sample
from mlxmtp.decode.sampling import Sampling

BASE, STEP = 0.010, 0.002  # seconds of a round: 10 ms and 2 ms for each draft token
ACCEPTED = 2  # of every draft
_AUTO = 3


@dataclass
class FakeHarness:
    """`interrupt_at`: Ctrl-C comes in that run. `wrong`: the first token of an automatic run that is not plain's."""

    interrupt_at: int | None = None
    wrong: int | None = None
    device = "CPU"
    dtype = "float32"
    compiled = True
    exact = False
    capacities = 1
    sampling = Sampling()
    wanted = ""  # exact texts, as they were asked for
    bits: dict[str, int | None] = field(default_factory=dict)
    runs: list[tuple[tuple[int, ...], DraftSetting]] = field(default_factory=list)
    prepared: list[tuple[int, int, tuple[DraftSetting, ...]]] = field(default_factory=list)

    def load(
        self, folder: Path, drafter: Path | None = None, params: Any = None, exact: str = "off", **bits: int | None
    ) -> FakeHarness:
        assert exact in ("auto", "off")
        self.bits, self.wanted = bits, exact
        return self

    def to_prepare(self, lengths: Iterable[int]) -> list[int]:
        return sorted(lengths)[-self.capacities :]

    def prepare(
        self, prompt: Sequence[int], tokens: int, drafts: Iterable[DraftSetting], media: Sequence[Any] = ()
    ) -> None:
        self.prepared.append((len(prompt), tokens, tuple(drafts)))

    def run(self, prompt: Sequence[int], tokens: int, draft: DraftSetting, media: Sequence[Any] = ()) -> Run:
        if len(self.runs) == self.interrupt_at:
            raise KeyboardInterrupt
        self.runs.append((tuple(prompt), draft))
        k = _AUTO if draft == "auto" else draft
        steps, left = [], tokens - 1
        while left:
            accepted = min(ACCEPTED, k, left)
            kept = min(accepted + 1, left)
            steps.append(Round(k, accepted, kept, BASE + STEP * k))
            left -= kept
        said = [300 + (prompt[-1] + i) % 50 for i in range(tokens)]
        if self.wrong is not None and draft == "auto":
            said[self.wrong :] = [400] * (tokens - self.wrong)
        total = 0.1 + sum(step.seconds for step in steps)
        return Run(tuple(said), tuple(steps), 0.09, 0.1, total, 10_000_000)

    def margin(self, prefix: Sequence[int], token: int, other: int, media: Sequence[Any] = ()) -> tuple[float, float]:
        return 1e-6, 1e-6

    def time_drafter(self, prompt: Sequence[int], k: int, rounds: int) -> tuple[list[float], list[float]]:
        return [BASE + STEP * k] * rounds, [BASE + STEP * k / 4] * rounds


def sample(
    draft: DraftSetting,
    repetition: int = 0,
    *,
    kind: str = "code",
    prompt: str = "one",
    accepted: int = 0,
    seconds: float = 0.01,
    rounds: int = 10,
    model: str = "m",
    length: int | None = None,
    divergence: Divergence | None = None,
) -> Sample:
    """A run of equal rounds that last `seconds` each."""
    drafted = 3 if draft == "auto" else draft
    steps = (Round(drafted, accepted, accepted + 1, seconds),) * rounds
    tokens = tuple(range(1 + rounds * (accepted + 1)))
    return Sample(
        model=model,
        kind=kind,
        prompt=prompt,
        length=length,
        prompt_tokens=40,
        num_draft_tokens=draft,
        repetition=repetition,
        prefill_seconds=0.4,
        first_token_seconds=0.5,
        total_seconds=0.5 + rounds * seconds,
        peak_memory=10**7,
        divergence=divergence,
        tokens=tokens,
        rounds=steps,
    )


def report(samples: list[Sample], chip: str = "x", **conditions: Any) -> Report:
    """A whole report of one model named `m`."""
    plan = Plan((None,), 31, 3, 1, 0.0, (0, 3))
    settings = RunSettings(("code",), 1, plan, None, None, None, None, 0, False, None)
    place = Environment(chip, 2, 8, 4, "Linux", "x86_64", "3.12", {"mlx": "0"}, Conditions(**conditions))
    model = ModelInfo("m", "bf16", None, None, None, None, "CPU", "float32", True, SamplingUsed(0.0, 1.0, 0, 0.0, 0))
    return Report("2026-01-01T00:00:00+00:00", settings, place, True, models=[model], samples=samples)
