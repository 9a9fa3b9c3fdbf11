"""Comparison of two reports: faster or slower only beyond the spread of either run."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import attrgetter

from mlxmtp.bench.report import Report
from mlxmtp.bench.samples import Case, DraftSetting
from mlxmtp.bench.summary import Difference, Spread, compare
from mlxmtp.errors import UsageError

COMPARISON = "mlxmtp-bench-comparison/1"

# Attributes of a report that must be alike for two speeds to be comparable, and of a model in it.
_SAME = {
    "settings.plan.max_tokens": "new tokens",
    "settings.temp": "temperature",
    "settings.top_k": "top-k",
    "settings.top_p": "top-p",
    "settings.min_p": "min-p",
    "settings.seed": "seed",
    "settings.suite": "suites",
    "settings.texts": "number of texts",
    "settings.system": "system prompt",
    "settings.schema": "schema",
    "settings.think": "thinking",
    "settings.image_tokens": "image tokens",
    "environment.chip": "chip",
    "environment.system": "system",
    "environment.conditions.power_source": "power source",
    "environment.conditions.low_power_mode": "low power mode",
    "environment.conditions.thermal_pressure": "thermal pressure",
}
_SAME_MODEL = {
    "device": "device",
    "dtype": "dtype",
    "quantization": "quantization",
    "drafter": "drafter",
    "drafter_quantization": "drafter quantization",
    "kv_bits": "bits of keys and values",
    "compiled": "compiled",
    "exact": "exact text",
}


@dataclass(frozen=True, slots=True)
class Line:
    """One value of both reports; `kind` None means all texts, `b_over_a` is the ratio of the medians."""

    case: Case = field(metadata={"inline": True})
    num_draft_tokens: DraftSetting
    kind: str | None
    what: str
    a: Spread
    b: Spread
    b_over_a: float = field(init=False)
    verdict: Difference

    def __post_init__(self) -> None:
        object.__setattr__(self, "b_over_a", self.b.median / self.a.median if self.a.median else 1.0)


@dataclass(frozen=True, slots=True)
class Comparison:
    """The names of both reports, all lines, what makes the runs hard to compare, and the outcome in words."""

    schema: str = field(init=False, default=COMPARISON)
    a: str
    b: str
    warnings: tuple[str, ...]
    verdict: tuple[str, ...]
    lines: tuple[Line, ...]


def compare_reports(a: Report, b: Report, names: tuple[str, str]) -> Comparison:
    """Compare what the reports have in common. Raises UsageError if that is nothing."""
    lines = tuple(_lines(a, b))
    if not lines:
        raise UsageError(f"{names[0]} and {names[1]} share no model, prompt length and draft length: nothing to say.")
    return Comparison(*names, tuple(_warnings(a, b)), tuple(_verdict(lines)), lines)


def _lines(a: Report, b: Report) -> Iterator[Line]:
    old = {(case.case, row.num_draft_tokens): row for case in a.summaries() for row in case.rows}
    for after in (row for case in b.summaries() for row in case.rows):
        before = old.get((after.case, after.num_draft_tokens))
        if before is None:
            continue
        rows: list[tuple[str | None, str, Spread, Spread]] = [
            (None, "decode", before.speed.generation_tps, after.speed.generation_tps),
            *(
                (kind, "decode", before.kinds[kind].generation_tps, speed.generation_tps)
                for kind, speed in after.kinds.items()
                if kind in before.kinds and len(after.kinds) > 1
            ),
            (None, "prefill", before.prompt_tps, after.prompt_tps),
            (None, "first token", before.first_token_seconds, after.first_token_seconds),
            (None, "whole answer", before.total_seconds, after.total_seconds),
        ]
        for kind, what, old_value, new_value in rows:
            difference = compare(old_value, new_value, more_is_better=what in ("decode", "prefill"))
            yield Line(after.case, after.num_draft_tokens, kind, what, old_value, new_value, difference)


def _verdict(lines: tuple[Line, ...]) -> Iterator[str]:
    named: dict[Difference, list[str]] = {}
    for line in lines:
        if line.what == "decode" and line.kind is None:
            length = "" if line.case.length is None else f", {line.case.length} prompt tokens"
            draft = {0: "plain", "auto": "auto"}.get(line.num_draft_tokens, f"{line.num_draft_tokens} drafts")
            name = f"{line.case.model} {draft}{length} ({line.b_over_a - 1:+.1%})"
            named.setdefault(line.verdict, []).append(name)
    count = sum(map(len, named.values()))
    for verdict in ("faster", "slower"):
        if found := named.get(verdict):
            yield f"B is {verdict} in {len(found)} of {count} rows: {'; '.join(found)}."
    if same := named.get("same within spread"):
        yield f"{len(same)} of {count} are the same within their spread."
    if "unclear" in named:
        yield "With one repetition there is no spread, so nothing is certain: measure with -r 3 or more."


def _warnings(a: Report, b: Report) -> Iterator[str]:
    yield from (f"Different {difference}." for difference in _differences(a, b, _SAME, "unknown"))
    models = {model.name: model for model in a.models}
    for model in b.models:
        found = _differences(models.get(model.name, model), model, _SAME_MODEL, "none")
        yield from (f"{model.name}: different {difference}." for difference in found)
    for name, report in (("A", a), ("B", b)):
        if not report.complete:
            yield f"{name} was interrupted, so it holds fewer samples than planned."


def _differences(a: object, b: object, attributes: dict[str, str], missing: str) -> Iterator[str]:
    for attribute, name in attributes.items():
        old, new = (attrgetter(attribute)(side) for side in (a, b))
        if old != new:
            told = (", ".join(map(str, side)) if isinstance(side, tuple) else side for side in (old, new))
            before, after = (missing if side is None else side for side in told)
            yield f"{name}: {before} in A, {after} in B"
