"""The benchmark of several answers at a time, from the request to the report."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

from mlxmtp.app.benchmark import Request, deliver, measured_params, subjects_of
from mlxmtp.app.open import Opener, exact_of
from mlxmtp.bench import environment, streams, suite
from mlxmtp.bench.report import to_json
from mlxmtp.bench.runner import OnProgress
from mlxmtp.chat.attach import read_reference
from mlxmtp.settings import Loaded


class StreamsBenchmark:
    """`bench --streams`: every model's prompts, so many at a time as `request.streams` says, plain and drafted."""

    def __init__(
        self,
        loaded: Loaded,
        request: Request,
        opener: Opener,
        *,
        on_progress: Callable[[str], None],
        write: Callable[[str], None],
    ) -> None:
        """Choose the models and prepare their prompts. Raises MlxmtpError for whatever cannot be measured."""
        self._request, self._opener, self._write = request, opener, write
        settings = loaded.settings
        system = read_reference(settings.system, loaded.prompts) if settings.system else ""
        texts = suite.read_suites(request.suites or suite.SUITES, system)
        self._models = subjects_of(loaded, request, texts, opener, on_progress)
        drafts = request.plan.num_draft_tokens if any(one.drafter is not None for one in self._models) else (0,)
        drafted = replace(settings, draft_from="mtp", num_draft_tokens=None)  # the plan's count, not the settings'
        self._settings = replace(drafted, exact=exact_of(drafted, drafts))
        self.samples: list[streams.Job] = []
        self._environment = environment.environment()
        self.cautions = self._environment.cautions
        self._created = datetime.now(UTC).isoformat(timespec="seconds")
        self._complete = False

    @property
    def runs(self) -> int:
        """The number of measured jobs."""
        lengths = [1 if one.drafter is None else len(self._request.plan.num_draft_tokens) for one in self._models]
        return sum(lengths) * self._request.plan.repetitions * len(self._request.streams)

    def run(self, starting: Callable[[int], OnProgress]) -> None:
        """Measure; `starting` returns what a model reports to, given the jobs that were done before it."""
        settings, plan = self._settings, self._request.plan
        asked = replace(measured_params(settings, plan.max_tokens), stop=())
        for one in self._models:
            opened = self._opener.open(one.target, one.drafter, settings, one.tokenizer)
            try:
                for job in streams.measure(
                    opened.model,
                    one.target.name,
                    one.all_prompts,
                    lambda drafts: replace(asked, num_draft_tokens=drafts),
                    plan,
                    self._request.streams,
                    starting(len(self.samples)),
                ):
                    self.samples.append(job)
            finally:
                opened.close()
        self._complete = True

    def finish(self) -> None:
        """Write the report of what was measured."""
        text, output = streams.to_markdown(self.samples, complete=self._complete), self._request.output
        if self._request.form == "json":
            found = {"created": self._created, **streams.to_dict(self.samples, complete=self._complete)}
            found |= {"environment": to_json(self._environment)}
            whole = json.dumps(found, ensure_ascii=False) + "\n"
        else:
            whole = text
        deliver(whole, text, output, self._write)
