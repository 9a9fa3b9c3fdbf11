"""A report as values: settings, environment, models and every sample, with what follows from them. JSON in and out."""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import Field, dataclass, field, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from mlxmtp.bench.cost import Cost
from mlxmtp.bench.environment import Conditions, Environment
from mlxmtp.bench.samples import Case, DrafterTiming, DraftSetting, Sample
from mlxmtp.bench.summary import CaseSummary, summarize, verdict
from mlxmtp.errors import UsageError
from mlxmtp.files import read_whole

SCHEMA = "mlxmtp-bench/1"
"""Name and version of the form that `schema.json` describes; the number changes when old readers would fail."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The runs to measure: `lengths` are prompt tokens (None: as the texts are), `cooldown` seconds before each run.

    `num_draft_tokens` begins with 0: everything is compared with plain decoding.
    """

    lengths: tuple[int | None, ...]
    max_tokens: int
    repetitions: int
    warmups: int
    cooldown: float
    num_draft_tokens: tuple[DraftSetting, ...]


@dataclass(frozen=True, slots=True)
class RunSettings:
    """The settings asked for; None is left to the model."""

    suite: tuple[str, ...]
    texts: int
    plan: Plan = field(metadata={"inline": True})
    temp: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    seed: int
    think: bool
    system: str | None
    schema: str | None = None  # what answers are held to
    image_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class SamplingUsed:
    """The sampling of the runs; temp 0 is greedy."""

    temp: float
    top_p: float
    top_k: int
    min_p: float
    seed: int


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A measured model: how it is stored, and how it was run."""

    name: str
    quantization: str
    drafter: str | None
    drafter_quantization: str | None
    draft_bits: int | None
    kv_bits: int | None
    device: str
    dtype: str
    compiled: bool
    sampling: SamplingUsed
    exact: bool | None = None


Result = ModelInfo | Sample | DrafterTiming
"""A result of the runner; each model comes before its samples."""


@dataclass(slots=True)
class Report:
    """One run of a benchmark. `complete` is False after Ctrl-C; `after` are the conditions at its end."""

    created: str
    settings: RunSettings
    environment: Environment
    complete: bool = False
    after: Conditions = field(default_factory=Conditions)
    models: list[ModelInfo] = field(default_factory=list)
    timings: list[DrafterTiming] = field(default_factory=list, metadata={"key": "checking"})
    samples: list[Sample] = field(default_factory=list)

    def add(self, result: Result) -> None:
        lists: dict[type, list[Any]] = {ModelInfo: self.models, Sample: self.samples, DrafterTiming: self.timings}
        lists[type(result)].append(result)

    def summaries(self) -> list[CaseSummary]:
        return summarize(self.samples, self.timings)

    def start(self) -> dict[str, Any]:
        """Return the JSON of what is known before the first sample."""
        settings, environment = to_json(self.settings), to_json(self.environment)
        return {"schema": SCHEMA, "created": self.created, "settings": settings, "environment": environment}

    def end(self) -> dict[str, Any]:
        """Return the JSON of what is known after the last sample."""
        cases = self.summaries()
        found = {
            "complete": self.complete,
            "after": self.after,
            "models": self.models,
            "checking": self.timings,
            "summary": [row for case in cases for row in case.rows],
            "cost": [_cost(case.case, case.cost, case.accept) for case in cases if case.cost is not None],
            "verdict": [{**to_json(case.case), "sentences": verdict(case)} for case in cases],
        }
        return {key: to_json(value) for key, value in found.items()}

    def to_json(self) -> dict[str, Any]:
        """Return all of it as the schema has it."""
        return {**self.start(), **self.end(), "samples": to_json(self.samples)}


def _cost(case: Case, cost: Cost, accept: tuple[float, ...]) -> dict[str, Any]:
    return {
        **to_json(case),
        "base_seconds": cost.base,
        "step_seconds": cost.step,
        "drafter_seconds": cost.drafter,
        "checking_seconds": cost.verify,
        "acceptance": accept,
        "best": cost.best(accept),
        "points": cost.points,
        "predicted_tps": [cost.speed(k, accept) for k in range(len(accept) + 1)],
    }


def read_report(path: Path) -> Report:
    """Read a report written with `--format json`. Raises UsageError for anything else."""
    try:
        data = json.loads(read_whole(path))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}.") from None
    except (ValueError, RecursionError):
        raise UsageError(f"{path} is not JSON: compare reports made with --format json -o FILE.") from None
    schema = str(data.get("schema")) if isinstance(data, Mapping) else ""
    if schema.startswith("mlxmtp-bench-"):  # of several answers at a time, of servers, or a comparison
        raise UsageError(f"{path} has the form {schema}: --compare takes {SCHEMA}, of one answer at a time here.")
    if schema != SCHEMA:
        raise UsageError(f"{path} is no report of this program: make one with mlxmtp bench --format json -o FILE.")
    try:
        report: Report = from_json(Report, data)
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{path} is a damaged report ({type(error).__name__}: {error}): measure again.") from None
    if not report.samples:
        raise UsageError(f"{path} holds no samples: measure again.")
    return report


def to_json(value: Any, digits: int | None = None) -> Any:
    """Return dataclasses as objects and tuples as arrays, numbers rounded to `digits` if given.

    Metadata of a field may rename it (`key`, None: not written), take its own fields in its place (`inline`), or
    round its numbers (`digits`).
    """
    if isinstance(value, float) and digits is not None:
        return round(value, digits)
    if isinstance(value, dict):
        return {key: to_json(item, digits) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item, digits) for item in value]
    if not is_dataclass(value):
        return value
    found: dict[str, Any] = {}
    for one in fields(value):
        item, key = to_json(getattr(value, one.name), one.metadata.get("digits")), one.metadata.get("key", one.name)
        if one.metadata.get("inline"):
            found |= item
        elif key is not None:
            found[key] = item
    return found


def from_json(kind: Any, value: Any) -> Any:
    """Return JSON as a value of the type `kind`. Raises KeyError, TypeError or ValueError where it is none."""
    origin, arguments = get_origin(kind), get_args(kind)
    found: Any = value
    if isinstance(kind, type) and is_dataclass(kind):
        found = kind(**{one.name: _field_from_json(one, value) for one in fields(kind) if one.init})
    elif origin in (Union, UnionType):
        for one in arguments:
            with suppress(KeyError, TypeError, ValueError):
                return from_json(one, value)
        raise TypeError(f"{value!r:.40} is no {kind}")
    elif origin is Literal or kind is NoneType:
        if value not in (arguments or (None,)):
            raise ValueError(f"{value!r:.40} is none of {arguments}")
    elif origin is dict:
        found = {key: from_json(arguments[1], item) for key, item in value.items()}
    elif origin in (list, tuple):
        found = origin(from_json(arguments[0], item) for item in value)
    elif issubclass(kind, tuple):  # a NamedTuple is an array
        hints = kind.__annotations__.values()
        found = kind(*(from_json(hint, item) for hint, item in zip(hints, value, strict=True)))
    elif isinstance(value, bool) != (kind is bool) or not isinstance(value, (int, float) if kind is float else kind):
        raise TypeError(f"{value!r:.40} is no {kind.__name__}")
    return found


def _field_from_json(one: Field[Any], row: Mapping[str, Any]) -> Any:
    """Read a field of the object `row`; what an older report lacks is None where the type has it."""
    if one.metadata.get("inline"):
        return from_json(one.type, row)
    key = one.metadata.get("key", one.name)
    return None if key not in row and NoneType in get_args(one.type) else from_json(one.type, row[key])
