"""How the buffers should grow: one long answer of the built-in pair under several policies.

    .venv/bin/python -m scripts.benchmarks.capacity [--repetitions 3] [--write docs/benchmarks.md] [--json FILE]

A pass of fixed shape attends to every row of a buffer, used or not, so room that is not needed costs time; a new size
costs a copy of the buffers and a new trace of the round. Whole answers are timed, from the first token on, with growing
and tracing; policies take turns. Ten minutes, on a machine that does nothing else.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean, median

from mlxmtp.decode import decoder as decoding
from mlxmtp.models import kv_cache as caching
from mlxmtp.models.load import load_drafter, load_target
from scripts.benchmarks.harness.options import repeated
from scripts.benchmarks.harness.report import machine
from scripts.benchmarks.harness.section import write_section

ROOT = Path(__file__).resolve().parents[2]
POCKET = ROOT / "assets" / "pocket"
PROMPT, ANSWER = 500, 2000
DRAFTS = (0, 3)
_ABOUT = """\
One run of `scripts/benchmarks/capacity.py`, {day}, built-in pair on {machine}: {prompt} prompt tokens, {answer} new
ones, {repetitions} repetitions in turn. Milliseconds for each new token over the whole answer, tracing and copying
included: median, and the ratio to the first line, repetition by repetition (least to most).

| room | sizes | rows attended to, mean | {heads} |
|---|---:|---:|{rules}"""


@dataclass(frozen=True, slots=True)
class Policy:
    """Rows reserved for an answer when it begins, the smallest step, and the smallest part to grow by."""

    name: str
    ahead: int = decoding.AHEAD
    step: int = caching.STEP
    growth: float = caching.GROWTH


POLICIES = (
    Policy("512 ahead, then a quarter, steps of 256 (chosen)"),
    Policy("the same in steps of 64", step=64),
    Policy("the same in steps of 1024", step=1024),
    Policy("512 ahead, then steps of 256 only", growth=0.0),
    Policy("512 ahead, then twice as much", growth=1.0),
    Policy("64 ahead, then steps of 64 only", ahead=64, step=64, growth=0.0),
    Policy("all at once", ahead=ANSWER),
)


@dataclass(frozen=True, slots=True)
class Sample:
    """One answer: milliseconds for each new token, and the capacity at each of its rounds."""

    milliseconds: float
    capacities: tuple[int, ...]


def measure(policy: Policy, decoder: decoding.Decoder, prompt: Sequence[int], draft: int) -> Sample:
    """One answer under a policy, with buffers that begin empty."""
    decoding.AHEAD, caching.STEP, caching.GROWTH = policy.ahead, policy.step, policy.growth
    decoder._cache = caching.KVCache(decoder.target.cache_spec, decoder.target.dtype)
    decoder.forget()
    rounds = decoder.rounds(prompt, max_tokens=ANSWER, num_draft_tokens=draft)
    next(rounds)
    begun = time.perf_counter()
    capacities = tuple(decoder._cache.capacity for _ in rounds)
    return Sample(1000 * (time.perf_counter() - begun) / (ANSWER - 1), capacities)


def page(found: dict[tuple[str, int], list[Sample]]) -> str:
    """The section of the benchmarks page."""
    first = POLICIES[0].name
    rows = []
    for policy in POLICIES:
        samples = [found[policy.name, draft] for draft in DRAFTS]
        cells = []
        for draft, these in zip(DRAFTS, samples, strict=True):
            ratios = [a.milliseconds / b.milliseconds for a, b in zip(these, found[first, draft], strict=True)]
            middle = median(sample.milliseconds for sample in these)
            cells.append(f"{middle:.2f}, {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
        capacities = samples[0][0].capacities
        rows.append(f"| {policy.name} | {len(set(capacities))} | {mean(capacities):,.0f} | {' | '.join(cells)} |")
    heads = " | ".join(f"{draft} drafts" if draft else "plain" for draft in DRAFTS)
    about = _ABOUT.format(
        day=datetime.now(UTC).date().isoformat(), machine=machine(), prompt=PROMPT, answer=f"{ANSWER:,}",
        repetitions=len(found[first, DRAFTS[0]]), heads=heads, rules="---:|" * len(DRAFTS),
    )  # fmt: skip
    return "\n".join([about, *rows])


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write where told to."""
    options = repeated(__doc__, 3).parse_args(arguments)
    target = load_target(POCKET / "target")
    drafter = load_drafter(POCKET / "drafter", target)
    prompt = [2, *(5 + 7 * i % 1000 for i in range(PROMPT - 1))]
    found: dict[tuple[str, int], list[Sample]] = {(one.name, draft): [] for one in POLICIES for draft in DRAFTS}
    for _ in range(options.repetitions):
        for policy in POLICIES:
            for draft in DRAFTS:
                # a decoder of its own: nothing is traced yet, as in a new process, but kernels are built
                decoder = decoding.Decoder(target, drafter, compiled="always")
                sample = measure(policy, decoder, prompt, draft)
                decoder.close()
                found[policy.name, draft].append(sample)
                print(policy.name, draft, f"{sample.milliseconds:.2f} ms", sorted(set(sample.capacities)), flush=True)
    text = page(found)
    print(text)
    if options.json:
        figures = [
            {"policy": name, "draft": draft, "milliseconds": [sample.milliseconds for sample in samples]}
            for (name, draft), samples in found.items()
        ]
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    if options.write:
        write_section(options.write, "capacity", text, script="capacity.py", heading="Room for keys and values")


if __name__ == "__main__":
    main()
