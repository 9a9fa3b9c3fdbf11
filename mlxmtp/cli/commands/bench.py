"""`mlxmtp bench`: its flags, its progress, and the comparison of two reports."""

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typer import Context, Option

from mlxmtp.bench import FORMATS, Format
from mlxmtp.cli.options import begin, model_names, takes
from mlxmtp.cli.terminal.output import Output
from mlxmtp.errors import UsageError
from mlxmtp.limits import MAX_DRAFT, STREAMS, Range
from mlxmtp.settings import number

if TYPE_CHECKING:
    from mlxmtp.app.benchmark import Benchmark, Request
    from mlxmtp.app.endpoint_benchmark import EndpointBenchmark
    from mlxmtp.app.stream_benchmark import StreamsBenchmark
    from mlxmtp.settings import Loaded

_MODELS = "Alias, org/repo or path, or a server's; can be repeated."
_SUITES = "Of code, chat, summary, extract, rewrite, edit [default: these]; pictures; a .jsonl; text files, folders."


@takes("bench", "... system image_tokens schema thinking sampling drafting yes force quiet no_color debug")
def bench(
    ctx: Context,
    model: Annotated[
        list[str] | None, Option("-m", "--model", metavar="NAME", help=_MODELS, autocompletion=model_names)
    ] = None,
    suite: Annotated[list[str] | None, Option(metavar="NAME|FILE,…", help=_SUITES)] = None,
    prompt_tokens: Annotated[
        str | None, Option("-p", "--prompt-tokens", metavar="N,M", help="Bring prompts to these lengths.")
    ] = None,
    max_tokens: Annotated[
        int,
        Option("-n", "--max-tokens", metavar="N", help="New tokens in every run, 2 or more."),
        number(Range(2, whole=True)),
    ] = 256,
    repetitions: Annotated[
        int, Option("-r", "--repetitions", metavar="N", help="Repetitions."), number(Range(1, whole=True))
    ] = 3,
    warmup: Annotated[
        int, Option("-w", "--warmup", metavar="N", help="Runs before that count."), number(Range(0, whole=True))
    ] = 1,
    num_draft_tokens: Annotated[
        str, Option(metavar="N,…|auto", help="Draft lengths; plain is always measured.")
    ] = "0,auto",
    streams: Annotated[
        str | None, Option(metavar="N,…", help="Measure so many answers at a time, all together and each.")
    ] = None,
    cooldown: Annotated[
        float, Option("--cooldown", metavar="S", help="Seconds of rest before each run."), number(Range(0))
    ] = 0.0,
    form: Annotated[str | None, Option("--format", metavar="|".join(FORMATS), help="Form of the report.")] = None,
    output: Annotated[Path | None, Option("-o", "--output", metavar="FILE", help="Write the report here.")] = None,
    plot: Annotated[Path | None, Option(metavar="FILE.svg|.png", help="Draw acceptance and speeds.")] = None,
    compare: Annotated[
        tuple[Path, Path] | None, Option(metavar="A.json B.json", help="Compare two reports; measure nothing.")
    ] = None,
) -> None:
    """Measure speed with and without the drafter, on real text, and say whether the text is the same.

    \b
    Examples:
      mlxmtp bench -m e4b
      mlxmtp bench -m e2b -m e4b --num-draft-tokens 0,1,2,4,auto --temp 0
      mlxmtp bench -p 512,4096 --suite code -r 5 --plot speed.svg
      mlxmtp bench --streams 1,2,4,8 -n 128
      mlxmtp bench --format json -o today.json
      mlxmtp bench --compare before.json today.json

    Every text is decoded in each way in turn, end-of-text ignored, so that all produce as many tokens; with --schema
    an answer ends with its document, the same one in each way. With -o the report goes to FILE and the tables to
    stdout. A terminal shows them drawn, unless --format md asks for their source. Ctrl-C keeps what was measured.
    Progress goes to stderr.
    """
    from mlxmtp.app.benchmark import Request, write_comparison
    from mlxmtp.bench.report import Plan
    from mlxmtp.cli.terminal.presenters import write_document
    from mlxmtp.machine.awake import stay_awake

    loaded, out = begin(ctx)
    stay_awake()
    chosen = _format(form, output)
    tables = form is None and (chosen == "md" or output is not None)  # what goes to stdout is markdown
    write = partial(write_document, out) if tables else out.write
    _check_file("-o", output)
    _check_file("--plot", plot)
    try:
        if compare is not None:
            if model or suite or streams or plot is not None:
                told = "--compare reads two reports and measures nothing"
                raise UsageError(f"{told}: leave out -m, --suite, --streams and --plot.")
            write_comparison(compare, chosen, output, write)
            return
        drafts = _draft_lengths(num_draft_tokens, off=loaded.settings.draft is False)
        plan = Plan(_prompt_lengths(prompt_tokens), max_tokens, repetitions, warmup, cooldown, drafts)
        counts = _stream_counts(streams)
        if counts and (chosen not in ("md", "json") or plot is not None):
            raise UsageError("--streams makes a table or JSON: leave out --plot, and give --format md or json.")
        request = Request(tuple(dict.fromkeys(model or [])), _words(suite), plan, chosen, output, plot, counts)
        _measure(loaded, request, out, write)
    finally:
        out.settle()


