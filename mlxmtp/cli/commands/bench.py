"""From the flags of `mlxmtp bench` to the last byte of its report.

Everything that can be refused is refused before weights are read; what was measured is never lost: a failure or Ctrl-C
in the middle ends in the report of what there is.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from mlxmtp.bench import markdown, plot
from mlxmtp.bench.compare import compare_reports
from mlxmtp.bench.environment import cautions, conditions, environment
from mlxmtp.bench.report import Report, read_report
from mlxmtp.bench.runner import Entrant, Plan, Run, prompts_of
from mlxmtp.bench.suite import SUITES, Text, read_suites
from mlxmtp.cli import options
from mlxmtp.cli.resume import opener_of
from mlxmtp.cli.start import begin
from mlxmtp.cli.terminal.progress import RunProgress
from mlxmtp.errors import MlxmtpError, UsageError
from mlxmtp.files import write_atomically
from mlxmtp.limits import MAX_DRAFT

if TYPE_CHECKING:
    from mlxmtp.bench.samples import Arm
    from mlxmtp.cli.terminal.output import Output
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
        self._opener = opener_of(loaded, out)

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
                    write(markdown.result_line(result))
            before += entrant.runs(plan)

    def _entrant(self, name: str | None, texts: list[Text]) -> Entrant:
        from mlxmtp.app.open import require_memory
        from mlxmtp.engine.model import context_of
        from mlxmtp.engine.tokenizer import Tokenizer

        wanted = self._wanted
        found = self._opener.target(name)
        drafter = self._opener.drafter(found, self._settings, off=wanted.arms == (0,))
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
        write(markdown.start_line(report))
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
                forms.callback(lambda: write(markdown.end_line(report)))
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
        text = markdown.comparison_lines(comparison)
    elif form == "csv":
        text = markdown.comparison_csv(comparison)
    _deliver(out, output, text)
    if output is not None:
        out.write(tables)


def _formed(report: Report, form: str) -> str:
    if form == "json":
        return json.dumps(report.to_dict(), ensure_ascii=False) + "\n"
    return markdown.samples_csv(report) if form == "csv" else markdown.report_text(report)


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
            write_atomically(path, text)
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


Format = Literal["md", "json", "jsonl", "csv"]
_FORMATS = ("md", "json", "jsonl", "csv")

Models = Annotated[
    list[str] | None,
    typer.Option("-m", "--model", metavar="NAME", help="Alias, org/repo or path; can be repeated.", show_default=False),
]
Suites = Annotated[
    list[str] | None,
    typer.Option(
        "--suite",
        metavar="NAME|FILE,…",
        help="Of code, chat, summary, extract, rewrite; a .jsonl; text files, folders.  [default: all five]",
        show_default=False,
    ),
]
Lengths = Annotated[
    str | None, typer.Option("-p", "--prompt-tokens", metavar="N,M", help="Bring prompts to these lengths.")
]
Tokens = Annotated[
    int, typer.Option("-n", "--max-tokens", metavar="N", help="New tokens in every run, 2 or more.", min=2)
]
Arms = Annotated[
    str, typer.Option("--num-draft-tokens", metavar="N,…|auto", help="Draft lengths; plain is always measured.")
]


def bench(
    ctx: typer.Context,
    model: Models = None,
    suite: Suites = None,
    prompt_tokens: Lengths = None,
    max_tokens: Tokens = 256,
    repetitions: Annotated[int, typer.Option("-r", "--repetitions", metavar="N", help="Repetitions.", min=1)] = 3,
    warmup: Annotated[int, typer.Option("-w", "--warmup", metavar="N", help="Runs before that count.", min=0)] = 1,
    num_draft_tokens: Arms = "0,auto",
    cooldown: Annotated[float, typer.Option(metavar="S", help="Seconds of rest before each run.", min=0)] = 0.0,
    form: Annotated[
        str | None, typer.Option("--format", metavar="|".join(_FORMATS), help="Form of the report.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Write the report here.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.svg|.png", help="Draw acceptance and speeds.")] = None,
    compare: Annotated[
        tuple[Path, Path] | None, typer.Option(metavar="A.json B.json", help="Compare two reports; measure nothing.")
    ] = None,
    system: options.System = None,
    think: options.Think = None,
    temp: options.Temp = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    min_p: options.MinP = None,
    seed: options.Seed = None,
    draft: options.Draft = None,
    draft_model: options.DraftModel = None,
    draft_bits: options.DraftBits = None,
    kv_bits: options.KvBits = None,
    yes: options.Yes = None,
    force: options.Force = False,
    quiet: options.Quiet = None,
    no_color: options.NoColor = None,
    debug: options.Debug = False,
) -> None:
    """Measure speed with and without the drafter, on real text, and say whether the text is the same.

    \b
    Examples:
      mlxmtp bench -m e4b
      mlxmtp bench -m e2b -m e4b --num-draft-tokens 0,1,2,4,auto --temp 0
      mlxmtp bench -p 512,4096 --suite code -r 5 --plot speed.svg
      mlxmtp bench --format json -o today.json
      mlxmtp bench --compare before.json today.json

    Every text is decoded in each way in turn, end-of-text ignored, so that all produce as many tokens. With -o the
    report goes to FILE and the tables to stdout. Ctrl-C keeps what was measured. Progress goes to stderr.
    """

    loaded, out = begin(
        ctx, system=system, think=think, temp=temp, top_p=top_p, top_k=top_k, min_p=min_p, seed=seed, draft=draft,
        draft_model=draft_model, draft_bits=draft_bits, kv_bits=kv_bits, yes=yes, quiet=quiet, no_color=no_color,
    )  # fmt: skip
    chosen = _format(form, output)
    _check_file("-o", output)
    _check_file("--plot", plot)
    try:
        if compare is not None:
            if model or suite or plot is not None:
                raise UsageError("--compare reads two reports and measures nothing: leave out -m, --suite and --plot.")
            show_comparison(out, compare, chosen, output)
            return
        wanted = Wanted(
            models=tuple(dict.fromkeys(model or [])),
            suites=_words(suite) or None,
            lengths=_lengths(prompt_tokens),
            tokens=max_tokens,
            repetitions=repetitions,
            warmups=warmup,
            arms=_arms(num_draft_tokens, off=loaded.settings.draft is False),
            cooldown=cooldown,
            form=chosen,
            output=output,
            plot=plot,
            force=force,
        )
        Measuring(loaded, out, wanted).carry_out()
    finally:
        out.settle()


def _format(form: str | None, output: Path | None) -> Format:
    """The form asked for, else the one a file's name says, else markdown."""
    chosen = form or ("" if output is None else output.suffix.removeprefix(".")) or "md"
    if chosen in _FORMATS:
        return cast("Format", chosen)
    if form is None:
        raise UsageError(f"-o {output}: give --format md, json, jsonl or csv, the name does not say which.")
    raise UsageError(f"--format must be md, json, jsonl or csv, not '{form}'.")


