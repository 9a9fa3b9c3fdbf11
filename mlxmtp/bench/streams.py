"""Several answers at a time, measured: speed of all together and of each, times that a reader waits, plain and drafted.

All jobs ask the same prompts for as many tokens each, so they differ in how many answers share the rounds and in who
drafts. Texts are compared: whoever shares a round must not change a text.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle, islice, product
from statistics import median
from typing import TYPE_CHECKING, Any

from mlxmtp.bench.formats import markdown_table
from mlxmtp.bench.report import Plan, to_json
from mlxmtp.bench.runner import OnProgress, Prompt
from mlxmtp.bench.samples import DraftSetting, draft_label
from mlxmtp.bench.summary import Spread, quantile, spread
from mlxmtp.engine.events import Text, Thinking
from mlxmtp.engine.params import Params

if TYPE_CHECKING:
    from mlxmtp.engine.answer import Answer
    from mlxmtp.engine.model import Model
    from mlxmtp.engine.seat import Seat
    from mlxmtp.engine.streams import Streams

SCHEMA = "mlxmtp-bench-streams/1"
_PERCENTS = (50, 95, 99)


@dataclass(frozen=True, slots=True)
class Job:
    """All prompts answered once, at most ``streams`` at a time.

    ``most`` were in rounds at a time: fewer where memory does not hold more, or answers cannot share rounds.
    ``first_text`` are seconds from the place of an answer among those that run to its first text, ``between`` those
    between two pieces of text of one answer.
    """

    model: str
    streams: int
    num_draft_tokens: DraftSetting
    repetition: int
    most: int
    seconds: float
    answers: tuple[tuple[int, ...], ...] = field(repr=False)
    first_text: tuple[float, ...]
    between: tuple[float, ...]
    each: tuple[float, ...]
    """Tokens per second of every answer, from its place to its end."""

    @property
    def tokens(self) -> int:
        return sum(map(len, self.answers))

    @property
    def tps(self) -> float:
        """Tokens per second of all answers together, reading of prompts included."""
        return self.tokens / self.seconds


class _Clock:
    """The times of one answer."""

    def __init__(self) -> None:
        self.begun = self.last = time.perf_counter()
        self.first: float | None = None
        self.between: list[float] = []

    def text(self) -> None:
        now = time.perf_counter()
        if self.first is None:
            self.first = now - self.begun
        else:
            self.between.append(now - self.last)
        self.last = now


def run(model: Model, streams: Streams, prompts: Sequence[Prompt], params: Params) -> dict[str, Any]:
    """Answer the prompts on `streams`, and return the fields of a `Job` that were measured."""
    waiting, clocks, ended = iter(enumerate(prompts)), {}, {}
    streams.most = 0
    began = time.perf_counter()
    while True:
        for index, prompt in islice(waiting, streams.parallel - len(streams.running)):
            clocks[index] = _Clock()
            streams.begin(partial(_ask, model, prompt, params), index)
        if not streams.running:
            break
        for running, event in streams.step():
            if isinstance(event, Exception):
                raise event
            if isinstance(event, Text | Thinking):
                clocks[running.tag].text()
            ended[running.tag] = running.answer, time.perf_counter()
    seconds = time.perf_counter() - began
    order = range(len(prompts))
    return {
        "most": streams.most,
        "seconds": seconds,
        "answers": tuple(tuple(ended[i][0].tokens) for i in order),
        "first_text": tuple(first for i in order if (first := clocks[i].first) is not None),
        "between": tuple(gap for i in order for gap in clocks[i].between),
        "each": tuple(len(ended[i][0].tokens) / (ended[i][1] - clocks[i].begun) for i in order),
    }


def _ask(model: Model, prompt: Prompt, params: Params, seat: Seat) -> Answer:
    return model.seated(seat).stream_ids(prompt.ids, params, media=prompt.media)


def measure(
    model: Model,
    name: str,
    prompts: Sequence[Prompt],
    params: Callable[[DraftSetting], Params],
    plan: Plan,
    counts: Sequence[int],
    on_progress: OnProgress,
) -> Iterator[Job]:
    """Yield a job for every repetition, number of streams and draft length, in turns, after warm-ups.

    There are two prompts for each of the most streams, the given ones over and over.
    """
    asked = list(islice(cycle(prompts), 2 * max(counts)))
    lengths: tuple[DraftSetting, ...] = plan.num_draft_tokens if model.drafter is not None else (0,)
    kept = {count: model.streams(count) for count in counts}
    try:
        done = 0
        for repetition in range(-plan.warmups, plan.repetitions):
            for count, drafts in product(counts, lengths):
                what = f"{name}: {count} at a time, {draft_label(drafts)}"
                on_progress(f"{what}, warm-up" if repetition < 0 else what, done)
                if plan.cooldown:
                    time.sleep(plan.cooldown)
                found = run(model, kept[count], asked, params(drafts))
                if repetition >= 0:
                    done += 1
                    yield Job(name, count, drafts, repetition, **found)
    finally:
        for streams in kept.values():
            streams.close()


@dataclass(frozen=True, slots=True)
class Row:
    """The jobs of one number of streams and one draft length: medians, percentiles over all their answers.

    ``most``: of several jobs the fewest.
    ``gain``: in units of one plain answer after the other; ``draft_gain``: of the plain ones of as many at a time.
    """

    model: str
    streams: int
    num_draft_tokens: DraftSetting
    most: int
    tps: Spread
    each_tps: float
    gain: float | None
    draft_gain: float | None
    first_text_ms: dict[str, float]
    between_ms: dict[str, float]


def rows(jobs: Sequence[Job]) -> list[Row]:
    """Return what the jobs come to, in the order of models and streams."""
    arms: dict[tuple[str, int, DraftSetting], list[Job]] = {}
    for job in jobs:
        arms.setdefault((job.model, job.streams, job.num_draft_tokens), []).append(job)
    speed = {arm: found for arm, jobs_ in arms.items() if (found := spread(job.tps for job in jobs_)) is not None}

    def ratio(arm: tuple[str, int, DraftSetting], base: tuple[str, int, DraftSetting]) -> float | None:
        return speed[arm].median / speed[base].median if base in speed else None

    return [
        Row(
            *arm,
            min(job.most for job in found),
            speed[arm],
            median(one for job in found for one in job.each),
            ratio(arm, (arm[0], 1, 0)),
            ratio(arm, (arm[0], arm[1], 0)),
            _percentiles([one for job in found for one in job.first_text]),
            _percentiles([one for job in found for one in job.between]),
        )
        for arm, found in arms.items()
    ]


def different(jobs: Sequence[Job]) -> int:
    """Return how many answers differ from those of the model's first job to the same prompt."""
    first: dict[str, Job] = {}
    return sum(
        one != same
        for job in jobs
        for one, same in zip(job.answers, first.setdefault(job.model, job).answers, strict=True)
    )


