"""The benchmark of servers: what a client sees, by its own clock, from the request to the report."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from mlxmtp.app.benchmark import Request, deliver, measured_params
from mlxmtp.app.open import Opener, OpenModel
from mlxmtp.bench import suite
from mlxmtp.bench.formats import markdown_table
from mlxmtp.bench.runner import OnProgress
from mlxmtp.bench.summary import spread
from mlxmtp.chat.attach import read_reference
from mlxmtp.engine.events import End
from mlxmtp.errors import UsageError
from mlxmtp.settings import Loaded

SCHEMA = "mlxmtp-bench-endpoints/1"


@dataclass(frozen=True, slots=True)
class Run:
    """One answer of a server. Seconds to the first text from the request on; tokens as the server counts them."""

    model: str
    kind: str
    prompt: str
    repetition: int
    prompt_tokens: int
    first_text: float
    tokens: int
    tps: float
    tokens_per_pass: float


class EndpointBenchmark:
    """`bench -m ENDPOINT`: every text, one after the other, as the server answers it to anybody."""

    def __init__(
        self,
        loaded: Loaded,
        request: Request,
        openers: Sequence[Opener],
        *,
        on_progress: Callable[[str], None],
        write: Callable[[str], None],
    ) -> None:
        """Ask the servers for their models. Raises MlxmtpError for whatever cannot be measured."""
        if request.streams or request.plot is not None or request.form not in ("md", "json"):
            raise UsageError("A server's speeds make a table or JSON: leave out --streams, --plot, csv and jsonl.")
        if any(length is not None for length in request.plan.lengths):
            raise UsageError("Only the server knows its tokens: leave out -p, or give texts of your own with --suite.")
        settings, self._request, self._write = loaded.settings, request, write
        system = read_reference(settings.system, loaded.prompts) if settings.system else ""
        self._texts = suite.read_suites(request.suites or suite.SUITES, system)
        self._params = measured_params(settings, request.plan.max_tokens)
        self._models: list[OpenModel] = []
        for opener in openers:
            target = opener.target(None)
            on_progress(f"{target.name}: asking {target.folder}")
            self._models.append(opener.open(target, None, settings))
        self.samples: list[Run] = []
        self.cautions: list[str] = []
        self._created = datetime.now(UTC).isoformat(timespec="seconds")
        self._complete = False

    @property
    def runs(self) -> int:
        """The number of measured answers."""
        return len(self._models) * len(self._texts) * self._request.plan.repetitions

    def run(self, starting: Callable[[int], OnProgress]) -> None:
        """Measure; `starting` returns what a server reports to, given the answers that were measured before it."""
        plan = self._request.plan
        for opened in self._models:
            before, name = len(self.samples), opened.target.name
            on_progress = starting(before)
            for repetition in range(-plan.warmups, plan.repetitions):
                for text in self._texts[: 1 if repetition < 0 else None]:
                    warms = ", warm-up" if repetition < 0 else ""
                    on_progress(f"{name}: {text.kind}/{text.name}{warms}", len(self.samples) - before)
                    time.sleep(plan.cooldown)
                    found = self._answered(opened, text)
                    if repetition >= 0:
                        self.samples.append(Run(name, text.kind, text.name, repetition, **found))
        self._complete = True

    def _answered(self, opened: OpenModel, text: suite.Text) -> Mapping[str, Any]:
        answer = opened.model.stream(text.messages(), self._params)
        stats = next(event.stats for event in answer if isinstance(event, End))
        return {
            "prompt_tokens": stats.prompt_tokens,
            "first_text": stats.time_to_first_token,
            "tokens": stats.generation_tokens,
            "tps": stats.generation_tps,
            "tokens_per_pass": stats.tokens_per_pass,
        }

    def finish(self) -> None:
        """Write the report of what was measured."""
        output, text = self._request.output, to_markdown(self.samples, complete=self._complete)
        whole = text
        if self._request.form == "json":
            head = {"schema": SCHEMA, "created": self._created, "complete": self._complete}
            whole = json.dumps({**head, "runs": [asdict(one) for one in self.samples]}, ensure_ascii=False) + "\n"
        deliver(whole, text, output, self._write)


def to_markdown(runs: Sequence[Run], *, complete: bool) -> str:
    """Return a table by server and kind of text: medians, with the lowest and highest."""
    groups: dict[tuple[str, str], list[Run]] = {}
    for one in runs:
        groups.setdefault((one.model, one.kind), []).append(one)
    body = []
    for (model, kind), found in groups.items():
        speeds, waits = spread(one.tps for one in found), spread(1000 * one.first_text for one in found)
        passes = spread(one.tokens_per_pass for one in found if one.tokens_per_pass)
        assert speeds is not None
        assert waits is not None
        row = [model, kind, str(len(found)), speeds.text(1), f"{waits.text()} ms", passes.text(2) if passes else "?"]
        body.append(row)
    header = ["model", "text", "answers", "tok/s", "first text", "tokens per pass"]
    parts = ["# mlxmtp bench", "Measured by the client's clock; tokens as the server counts them."]
    if not complete:
        parts.append("Interrupted: this is what had been measured by then.")
    return "\n\n".join([*parts, markdown_table(header, body)]) + "\n"
