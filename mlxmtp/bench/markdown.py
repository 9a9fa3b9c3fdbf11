"""A report and a comparison as markdown: the verdict first, tables aligned so that they read well unrendered."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from mlxmtp.bench.compare import Comparison
from mlxmtp.bench.report import Report
from mlxmtp.bench.samples import Arm, Case, Checking, Sample, shown_arm
from mlxmtp.bench.summary import ArmFigures, CaseFigures, Speed
from mlxmtp.bench.verdict import verdict

_MB = 1e6


def report_text(report: Report) -> str:
    """The whole report."""
    cases = report.figures()
    parts = ["# mlxmtp bench"]
    if not report.complete:
        parts.append("Interrupted: this is what had been measured by then.")
    for case in cases:
        title = f"## {_title(case.case)}\n\n" if len(cases) > 1 else ""
        parts.append(title + "\n".join(f"- {sentence}" for sentence in verdict(case)))
    rows = [row for case in cases for row in case.arms]
    parts.append("## Speed\n\n" + _speed(rows))
    parts.append("## Times\n\n" + _times(rows))
    if any(len(case.kinds) > 1 for case in cases):
        parts.append("## Kinds of text\n\n" + _kinds(cases))
    if any(row.by_position for row in rows):
        parts.append("## Acceptance by position\n\n" + _positions(rows))
    if any(case.cost is not None for case in cases):
        parts.append("## Cost of a round\n\n" + _costs(cases))
    parts.append("## Environment\n\n" + "\n".join(f"- {line}" for line in _environment(report)))
    return "\n\n".join(parts) + "\n"


def comparison_text(comparison: Comparison) -> str:
    """What `--compare` shows."""
    parts = [f"# A: {comparison.names[0]}, B: {comparison.names[1]}"]
    parts.append("\n".join(f"- {sentence}" for sentence in comparison.sentences))
    if comparison.warnings:
        parts.append("\n".join(f"- Careful: {warning}" for warning in comparison.warnings))
    header = ["model", "prompt", "drafts", "text", "what", "A", "B", "B / A", "verdict"]
    table = []
    for line in comparison.lines:
        tokens = line.what in ("decode", "prefill")
        unit, digits, factor = ("tok/s", 1, 1) if tokens else ("ms", 1, 1000)
        spreads = [f"{side.times(factor).text(digits)} {unit}" for side in (line.before, line.after)]
        place = [line.case.model, _length(line.case), shown_arm(line.arm), line.kind or "all", line.what]
        table.append([*place, *spreads, f"{line.change:.3f}", line.verdict])
    parts.append(_table(header, table))
    return "\n\n".join(parts) + "\n"


def _title(case: Case) -> str:
    return case.model if case.length is None else f"{case.model}, {case.length} prompt tokens"


def _length(case: Case) -> str:
    return "as it is" if case.length is None else str(case.length)


def _place(row: ArmFigures) -> list[str]:
    return [row.case.model, f"{row.prompt_tokens.median:.0f} tok", shown_arm(row.arm)]


def _speed(rows: Sequence[ArmFigures]) -> str:
    header = ["model", "prompt", "drafts", "tok/s", "times plain", "accepted", "tok/pass", "memory", "same text"]
    table = [
        [
            *_place(row),
            row.speed.tps.text(1),
            "" if row.speed.gain is None else row.speed.gain.text(2),
            "" if row.speed.accepted is None else f"{100 * row.speed.accepted:.0f} %",
            f"{row.speed.per_pass:.2f}",
            f"{row.peak_memory / _MB:,.0f} MB",
            _same(row),
        ]
        for row in rows
    ]
    return _table(header, table)


def _same(row: ArmFigures) -> str:
    if row.arm == 0:
        return ""
    if not row.partings:
        return f"yes ({row.compared} of {row.compared})"
    first = min(row.partings, key=lambda parting: parting.at)
    near = ", near-tie" if first.near_tie else ""
    same = row.compared - len(row.partings)
    return f"{same} of {row.compared}; token {first.at}, margin {first.margin:.2g}{near}"


def _times(rows: Sequence[ArmFigures]) -> str:
    waits = ["wait p50", "p95", "p99"]
    header = ["model", "prompt", "drafts", "prefill tok/s", "first token", "whole answer", *waits]
    table = [
        [
            *_place(row),
            row.prompt_tps.text(0),
            f"{row.first_token.times(1000).text(0)} ms",
            f"{row.latency.text(2)} s",
            *(f"{1000 * wait:.1f} ms" for wait in row.waits),
        ]
        for row in rows
    ]
    note = "A wait is the time between two moments at which text appears; the tokens of a round appear at once."
    return f"{_table(header, table)}\n\n{note}"


def _kinds(cases: Sequence[CaseFigures]) -> str:
    arms: list[Arm] = list(dict.fromkeys(row.arm for case in cases for row in case.arms))
    header = ["model", "prompt", "text", *(shown_arm(arm) for arm in arms)]
    table = []
    for case in cases:
        for kind in case.kinds:
            cells = [_kind_cell(case.arm(arm), kind) for arm in arms]
            table.append([case.case.model, _length(case.case), kind, *cells])
    return f"{_table(header, table)}\n\nPlain in tok/s; the others in times plain, with the share of drafts accepted."


def _kind_cell(row: ArmFigures | None, kind: str) -> str:
    speed: Speed | None = None if row is None else row.kinds.get(kind)
    if speed is None:
        return ""
    if speed.gain is None:
        return f"{speed.tps.text(1)} tok/s"
    accepted = "" if speed.accepted is None else f", {100 * speed.accepted:.0f} %"
    return f"{speed.gain.text(2)}{accepted}"


def _positions(rows: Sequence[ArmFigures]) -> str:
    drafted = [row for row in rows if row.by_position]
    most = max(len(row.by_position) for row in drafted)
    table = [
        [*_place(row), *(f"{100 * share:.0f} %" for share in row.by_position), *[""] * (most - len(row.by_position))]
        for row in drafted
    ]
    return _table(["model", "prompt", "drafts", *(f"{place}." for place in range(1, most + 1))], table)


def _costs(cases: Sequence[CaseFigures]) -> str:
    table = []
    for case in cases:
        if case.cost is None:
            continue
        for point in case.cost.points:
            row = case.arm(point.k)
            speed = "" if row is None else f"{row.speed.tps.median:.1f}"
            known = point.k <= len(case.accept)
            guess = f"{case.cost.speed(point.k, case.accept):.1f}" if known else ""
            place = [case.case.model, _length(case.case), str(point.k), str(point.rounds)]
            times = [f"{1000 * point.measured:.2f} ms", f"{1000 * point.predicted:.2f} ms"]
            table.append([*place, *times, speed, guess])
    header = ["model", "prompt", "K", "rounds", "measured", "a + b K", "tok/s measured", "tok/s predicted"]
    note = "Measured speeds also hold pauses of the machine, and rounds that the end of a run cut off."
    return f"{_table(header, table)}\n\n{note}"


def _environment(report: Report) -> Iterator[str]:
    place = report.environment
    yield f"{place['chip']}, {place['cores']} cores, {place['memory_bytes'] / 1e9:.1f} GB of memory, {place['system']}"
    versions = ", ".join(f"{name} {value or '(source)'}" for name, value in place["versions"].items())
    yield f"{versions}, Python {place['python']}"
    for model in report.models:
        yield _model(model)
    names = {"power_source": "power", "low_power_mode": "low power mode", "thermal_pressure": "thermal pressure"}
    for when, block in (("before", place), ("after", report.after)):
        known = [f"{name} {block[key]}" for key, name in names.items() if block.get(key) is not None]
        if block.get("load") is not None:
            known.append(f"load {block['load']}")
        if known:
            yield f"{when} the run: {', '.join(known)}"
    yield _asked(report.settings)


def _model(model: dict[str, Any]) -> str:
    drafter = "no drafter"
    if model.get("drafter"):
        drafter = f"drafter {model['drafter']} ({model.get('drafter_quantization')})"
    packed = f", keys and values in {model['kv_bits']} bits" if model.get("kv_bits") else ""
    compiled = "" if model.get("compiled", True) else ", rounds not compiled"
    where = f"{model.get('device')} in {model.get('dtype')}{packed}"
    sampling = model.get("sampling") or {}
    how = f"temperature {sampling.get('temp'):g}" if sampling.get("temp") else "greedy"
    return f"{model['name']}: stored as {model.get('quantization')}, computed on {where}, {drafter}{compiled}, {how}"


def _asked(settings: dict[str, Any]) -> str:
    texts, tokens = settings["texts"], settings["max_tokens"]
    repeated = f"{settings['repetitions']} repetition{'s' if settings['repetitions'] > 1 else ''}"
    return (
        f"{texts} texts ({', '.join(settings['suite'])}), {tokens} new tokens each, {repeated}, seed {settings['seed']}"
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table whose columns are aligned; a first column that says the same everywhere is left out."""
    grid = [list(header), *([_cell(value) for value in row] for row in rows)]
    if len({row[0] for row in grid[1:]}) == 1 and header[0] == "model":
        grid = [row[1:] for row in grid]
    widths = [max(len(row[at]) for row in grid) for at in range(len(grid[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in grid
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def _cell(value: str) -> str:
    return value.replace("|", "\\|").replace("\n", " ")


_WITHOUT = frozenset({"tokens", "rounds", "parting"})


def start_line(report: Report) -> str:
    """The first line: everything but results."""
    return _line({"type": "start", **report.head()})


def result_line(result: Sample | Checking) -> str:
    """A line as soon as something is measured."""
    kind = "sample" if isinstance(result, Sample) else "checking"
    return _line({"type": kind, **result.to_dict()})


def end_line(report: Report) -> str:
    """The last line: what follows from the others."""
    return _line({"type": "end", **report.tail()})


def samples_csv(report: Report) -> str:
    """One row for each sample, without tokens and rounds."""
    rows = [
        {
            **{key: value for key, value in sample.to_dict().items() if key not in _WITHOUT},
            "drafted": sum(step.drafted for step in sample.rounds),
            "accepted": sum(step.accepted for step in sample.rounds),
            "passes": len(sample.rounds),
            "different_from": None if sample.parting is None else sample.parting.at,
        }
        for sample in report.samples
    ]
    return _csv(list(rows[0]) if rows else [], rows)


def comparison_lines(comparison: Comparison) -> str:
    """A JSON line for each figure, and the verdict last."""
    lines = [_line({"type": "line", **line.to_dict()}) for line in comparison.lines]
    whole = comparison.to_dict()
    del whole["lines"]
    return "".join([*lines, _line({"type": "end", **whole})])


def comparison_csv(comparison: Comparison) -> str:
    """A row for each figure."""
    rows = []
    for line in comparison.lines:
        row = line.to_dict()
        for side in ("a", "b"):
            row |= {f"{side}_{key}": value for key, value in row.pop(side).items()}
        rows.append(row)
    return _csv(list(rows[0]), rows)


def _csv(header: Sequence[str], rows: Iterable[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, header, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _line(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"
