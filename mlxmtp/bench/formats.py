"""Formats of reports and comparisons: markdown with the verdict first and aligned tables, JSON, JSON lines, CSV."""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from operator import attrgetter
from typing import Any

from mlxmtp.bench import Format
from mlxmtp.bench.compare import Comparison
from mlxmtp.bench.report import Report, to_json
from mlxmtp.bench.samples import Case, DraftSetting, draft_label
from mlxmtp.bench.summary import CaseSummary, Row, verdict


def report_text(report: Report, form: Format = "md") -> str:
    """Return the whole report. JSON lines are written one by one instead: `json_line`."""
    if form == "json":
        return json.dumps(report.to_json(), ensure_ascii=False) + "\n"
    return _samples_csv(report) if form == "csv" else _report_markdown(report)


def comparison_text(comparison: Comparison, form: Format = "md") -> str:
    """Return the comparison; JSON lines have the verdict last."""
    if form == "md":
        return _comparison_markdown(comparison)
    whole = to_json(comparison)
    if form == "json":
        return json.dumps(whole, ensure_ascii=False, indent=1) + "\n"
    lines = whole.pop("lines")
    if form == "jsonl":
        return "".join([*(json_line("line", line) for line in lines), json_line("end", whole)])
    for line in lines:
        for side in ("a", "b"):
            line |= {f"{side}_{key}": value for key, value in line.pop(side).items()}
    return _csv(lines)


def json_line(kind: str, value: dict[str, Any]) -> str:
    """Return a JSON line: `start` (everything but results), `sample`, `checking` (a timing) or `end` (conclusions)."""
    return json.dumps({"type": kind, **value}, ensure_ascii=False) + "\n"


def _samples_csv(report: Report) -> str:
    """Return a row for each sample, without tokens and rounds."""
    rows = []
    for sample in report.samples:
        row = {key: value for key, value in to_json(sample).items() if key not in ("tokens", "rounds", "parting")}
        row |= {name: sum(getattr(step, name) for step in sample.rounds) for name in ("drafted", "accepted")}
        row |= {"passes": len(sample.rounds), "different_from": sample.divergence and sample.divergence.at}
        rows.append(row)
    return _csv(rows)


def _csv(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([list(rows[0]), *(row.values() for row in rows)])
    return text.getvalue()


def _report_markdown(report: Report) -> str:
    """Return the verdicts, then the tables, then the environment."""
    cases = report.summaries()
    parts = ["# mlxmtp bench"]
    if not report.complete:
        parts.append("Interrupted: this is what had been measured by then.")
    for case in cases:
        title = f"## {case.case.title}\n\n" if len(cases) > 1 else ""
        parts.append(title + _bullets(verdict(case)))
    rows = [row for case in cases for row in case.rows]
    parts += [f"## Speed\n\n{_speeds(rows)}", f"## Times\n\n{_times(rows)}"]
    if any(len(case.kinds) > 1 for case in cases):
        parts.append(f"## Kinds of text\n\n{_kinds(cases)}")
    if any(row.acceptance_by_position for row in rows):
        parts.append(f"## Acceptance by position\n\n{_positions(rows)}")
    if any(case.cost is not None for case in cases):
        parts.append(f"## Cost of a round\n\n{_costs(cases)}")
    return "\n\n".join([*parts, f"## Environment\n\n{_bullets(_environment(report))}"]) + "\n"


def _comparison_markdown(comparison: Comparison) -> str:
    """Return the verdict, then what makes the runs hard to compare, then a table."""
    parts = [f"# A: {comparison.a}, B: {comparison.b}", _bullets(comparison.verdict)]
    if comparison.warnings:
        parts.append(_bullets(f"Careful: {warning}" for warning in comparison.warnings))
    header = ["model", "prompt", "drafts", "text", "what", "A", "B", "B / A", "verdict"]
    table = []
    for line in comparison.lines:
        unit, factor = ("tok/s", 1) if line.what in ("decode", "prefill") else ("ms", 1000)
        place = [line.case.model, _length(line.case), draft_label(line.num_draft_tokens), line.kind or "all", line.what]
        values = [f"{side.text(1, factor)} {unit}" for side in (line.a, line.b)]
        table.append([*place, *values, f"{line.b_over_a:.3f}", line.verdict])
    parts.append(markdown_table(header, table))
    return "\n\n".join(parts) + "\n"


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _length(case: Case) -> str:
    return "as it is" if case.length is None else str(case.length)


def _place(row: Row) -> list[str]:
    return [row.case.model, f"{row.prompt_tokens.median:.0f} tok", draft_label(row.num_draft_tokens)]


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f} %"


def _speeds(rows: Sequence[Row]) -> str:
    header = ["model", "prompt", "drafts", "tok/s", "times plain", "accepted", "tok/pass", "memory", "same text"]
    table = []
    for row in rows:
        speed, same = row.speed, "" if row.same_text is None else f"yes ({row.texts_compared} of {row.texts_compared})"
        if row.divergences:
            first = min(row.divergences, key=attrgetter("at"))
            near = ", near-tie" if first.near_tie else ""
            same = f"{row.texts_compared - row.texts_different} of {row.texts_compared}"
            same += f"; token {first.at}, margin {first.margin:.2g}{near}"
        gain = "" if speed.times_plain is None else speed.times_plain.text(2)
        accepted = [_percent(speed.acceptance), f"{speed.tokens_per_pass:.2f}"]
        memory = f"{row.peak_memory / 1e6:,.0f} MB"
        table.append([*_place(row), speed.generation_tps.text(1), gain, *accepted, memory, same])
    return markdown_table(header, table)


