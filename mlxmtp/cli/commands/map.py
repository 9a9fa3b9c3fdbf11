"""`mlxmtp map`: one prompt over many files or lines, several at a time."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Context, Option

from mlxmtp.cli.options import begin, takes
from mlxmtp.errors import MlxmtpError, UsageError
from mlxmtp.limits import PARALLEL

if TYPE_CHECKING:
    from mlxmtp.app.map_inputs import Item
    from mlxmtp.cli.terminal.output import Output
    from mlxmtp.settings import Loaded


@takes(
    "map",
    "model url ... parallel image_tokens system thinking form sampling drafting yes force quiet no_color debug",
)
def map_(
    ctx: Context,
    prompt: Annotated[str, Argument(metavar="PROMPT", help="What to ask; {} stands for a file.")],
    files: Annotated[
        list[Path] | None, Argument(metavar="FILE", help="Text files or pictures, one answer each.", show_default=False)
    ] = None,
    input_: Annotated[
        Path | None, Option("--input", metavar="FILE.jsonl", help="Objects, one a line; {name} stands for a field.")
    ] = None,
    output: Annotated[
        Path | None, Option("-o", "--output", metavar="FILE", help="Write JSON lines here; go on where they end.")
    ] = None,
    json: Annotated[bool, Option("--json", help="JSON lines instead of text.")] = False,
) -> None:
    """Ask the same of many files or lines, several at a time, and write the answers in their order.

    \b
    Examples:
      mlxmtp map "Summarise in one sentence: {}" notes/*.txt
      mlxmtp map "{} What is on this photo?" photos/*.jpg
      mlxmtp map --json "Which language is this? {}" *.md | jq -r .response
      mlxmtp map --input mails.jsonl -o answers.jsonl "Reply politely to {sender}: {text}"

    On stdout every answer follows a line `--- FILE ---`; with --json it is an object with input, response,
    finish_reason and stats. With -o nothing is lost: after Ctrl-C or a kill the same command goes on behind the last
    answer. An input that cannot be answered has an error instead, and the exit code is 1. The answers are those that
    `ask` would give.
    """
    from mlxmtp.app.map_inputs import items_of_files, items_of_lines

    if bool(files) == (input_ is not None):
        raise UsageError("Give text files, or lines of JSON with --input: one of the two.")
    loaded, out = begin(ctx)
    items = items_of_files(prompt, files) if files else items_of_lines(prompt, input_ or Path())
    try:
        _answer(loaded, out, items, output, as_json=json or output is not None)
    finally:
        out.settle()


def _answer(loaded: Loaded, out: Output, items: list[Item], output: Path | None, *, as_json: bool) -> None:
    from mlxmtp.app.map import Job, keys_of
    from mlxmtp.app.map_inputs import Answers, most_tokens
    from mlxmtp.app.open import ANSWER, answer_params
    from mlxmtp.chat.attach import read_reference
    from mlxmtp.cli.resume import opener_of

    settings, opener = loaded.settings, opener_of(loaded, out)
    params, system = answer_params(settings), read_reference(settings.system or "", loaded.prompts)
    target = opener.target(settings.model)
    keys = keys_of(items, target.name, params, system)
    answers = None if output is None else Answers(output, keys)
    start = 0 if answers is None else answers.done
    if start:
        out.note(f"{output} holds {start} of {len(items)} answers already: going on behind them.")
    if start == len(items):
        return
    drafter = opener.drafter(target, settings, off=settings.num_draft_tokens == 0)
    tokenizer = opener.tokenizer(target)
    parallel = min(settings.parallel or PARALLEL, len(items) - start)
    tokens, picture = most_tokens(items[start:], tokenizer, settings.image_tokens)
    tokens = min(tokens, opener.context(target)) + (settings.max_tokens or ANSWER)
    opener.require_memory(target, drafter, tokens, settings, turns=False, picture=picture)
    out.progress(f"loading {target.name}")
    opened = opener.open(target, drafter, settings, tokenizer)
    began, failed = time.monotonic(), 0

    def progress(done: int, tokens: int) -> None:
        speed = tokens / max(time.monotonic() - began, 1e-3)
        out.progress(f"{done} of {len(items)} answered, {parallel} at a time, {speed:.0f} tok/s")

    job = Job(opened, items, params, parallel, system, progress)
    for key, result in zip(keys[start:], job.results(start), strict=True):
        result.key = key
        failed += bool(result.error)
        out.clear_progress()
        if answers is None:
            out.write(result.to_json() if as_json else result.to_text())
        else:
            answers.append(result.to_json())
        if result.error and not as_json:
            out.note(f"{result.item.name}: {result.error}")
    if failed:
        raise MlxmtpError(f"{failed} of {len(items)} inputs have no answer.")
