"""From the flags of `mlxmtp bench` to the last byte of its report.

Everything that can be refused is refused before weights are read; what was measured is never lost: a failure or Ctrl-C
in the middle ends in the report of what there is.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mlxmtp.bench import lines, markdown, plot
from mlxmtp.bench.compare import compare_reports
from mlxmtp.bench.environment import cautions, conditions, environment
from mlxmtp.bench.report import Report, read_report
from mlxmtp.bench.runner import Entrant, Plan, Run, prompts_of
from mlxmtp.bench.suite import SUITES, Text, read_suites
from mlxmtp.cli.pick import pick_drafter, pick_target
from mlxmtp.cli.progress import RunProgress
from mlxmtp.errors import MlxmtpError
from mlxmtp.hub.cache import write_whole
from mlxmtp.hub.store import Store

if TYPE_CHECKING:
    from mlxmtp.bench.samples import Arm
    from mlxmtp.cli.output import Output
    from mlxmtp.engine.params import Params
    from mlxmtp.settings import Loaded


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the flags ask for, checked. `suites` None means all of the package's own."""

    models: tuple[str, ...]
    suites: tuple[str, ...] | None
    lengths: tuple[int | None, ...]
    tokens: int
    repetitions: int
    warmups: int
    arms: tuple[Arm, ...]
    cooldown: float
    form: Literal["md", "json", "jsonl", "csv"]
    output: Path | None
    plot: Path | None
    force: bool

    @property
    def plan(self) -> Plan:
        """What the runner needs of it."""
        return Plan(self.arms, self.lengths, self.tokens, self.repetitions, self.warmups, self.cooldown)


class Measuring:
    """One benchmark."""

    def __init__(self, loaded: Loaded, out: Output, wanted: Wanted) -> None:
        self._loaded, self._settings = loaded, loaded.settings
        self._out, self._wanted = out, wanted
        self._store = Store(loaded.places, loaded.aliases)

    def carry_out(self) -> None:
        """Measure and report. Raises MlxmtpError, and KeyboardInterrupt after the report of what there is."""
        if self._wanted.plot is not None:
            plot.check_plot(self._wanted.plot)
        texts = read_suites(self._wanted.suites or SUITES, self._system())
        entrants = [self._entrant(name, texts) for name in self._wanted.models or (self._settings.model,)]
        report = Report(datetime.now(UTC).isoformat(timespec="seconds"), self._asked(len(texts)), environment())
        for caution in cautions(report.environment):
            self._out.note(caution)
        write = self._begin(report)
        try:
            self._measure(entrants, report, write)
            report.complete = True
        finally:
            self._finish(report, write)

    def _measure(self, entrants: list[Entrant], report: Report, write: Callable[[str], None]) -> None:
        plan = self._wanted.plan
        progress = RunProgress(self._out, sum(entrant.runs(plan) for entrant in entrants))
        before = 0
        for entrant in entrants:
            run = Run(entrant, plan, progress.starting(before))
            described = False
            for result in run.results():
                if not described:
                    report.models.append(_described(entrant, run))
                    described = True
                report.add(result)
                if self._wanted.form == "jsonl":
                    write(lines.result_line(result))
            before += entrant.runs(plan)

    def _entrant(self, name: str | None, texts: list[Text]) -> Entrant:
        from mlxmtp.engine.engine import context_of
        from mlxmtp.engine.prompt import Tokenizer
        from mlxmtp.hub.room import require_memory

        wanted = self._wanted
        found = pick_target(self._loaded, self._out, self._store, name)
        drafter = pick_drafter(self._settings, self._out, self._store, found, off=wanted.arms == (0,))
        tokenizer = Tokenizer.load(found.folder)
        context, think = context_of(found.folder), bool(self._settings.think)
        self._out.progress(f"{found.name}: preparing the prompts")
        entrant = Entrant(
            found.name,
            found.folder,
            None if drafter is None else drafter.folder,
            None if drafter is None else drafter.name,
            self._settings.draft_bits,
            self._settings.kv_bits,
            tokenizer,
            self._params(),
            prompts_of(texts, wanted.plan, tokenizer, context, found.name, think=think),
        )
        rows, kv_bits = entrant.longest + wanted.tokens, entrant.kv_bits
        require_memory(found, drafter, rows, force=wanted.force, kv_bits=kv_bits)
        return entrant

    def _params(self) -> Params:
        from mlxmtp.engine.params import Params

        settings = self._settings
        return Params(
            temp=settings.temp,
            top_p=settings.top_p,
            top_k=settings.top_k,
            min_p=settings.min_p,
            seed=settings.seed or 0,
        )

    def _system(self) -> str:
        if not self._settings.system:
            return ""
        from mlxmtp.chat.attach import read_reference

        return read_reference(self._settings.system, self._loaded.prompts)

    def _asked(self, texts: int) -> dict[str, Any]:
        """The settings block of the report; what is null is left to the model."""
        wanted, settings = self._wanted, self._settings
        return {
            "suite": list(wanted.suites or SUITES),
            "texts": texts,
            "lengths": list(wanted.lengths),
            "max_tokens": wanted.tokens,
            "repetitions": wanted.repetitions,
            "warmups": wanted.warmups,
            "cooldown": wanted.cooldown,
            "num_draft_tokens": list(wanted.arms),
            "temp": settings.temp,
            "top_p": settings.top_p,
            "top_k": settings.top_k,
            "min_p": settings.min_p,
            "seed": settings.seed or 0,
            "think": bool(settings.think),
            "system": self._system() or None,
        }

    def _begin(self, report: Report) -> Callable[[str], None]:
        """Where lines go while they come; nowhere unless the form has lines."""
        if self._wanted.form != "jsonl":
            return lambda _: None
        output = self._wanted.output
        if output is not None:
            _write_file(output, "")
        write = self._out.write if output is None else lambda line: _write_file(output, line, append=True)
        write(lines.start_line(report))
        return write

    def _finish(self, report: Report, write: Callable[[str], None]) -> None:
        """The report of whatever was measured: every form that was asked for, also if another one fails."""
        self._out.clear_progress()
        if not report.samples:
            self._out.line("Nothing had been measured yet.")
            return
        report.after = conditions()
        wanted = self._wanted
        with ExitStack() as forms:  # the last one is carried out first: what reads stdout may be gone
            if wanted.output is not None:
                forms.callback(lambda: self._out.write(markdown.report_text(report)))
            if wanted.form == "jsonl":
                forms.callback(lambda: write(lines.end_line(report)))
            else:
                forms.callback(lambda: _deliver(self._out, wanted.output, _formed(report, wanted.form)))
            if wanted.plot is not None:
                forms.callback(_draw, report, wanted.plot)