def _times(rows: Sequence[Row]) -> str:
    waits = ["wait p50", "p95", "p99"]
    header = ["model", "prompt", "drafts", "prefill tok/s", "first token", "whole answer", *waits]
    table = [
        [
            *_place(row),
            row.prompt_tps.text(0),
            f"{row.first_token_seconds.text(0, 1000)} ms",
            f"{row.total_seconds.text(2)} s",
            *(f"{1000 * wait:.1f} ms" for wait in row.wait_seconds.values()),
        ]
        for row in rows
    ]
    note = "A wait is the time between two moments at which text appears; the tokens of a round appear at once."
    return f"{markdown_table(header, table)}\n\n{note}"


def _kinds(cases: Sequence[CaseSummary]) -> str:
    def cell(case: CaseSummary, length: DraftSetting, kind: str) -> str:
        row = case.row(length)
        speed = None if row is None else row.kinds.get(kind)
        if speed is None or speed.times_plain is None:
            return "" if speed is None else f"{speed.generation_tps.text(1)} tok/s"
        return ", ".join(filter(None, (speed.times_plain.text(2), _percent(speed.acceptance))))

    lengths = list(dict.fromkeys(row.num_draft_tokens for case in cases for row in case.rows))
    table = [
        [case.case.model, _length(case.case), kind, *(cell(case, length, kind) for length in lengths)]
        for case in cases
        for kind in case.kinds
    ]
    told = markdown_table(["model", "prompt", "text", *map(draft_label, lengths)], table)
    return f"{told}\n\nPlain in tok/s; the others in times plain, with the share of drafts accepted."


def _positions(rows: Sequence[Row]) -> str:
    drafted = [row for row in rows if row.acceptance_by_position]
    most = max(len(row.acceptance_by_position) for row in drafted)
    table = []
    for row in drafted:
        shares = [_percent(share) for share in row.acceptance_by_position]
        table.append([*_place(row), *shares, *[""] * (most - len(shares))])
    return markdown_table(["model", "prompt", "drafts", *(f"{place}." for place in range(1, most + 1))], table)


def _costs(cases: Sequence[CaseSummary]) -> str:
    table = []
    for case in cases:
        for point in () if case.cost is None else case.cost.points:
            row, known = case.row(point.k), point.k <= len(case.accept)
            speed = "" if row is None else f"{row.speed.generation_tps.median:.1f}"
            predicted = f"{case.cost.speed(point.k, case.accept):.1f}" if case.cost is not None and known else ""
            place = [case.case.model, _length(case.case), str(point.k), str(point.rounds)]
            times = [f"{1000 * point.measured:.2f} ms", f"{1000 * point.predicted:.2f} ms"]
            table.append([*place, *times, speed, predicted])
    header = ["model", "prompt", "K", "rounds", "measured", "a + b K", "tok/s measured", "tok/s predicted"]
    note = "Measured speeds also hold pauses of the machine, and rounds that the end of a run cut off."
    return f"{markdown_table(header, table)}\n\n{note}"


def _environment(report: Report) -> Iterator[str]:
    place = report.environment
    yield f"{place.chip}, {place.cores} cores, {place.memory_bytes / 1e9:.1f} GB of memory, {place.system}"
    versions = ", ".join(f"{name} {value or '(source)'}" for name, value in place.versions.items())
    yield f"{versions}, Python {place.python}"
    for model in report.models:
        drafter = f"drafter {model.drafter} ({model.drafter_quantization})" if model.drafter else "no drafter"
        quantized = f", keys and values in {model.kv_bits} bits" if model.kv_bits else ""
        compiled = "" if model.compiled else ", rounds not compiled"
        compiled += ", exact text" if model.exact else ""
        sampling = f"temperature {model.sampling.temp:g}" if model.sampling.temp else "greedy"
        computed = f"computed on {model.device} in {model.dtype}{quantized}"
        yield f"{model.name}: stored as {model.quantization}, {computed}, {drafter}{compiled}, {sampling}"
    titles = {"power_source": "power", "low_power_mode": "low power mode", "thermal_pressure": "thermal pressure"}
    for when, conditions in (("before", place.conditions), ("after", report.after)):
        known = {titles.get(name, name): value for name, value in to_json(conditions).items() if value is not None}
        if known:
            yield f"{when} the run: {', '.join(f'{name} {value}' for name, value in known.items())}"
    asked, plan = report.settings, report.settings.plan
    repeated = f"{plan.repetitions} repetition{'s' if plan.repetitions > 1 else ''}"
    suites = ", ".join(asked.suite)
    yield f"{asked.texts} texts ({suites}), {plan.max_tokens} new tokens each, {repeated}, seed {asked.seed}"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a markdown table with aligned columns, without a first column that says the same everywhere."""
    grid = [list(header), *([value.replace("|", "\\|").replace("\n", " ") for value in row] for row in rows)]
    if len({row[0] for row in grid[1:]}) == 1 and header[0] == "model":
        grid = [row[1:] for row in grid]
    widths = [max(map(len, column)) for column in zip(*grid, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in grid
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])