def to_markdown(jobs: Sequence[Job], *, complete: bool) -> str:
    """Return a table with a sentence about the texts."""
    found = rows(jobs)
    header = ["model", "at a time", "drafts", "tok/s together", "of one", "of plain", "tok/s each"]
    header += ["first text p50/p95", "between texts p50/p95/p99"]
    body = [
        [
            row.model, _at_a_time(row), draft_label(row.num_draft_tokens), row.tps.text(1), _times(row.gain),
            _times(row.draft_gain), f"{row.each_tps:.1f}",
            " / ".join(f"{row.first_text_ms[p]:.0f}" for p in ("p50", "p95") if row.first_text_ms) + " ms",
            " / ".join(f"{ms:.1f}" for ms in row.between_ms.values()) + " ms",
        ]
        for row in found
    ]  # fmt: skip
    count, others = sum(len(job.answers) for job in jobs), different(jobs)
    same = (
        f"All {count} answers are the same however many ran at a time" if not others else f"{others} of {count} differ"
    )
    parts = ["# mlxmtp bench --streams"]
    if not complete:
        parts.append("Interrupted: this is what had been measured by then.")
    return "\n\n".join([*parts, f"{same}.", markdown_table(header, body)]) + "\n"


def to_dict(jobs: Sequence[Job], *, complete: bool) -> dict[str, Any]:
    """Return the JSON of the jobs, without their tokens, and of what follows from them."""
    each = [{key: value for key, value in to_json(job).items() if key != "answers"} for job in jobs]
    samples = [{**one, "tokens": job.tokens} for one, job in zip(each, jobs, strict=True)]
    summary = [to_json(row) for row in rows(jobs)]
    return {"schema": SCHEMA, "complete": complete, "different": different(jobs), "summary": summary, "jobs": samples}


def _at_a_time(row: Row) -> str:
    return f"{row.streams}" if row.most == row.streams else f"{row.streams} (ran: {row.most})"


def _percentiles(seconds: Sequence[float]) -> dict[str, float]:
    return {f"p{p}": 1000 * quantile(seconds, p / 100) for p in _PERCENTS} if seconds else {}


def _times(value: float | None) -> str:
    return "" if value is None else f"x{value:.2f}"