def _check_file(flag: str, file: Path | None) -> None:
    """What cannot be written is refused before anything is measured."""
    if file is None:
        return
    folder = file.absolute().parent
    if file.is_dir() or not folder.is_dir():
        raise UsageError(f"{flag} {file} cannot be written: give a file in a folder that exists.")
    if not os.access(file if file.exists() else folder, os.W_OK):
        raise UsageError(f"{flag} {file} cannot be written: give a file that you may write.")


def _words(values: Sequence[str] | None) -> tuple[str, ...]:
    """Repeated and comma-separated values, each once."""
    return tuple(dict.fromkeys(word.strip() for value in values or [] for word in value.split(",") if word.strip()))


def _lengths(value: str | None) -> tuple[int | None, ...]:
    if value is None:
        return (None,)
    words = _words([value])
    if not words or not all(word.isascii() and word.isdecimal() and int(word) > 0 for word in words):
        raise UsageError(f"-p must be lengths in tokens like 512 or 128,4096, not '{value}'.")
    return tuple(dict.fromkeys(int(word) for word in words))


def _arms(value: str, *, off: bool) -> tuple[Arm, ...]:
    """Plain first: everything is compared with it."""
    arms: list[Arm] = []
    for word in _words([value]):
        if word == "auto":
            arms.append("auto")
        elif word.isascii() and word.isdecimal() and int(word) <= MAX_DRAFT:
            arms.append(int(word))
        else:
            raise UsageError(f"--num-draft-tokens must be of 0 to {MAX_DRAFT} and auto, not '{word}'.")
    if off:
        return (0,)
    fixed = sorted({arm for arm in arms if arm != "auto"} | {0})
    return (*fixed, "auto") if "auto" in arms else tuple(fixed)
