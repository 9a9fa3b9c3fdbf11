"""A report as data: what was asked, where, by whom, every sample, and what follows from them. JSON in and out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mlxmtp.bench.samples import Checking, Sample
from mlxmtp.bench.summary import CaseFigures, figures
from mlxmtp.bench.verdict import verdict
from mlxmtp.errors import UsageError

SCHEMA = "mlxmtp-bench/1"
"""Name and version of the form that `schema.json` describes; the number changes when old readers would fail."""


@dataclass(slots=True)
class Report:
    """One run. `complete` is False after Ctrl-C; the tables are as the schema has them."""

    created: str
    settings: dict[str, Any]
    environment: dict[str, Any]
    models: list[dict[str, Any]] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    checking: list[Checking] = field(default_factory=list)
    complete: bool = False
    after: dict[str, Any] = field(default_factory=dict)

    def add(self, result: Sample | Checking) -> None:
        """Take in what a run yields."""
        if isinstance(result, Sample):
            self.samples.append(result)
        else:
            self.checking.append(result)

    def figures(self) -> list[CaseFigures]:
        """What follows from the samples."""
        return figures(self.samples, self.checking)

    def head(self) -> dict[str, Any]:
        """What is known before the first sample."""
        return {
            "schema": SCHEMA,
            "created": self.created,
            "settings": self.settings,
            "environment": self.environment,
        }

    def tail(self) -> dict[str, Any]:
        """What is known after the last."""
        cases = self.figures()
        return {
            "complete": self.complete,
            "after": self.after,
            "models": self.models,
            "checking": [one.to_dict() for one in self.checking],
            "summary": [row.to_dict() for case in cases for row in case.arms],
            "cost": [cost_to_dict(case) for case in cases if case.cost is not None],
            "verdict": [
                {"model": case.case.model, "length": case.case.length, "sentences": verdict(case)} for case in cases
            ],
        }

    def to_dict(self) -> dict[str, Any]:
        """All of it, as the schema has it."""
        return {**self.head(), **self.tail(), "samples": [sample.to_dict() for sample in self.samples]}


def cost_to_dict(case: CaseFigures) -> dict[str, Any]:
    """The cost model of a case, seconds."""
    cost = case.cost
    assert cost is not None, "only asked where there is a cost model"
    return {
        "model": case.case.model,
        "length": case.case.length,
        "base_seconds": cost.base,
        "step_seconds": cost.step,
        "drafter_seconds": cost.drafter,
        "checking_seconds": cost.checking,
        "acceptance": list(case.accept),
        "best": cost.best(case.accept),
        "points": [asdict(point) for point in cost.points],
        "predicted_tps": [cost.speed(k, case.accept) for k in range(len(case.accept) + 1)],
    }


def read_report(path: Path) -> Report:
    """A report written with `--format json`. Raises UsageError for anything else."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}.") from None
    except ValueError:
        raise UsageError(f"{path} is not JSON: compare reports made with --format json -o FILE.") from None
    if not isinstance(data, Mapping) or data.get("schema") != SCHEMA:
        raise UsageError(f"{path} is no report of this program: make one with mlxmtp bench --format json -o FILE.")
    try:
        report = Report(
            str(data["created"]),
            dict(data["settings"]),
            dict(data["environment"]),
            list(data["models"]),
            [Sample.from_dict(row) for row in data["samples"]],
            [Checking.from_dict(row) for row in data["checking"]],
            bool(data["complete"]),
            dict(data["after"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{path} is a damaged report ({type(error).__name__}: {error}): measure again.") from None
    if not report.samples:
        raise UsageError(f"{path} holds no samples: measure again.")
    return report
