"""Two reports side by side: what became faster or slower by more than either run's own spread."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from mlxmtp.bench.report import Report
from mlxmtp.bench.samples import Arm, Case
from mlxmtp.bench.summary import ArmFigures, CaseFigures, Difference, Spread, compare
from mlxmtp.errors import UsageError

COMPARISON = "mlxmtp-bench-comparison/1"

# What must be alike for two speeds to be comparable, as `block.key` and what a person calls it.
_SAME = (
    ("settings", "max_tokens", "new tokens"),
    ("settings", "temp", "temperature"),
    ("settings", "top_k", "top-k"),
    ("settings", "top_p", "top-p"),
    ("settings", "min_p", "min-p"),
    ("settings", "suite", "suites"),
    ("settings", "texts", "number of texts"),
    ("settings", "system", "system prompt"),
    ("settings", "think", "thinking"),
    ("environment", "chip", "chip"),
    ("environment", "system", "system"),
    ("environment", "power_source", "power source"),
    ("environment", "low_power_mode", "low power mode"),
    ("environment", "thermal_pressure", "thermal pressure"),
)


@dataclass(frozen=True, slots=True)
class Line:
    """One figure of both reports. `change` is B over A as a ratio; `kind` None means all texts."""

    case: Case
    arm: Arm
    kind: str | None
    what: str
    before: Spread
    after: Spread
    verdict: Difference

    @property
    def change(self) -> float:
        """B in units of A."""
        return self.after.median / self.before.median if self.before.median else 1.0

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "model": self.case.model,
            "length": self.case.length,
            "num_draft_tokens": self.arm,
            "kind": self.kind,
            "what": self.what,
            "a": asdict(self.before),
            "b": asdict(self.after),
            "b_over_a": self.change,
            "verdict": self.verdict,
        }


@dataclass(frozen=True, slots=True)
class Comparison:
    """All lines, what makes the runs hard to compare, and the outcome in words."""

    names: tuple[str, str]
    lines: tuple[Line, ...]
    warnings: tuple[str, ...]

    @property
    def sentences(self) -> list[str]:
        """What to take home."""
        told = []
        main = [line for line in self.lines if line.what == "decode" and line.kind is None]
        for verdict in ("faster", "slower"):
            found = [line for line in main if line.verdict == verdict]
            if found:
                told.append(f"B is {verdict} in {len(found)} of {len(main)} rows: {_named(found)}.")
        same = sum(line.verdict == "same within spread" for line in main)
        if same:
            told.append(f"{same} of {len(main)} are the same within their spread.")
        if any(line.verdict == "unclear" for line in main):
            told.append("With one repetition there is no spread, so nothing is certain: measure with -r 3 or more.")
        return told

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "schema": COMPARISON,
            "a": self.names[0],
            "b": self.names[1],
            "warnings": list(self.warnings),
            "verdict": self.sentences,
            "lines": [line.to_dict() for line in self.lines],
        }


def compare_reports(before: Report, after: Report, names: tuple[str, str]) -> Comparison:
    """Raises UsageError if the reports have nothing in common."""
    lines = tuple(_lines(before, after))
    if not lines:
        raise UsageError(f"{names[0]} and {names[1]} share no model, prompt length and draft length: nothing to say.")
    return Comparison(names, lines, tuple(_warnings(before, after)))


def _lines(before: Report, after: Report) -> Iterator[Line]:
    old = {case.case: case for case in before.figures()}
    for case in after.figures():
        if case.case in old:
            for row in case.arms:
                match = old[case.case].arm(row.arm)
                if match is not None:
                    yield from _of_arm(case, match, row)


def _of_arm(case: CaseFigures, before: ArmFigures, after: ArmFigures) -> Iterator[Line]:
    def line(kind: str | None, what: str, a: Spread, b: Spread, more_is_better: bool = True) -> Line:
        return Line(case.case, after.arm, kind, what, a, b, compare(a, b, more_is_better=more_is_better))

    yield line(None, "decode", before.speed.tps, after.speed.tps)
    for kind, speed in after.kinds.items():
        if kind in before.kinds and len(after.kinds) > 1:
            yield line(kind, "decode", before.kinds[kind].tps, speed.tps)
    yield line(None, "prefill", before.prompt_tps, after.prompt_tps)
    yield line(None, "first token", before.first_token, after.first_token, more_is_better=False)
    yield line(None, "whole answer", before.latency, after.latency, more_is_better=False)


def _warnings(before: Report, after: Report) -> Iterator[str]:
    for block, key, name in _SAME:
        a, b = getattr(before, block).get(key), getattr(after, block).get(key)
        if a != b:
            yield f"Different {name}: {_shown(a)} in A, {_shown(b)} in B."
    theirs = {model["name"]: model for model in before.models}
    for model in after.models:
        other = theirs.get(model["name"])
        for key in ("dtype", "quantization", "drafter", "compiled") if other else ():
            if other is not None and other.get(key) != model.get(key):
                yield f"{model['name']}: different {key}: {_shown(other.get(key))} in A, {_shown(model.get(key))} in B."
    for name, report in (("A", before), ("B", after)):
        if not report.complete:
            yield f"{name} was interrupted, so it holds fewer samples than planned."


def _shown(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "unknown" if value is None else str(value)


def _named(lines: list[Line]) -> str:
    told = []
    for line in lines:
        length = "" if line.case.length is None else f", {line.case.length} prompt tokens"
        arm = "plain" if line.arm == 0 else "auto" if line.arm == "auto" else f"{line.arm} drafts"
        told.append(f"{line.case.model} {arm}{length} ({line.change - 1:+.1%})")
    return "; ".join(told)