def _measure(loaded: "Loaded", request: "Request", out: Output, write: Callable[[str], None]) -> None:
    from mlxmtp.app.benchmark import Benchmark
    from mlxmtp.app.endpoint_benchmark import EndpointBenchmark
    from mlxmtp.app.endpoints import AUTO, with_model, without_url
    from mlxmtp.app.stream_benchmark import StreamsBenchmark
    from mlxmtp.cli.resume import opener_of
    from mlxmtp.cli.terminal.progress import RunProgress
    from mlxmtp.cli.terminal.signals import last_words

    loaded = without_url(loaded)
    named = [with_model(loaded, name, "flag") for name in request.models] or [loaded]
    openers = [opener_of(one, out) for one in named]
    elsewhere = [one for one in openers if not one.here]
    how: dict[str, Any] = {"on_progress": out.progress, "write": write}
    benchmark: Benchmark | StreamsBenchmark | EndpointBenchmark
    if any(one.settings.model == AUTO for one in named) or (elsewhere and len(elsewhere) < len(openers)):
        raise UsageError("bench measures models here or servers: name one kind with -m, without the router.")
    if elsewhere:
        benchmark = EndpointBenchmark(loaded, request, elsewhere, **how)
    else:
        benchmark = (StreamsBenchmark if request.streams else Benchmark)(loaded, request, openers[0], **how)
    for caution in benchmark.cautions:
        out.note(caution)
    with last_words(lambda: _finish(benchmark, out)):
        try:
            benchmark.run(RunProgress(out, benchmark.runs).starting)
        except Exception:
            _finish(benchmark, out)
            raise
    _finish(benchmark, out)


def _finish(benchmark: "Benchmark | EndpointBenchmark | StreamsBenchmark", out: Output) -> None:
    """Report what there is, however the run ended."""
    out.clear_progress()
    if benchmark.samples:
        benchmark.finish()
    else:
        out.line("Nothing had been measured yet.")


def _format(form: str | None, output: Path | None) -> Format:
    """Return the form asked for, else the one of the file's name, else markdown. Raises UsageError."""
    wanted = form or ("" if output is None else output.suffix.removeprefix(".")) or "md"
    chosen = next((one for one in FORMATS if one == wanted), None)
    if chosen is None and form is None:
        raise UsageError(f"-o {output}: give --format md, json, jsonl or csv, the name does not say which.")
    if chosen is None:
        raise UsageError(f"--format must be md, json, jsonl or csv, not '{form}'.")
    return chosen


def _check_file(flag: str, file: Path | None) -> None:
    """Raise UsageError for a file that cannot be written."""
    if file is None:
        return
    if str(file) == "-":
        raise UsageError(f"{flag} - names no file: without -o the report goes to standard output.")
    folder = file.absolute().parent
    if file.is_dir() or not folder.is_dir():
        raise UsageError(f"{flag} {file} cannot be written: give a file in a folder that exists.")
    if not os.access(file if file.exists() else folder, os.W_OK):
        raise UsageError(f"{flag} {file} cannot be written: give a file that you may write.")


def _words(values: Sequence[str] | None) -> tuple[str, ...]:
    """Split repeated and comma-separated values, each once."""
    return tuple(dict.fromkeys(word.strip() for value in values or [] for word in value.split(",") if word.strip()))


def _prompt_lengths(value: str | None) -> tuple[int | None, ...]:
    if value is None:
        return (None,)
    words = _words([value])
    if not words or not all(word.isascii() and word.isdecimal() and int(word) > 0 for word in words):
        raise UsageError(f"-p must be lengths in tokens like 512 or 128,4096, not '{value}'.")
    return tuple(dict.fromkeys(int(word) for word in words))


def _stream_counts(value: str | None) -> tuple[int, ...]:
    words = [] if value is None else _words([value])
    if value is not None and not (words and all(word.isascii() and word.isdecimal() for word in words)):
        raise UsageError(f"--streams must be numbers of answers like 1,2,4,8, not '{value}'.")
    counts = sorted({int(word) for word in words})
    if not all(count in STREAMS for count in counts):
        raise UsageError(f"--streams must be {STREAMS}, not '{value}'.")
    return tuple(counts)


def _draft_lengths(value: str, *, off: bool) -> tuple[int | Literal["auto"], ...]:
    """Put plain first: everything is compared with it."""
    words = _words([value])
    for word in words:
        if word != "auto" and not (word.isascii() and word.isdecimal() and int(word) <= MAX_DRAFT):
            raise UsageError(f"--num-draft-tokens must be of 0 to {MAX_DRAFT} and auto, not '{word}'.")
    if off:
        return (0,)
    fixed = sorted({int(word) for word in words if word != "auto"} | {0})
    return (*fixed, "auto") if "auto" in words else tuple(fixed)
