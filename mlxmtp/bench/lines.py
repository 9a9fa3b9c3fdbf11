"""A report line by line: JSON lines while it is measured, and a table of samples for spreadsheets."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from typing import Any

from mlxmtp.bench.compare import Comparison
from mlxmtp.bench.report import Report
from mlxmtp.bench.samples import Checking, Sample

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
