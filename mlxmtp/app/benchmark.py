"""One benchmark, from the request to the report; a failure or Ctrl-C ends in the report of what there is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlxmtp.app.open import Checkpoint, Opener, answer_params, exact_here, exact_of, read_tokenizer
from mlxmtp.bench import Format, compare, environment, formats, plot, suite
from mlxmtp.bench.report import ModelInfo, Plan, Report, RunSettings, read_report, to_json
from mlxmtp.bench.runner import OnProgress, Prompt, Runner, prompts_of
from mlxmtp.bench.samples import Sample
from mlxmtp.chat.attach import read_reference
from mlxmtp.engine.media import largest
from mlxmtp.engine.model import context_of
from mlxmtp.engine.params import Params
from mlxmtp.engine.tokenizer import Tokenizer
from mlxmtp.errors import MlxmtpError
from mlxmtp.files import write_atomically
from mlxmtp.machine.pace import measured
from mlxmtp.settings import Loaded, Settings


@dataclass(frozen=True, slots=True)
class Request:
    """A benchmark to run: no models are the default one, no suites all of the package's own."""

    models: tuple[str, ...]
    suites: tuple[str, ...]
    plan: Plan
    form: Format = "md"
    output: Path | None = None
    plot: Path | None = None
    streams: tuple[int, ...] = ()  # numbers of answers at a time: another benchmark, `StreamsBenchmark`


@dataclass(frozen=True, slots=True)
class Subject:
    """A model to measure, and its prompts by length in tokens."""

    target: Checkpoint
    drafter: Checkpoint | None
    tokenizer: Tokenizer
    prompts: dict[int | None, tuple[Prompt, ...]]

    @property
    def all_prompts(self) -> list[Prompt]:
        return [prompt for found in self.prompts.values() for prompt in found]


class Benchmark:
    """A benchmark that is ready to run; `write` takes what goes to stdout."""

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
        if request.plot is not None:
            plot.check_plot(request.plot)
        self._request, self._write = request, write
        settings = loaded.settings
        system = read_reference(settings.system, loaded.prompts) if settings.system else ""
        suites = request.suites or suite.SUITES
        texts = suite.read_suites(suites, system)
        self._runners: list[Runner] = []
        known = measured(loaded.places.data)
        for one in subjects_of(loaded, request, texts, opener, on_progress):
            drafts = [k for k in request.plan.num_draft_tokens if one.drafter is not None]
            exact = exact_here(exact_of(settings, drafts), known)
            pair = one.target, one.drafter, settings.draft_bits, settings.kv_bits, exact
            self._runners.append(Runner(*pair, one.tokenizer, answer_params(settings), one.prompts, request.plan))
        sampling = settings.temp, settings.top_p, settings.top_k, settings.min_p, settings.seed or 0
        asked = RunSettings(
            suites,
            len(texts),
            request.plan,
            *sampling,
            bool(settings.think),
            system or None,
            settings.schema,
            settings.image_tokens,
        )
        self.report = Report(datetime.now(UTC).isoformat(timespec="seconds"), asked, environment.environment())

    @property
    def cautions(self) -> list[str]:
        """Sentences that speak against measuring now."""
        return self.report.environment.cautions

    @property
    def samples(self) -> list[Sample]:
        """All that was measured."""
        return self.report.samples

    @property
    def runs(self) -> int:
        """The number of measured runs."""
        return sum(runner.runs for runner in self._runners)

    def run(self, starting: Callable[[int], OnProgress]) -> None:
        """Measure; `starting` returns what a model reports to, given the runs that were done before it."""
        lines = self._request.form == "jsonl"
        if lines:
            self._deliver(formats.json_line("start", self.report.start()))
        done = 0
        for runner in self._runners:
            for result in runner.results(starting(done)):
                self.report.add(result)
                if lines and not isinstance(result, ModelInfo):
                    kind = "sample" if isinstance(result, Sample) else "checking"
                    self._deliver(formats.json_line(kind, to_json(result)), append=True)
            done += runner.runs
        self.report.complete = True

    def finish(self) -> None:
        """Write the report of what was measured: every form that was asked for, also if another one fails."""
        report, request = self.report, self._request
        report.after = environment.conditions()
        with ExitStack() as forms:  # the last one is carried out first: what reads stdout may be gone
            if request.output is not None:
                forms.callback(lambda: self._write(formats.report_text(report)))
            if request.form == "jsonl":
                forms.callback(lambda: self._deliver(formats.json_line("end", report.end()), append=True))
            else:
                forms.callback(lambda: self._deliver(formats.report_text(report, request.form)))
            if request.plot is not None:
                forms.callback(failure_named(request.plot)(plot.write_plot), report, request.plot)

    def _deliver(self, text: str, *, append: bool = False) -> None:
        if self._request.output is None:
            self._write(text)
        elif append:
            with failure_named(self._request.output), self._request.output.open("a", encoding="utf-8") as file:
                file.write(text)
        else:
            failure_named(self._request.output)(write_atomically)(self._request.output, text)


def subjects_of(
    loaded: Loaded, request: Request, texts: Sequence[suite.Text], opener: Opener, on_progress: Callable[[str], None]
) -> list[Subject]:
    """Choose the models and prepare their prompts. Raises MlxmtpError for whatever cannot be measured."""
    settings, plan, found = loaded.settings, request.plan, list[Subject]()
    for name in request.models or (settings.model,):
        target = opener.target(name)
        drafter = opener.drafter(target, settings, off=plan.num_draft_tokens == (0,))
        on_progress(f"{target.name}: preparing the prompts")
        tokenizer, about = read_tokenizer(target), (opener.media(target), answer_params(settings))
        prompts = prompts_of(texts, plan, tokenizer, context_of(target.folder), target.name, *about)
        one = Subject(target, drafter, tokenizer, prompts)
        tokens = max(len(prompt.ids) for prompt in one.all_prompts) + plan.max_tokens
        seen = largest([medium for prompt in one.all_prompts for medium in prompt.media])
        opener.require_memory(target, drafter, tokens, settings, turns=False, media=seen)
        found.append(one)
    return found


def measured_params(settings: Settings, max_tokens: int) -> Params:
    """Return the parameters of answers that all have so many tokens, drafted by the drafter alone."""
    whole: dict[str, Any] = {"stop_strings": (), "think_tokens": None, "draft_from": "mtp"}
    return replace(answer_params(settings), max_tokens=max_tokens, seed=settings.seed or 0, **whole)


def deliver(whole: str, text: str, output: Path | None, write: Callable[[str], None]) -> None:
    """Write `whole` into a file and `text` for people, or without a file `whole` alone. Raises MlxmtpError."""
    if output is None:
        write(whole)
        return
    failure_named(output)(write_atomically)(output, whole)
    write(text)


def write_comparison(paths: tuple[Path, Path], form: Format, output: Path | None, write: Callable[[str], None]) -> None:
    """Compare two report files; with `output` its tables go to `write`. Raises UsageError for files that are none."""
    before, after = (read_report(path) for path in paths)
    comparison = compare.compare_reports(before, after, (str(paths[0]), str(paths[1])))
    deliver(formats.comparison_text(comparison, form), formats.comparison_text(comparison), output, write)


@contextmanager
def failure_named(path: Path) -> Iterator[None]:
    """Raise MlxmtpError with the name of the file if it cannot be written."""
    try:
        yield
    except OSError as error:
        raise MlxmtpError(f"{path} cannot be written: {error.strerror or error}.") from None