def show_comparison(out: Output, paths: tuple[Path, Path], form: str, output: Path | None) -> None:
    """`--compare`. Raises UsageError for files that are no reports."""
    before, after = (read_report(path) for path in paths)
    comparison = compare_reports(before, after, (str(paths[0]), str(paths[1])))
    tables = text = markdown.comparison_text(comparison)
    if form == "json":
        text = json.dumps(comparison.to_dict(), ensure_ascii=False, indent=1) + "\n"
    elif form == "jsonl":
        text = lines.comparison_lines(comparison)
    elif form == "csv":
        text = lines.comparison_csv(comparison)
    _deliver(out, output, text)
    if output is not None:
        out.write(tables)


def _formed(report: Report, form: str) -> str:
    if form == "json":
        return json.dumps(report.to_dict(), ensure_ascii=False) + "\n"
    return lines.samples_csv(report) if form == "csv" else markdown.report_text(report)


def _deliver(out: Output, output: Path | None, text: str) -> None:
    if output is None:
        out.write(text)
    else:
        _write_file(output, text)


def _write_file(path: Path, text: str, *, append: bool = False) -> None:
    try:
        if append:
            with path.open("a", encoding="utf-8") as file:
                file.write(text)
        else:
            write_whole(path, text)
    except OSError as error:
        raise MlxmtpError(f"{path} cannot be written: {error.strerror or error}.") from None


def _draw(report: Report, path: Path) -> None:
    try:
        plot.write_plot(report, path)
    except OSError as error:
        raise MlxmtpError(f"{path} cannot be written: {error.strerror or error}.") from None


def _described(entrant: Entrant, run: Run) -> dict[str, Any]:
    """The model's block of the report."""
    from mlxmtp.hub.inventory import quantization
    from mlxmtp.models.config import read_config

    drafter = None if entrant.drafter is None else read_config(entrant.drafter)
    return {
        "name": entrant.name,
        "quantization": quantization(read_config(entrant.folder)),
        "drafter": entrant.drafter_name,
        "drafter_quantization": None if drafter is None else quantization(drafter),
        "draft_bits": entrant.draft_bits,
        "kv_bits": entrant.kv_bits,
        "device": run.device,
        "dtype": run.dtype,
        "compiled": run.compiled,
        "sampling": run.sampling,
    }
