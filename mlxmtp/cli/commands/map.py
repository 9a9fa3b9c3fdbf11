"""`mlxmtp map`: one prompt over many files or lines, several at a time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Context, Option

from mlxmtp.cli.options import begin, takes
from mlxmtp.errors import MlxmtpError, UsageError
from mlxmtp.limits import PARALLEL

if TYPE_CHECKING:
    from mlxmtp.app.map_inputs import Answers, Item
    from mlxmtp.app.open import OpenModel
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
        list[Path] | None,
        Argument(metavar="FILE", help="Texts, images or audio, one answer each.", show_default=False),
    ] = None,
    input_: Annotated[
        Path | None, Option("--input", metavar="FILE.jsonl", help="Objects, one a line, - is stdin; {name}: a field.")
    ] = None,
    output: Annotated[
        Path | None, Option("-o", "--output", metavar="FILE", help="Write JSON lines here; go on where they end.")
    ] = None,
    summary: Annotated[
        str | None, Option("--summary", metavar="PROMPT", help="Ask this about all the answers at the end.")
    ] = None,
    json: Annotated[bool, Option("--json", help="JSON lines instead of text.")] = False,
) -> None:
    """Ask the same of many files or lines, several at a time, and write the answers in their order.

    \b
    Examples:
      mlxmtp map "Summarise in one sentence: {}" notes/*.txt
      mlxmtp map "{} What is on this photo?" photos/*.jpg
      mlxmtp map --json "Which language is this? {}" *.md | jq -r .response
      mlxmtp map -m auto --summary "What do they share?" "Summarise: {}" papers/*.md
      mlxmtp map --input mails.jsonl -o answers.jsonl "Reply politely to {sender}: {text}"

    On stdout every answer follows a line `--- FILE ---`; with --json it is an object with input, response,
    finish_reason and stats. With -o nothing is lost: after Ctrl-C or a kill the same command goes on behind the last
    answer. An input that cannot be answered has an error instead, the exit code is 1, and the same command asks it
    again. The answers are those that `ask` would give.
    """
    from mlxmtp.app.map_inputs import items_of_files, items_of_lines
    from mlxmtp.chat.attach import STDIN

    if bool(files) == (input_ is not None):
        raise UsageError("Give text files, or lines of JSON with --input: one of the two.")
    if output is not None and str(output) == "-":
        raise UsageError("Answers go to standard output without -o, as lines of JSON with --json: leave out -o -.")
    from mlxmtp.machine.awake import stay_awake

    loaded, out = begin(ctx)
    stay_awake()
    source = None if input_ is None or str(input_) in STDIN else input_
    items = items_of_files(prompt, files, out.note) if files else items_of_lines(prompt, source, out.note)
    try:
        batch = _Batch(loaded, out, items, output, as_json=json or output is not None)
        batch.answer()
        if summary is not None:
            batch.summarise(summary, as_json=json)
    finally:
        out.settle()
    if batch.failed:
        way = "" if output is None else f": {output} says why, and the same command asks them again"
        raise MlxmtpError(f"{batch.failed} of {len(items)} inputs have no answer{way}.")


class _Batch:
    """The answers to all items: those in the file of an earlier run, and the others."""

    def __init__(self, loaded: Loaded, out: Output, items: list[Item], output: Path | None, *, as_json: bool) -> None:
        from mlxmtp.app.open import answer_params
        from mlxmtp.app.router import small_of
        from mlxmtp.chat.attach import read_reference
        from mlxmtp.cli.resume import opener_of

        self.loaded, self.out, self.items, self.output, self.as_json = loaded, out, items, output, as_json
        self.params = answer_params(loaded.settings)
        self.system = read_reference(loaded.settings.system or "", loaded.prompts)
        self.opener = opener_of(small_of(loaded), out)
        self.target = self.opener.target(self.opener.loaded.settings.model)
        self.responses: dict[int, tuple[str, str]] = {}  # names of inputs and answers, by number
        self.failed = 0
        self._opened: OpenModel | None = None

    def answer(self) -> None:
        """Answer what has no answer yet, and write it."""
        from mlxmtp.app.map import keys_of
        from mlxmtp.app.map_inputs import Answers
        from mlxmtp.cli.terminal.signals import LastWords, interrupts

        name, loaded = self.target.name, self.loaded
        # An alias, or the name of an endpoint, may mean another model by the time the file is gone on with.
        model = loaded.aliases.get(name, name) if self.opener.here else self.opener.about(self.target, None)
        keys = keys_of(self.items, model, self.params, self.system, loaded.settings.kv_bits)
        with nullcontext() if self.output is None else Answers(self.output, keys) as answers:

            def stopped() -> None:
                if self._opened is not None:
                    self._opened.save_learned()
                try:
                    if answers is not None:
                        answers.close()
                except MlxmtpError as error:
                    self.out.error(str(error))

            words = LastWords(stopped)  # on this thread only, which may be writing the file
            with interrupts(words), words:
                self._answer(keys, answers)

    def _answer(self, keys: Sequence[str], answers: Answers | None) -> None:
        from mlxmtp.app.map import Job

        out, items = self.out, self.items
        start, again = (0, []) if answers is None else (answers.done, answers.failed)
        if answers is not None and start:
            there = f"{self.output} holds {start - len(again)} of {len(items)} answers already"
            out.note(f"{there}: continuing after them{f', {len(again)} that failed first' if again else ''}.")
            self.responses = {at: (items[at].name, text) for at, text in enumerate(answers.responses) if text}
        waiting = [*again, *range(start, len(items))]
        if not waiting:
            return
        asked = [items[at] for at in waiting]
        parallel = min(self.loaded.settings.parallel or PARALLEL, len(asked))
        opened, began = self._open(asked), time.monotonic()

        def progress(done: int, tokens: int) -> None:
            speed, done = tokens / max(time.monotonic() - began, 1e-3), len(items) - len(asked) + done
            out.progress(f"{done} of {len(items)} answered, {parallel} at a time, {speed:.0f} tok/s")

        job = Job(opened, asked, self.params, parallel, self.system, progress)
        for at, result in zip(waiting, job.results(), strict=True):
            result.key = keys[at]
            out.clear_progress()
            if answers is None:
                out.write(result.to_json() if self.as_json else result.to_text())
            else:
                answers.put(at, result.to_json())
            if result.error:
                self.failed += 1
                if not self.as_json:
                    out.error(f"{result.item.name}: {result.error}")
            else:
                self.responses[at] = result.item.name, result.response

    def summarise(self, prompt: str, *, as_json: bool) -> None:
        """Ask about all answers, and write that; a router's big model sums up."""
        from mlxmtp.app.endpoints import AUTO, endpoint_of
        from mlxmtp.app.map import summarise
        from mlxmtp.cli.resume import opener_of
        from mlxmtp.cli.terminal.presenters import went_to

        settings = self.loaded.settings
        if not self.responses:
            raise MlxmtpError("There is no answer to be summed up.")
        if settings.model == AUTO and endpoint_of(self.loaded) is None:
            if self._opened is not None:
                self._opened.close()
            router = opener_of(self.loaded, self.out)
            self._opened = router.open(router.target(AUTO), None, settings)
        opened = self._opened or self._open(self.items)
        result = summarise(
            opened,
            prompt,
            [self.responses[at] for at in sorted(self.responses)],
            self.params,
            self.system,
            self.out.progress,
        )
        self.out.clear_progress()
        self.out.write(result.to_json() if as_json else result.to_text())
        if result.end is not None and result.end.stats.route:
            stats = result.end.stats
            self.out.note("; ".join(["Summed up by " + stats.route, *filter(None, [went_to(stats)])]) + ".")

    def _open(self, items: list[Item]) -> OpenModel:
        from mlxmtp.app.map_inputs import most_tokens
        from mlxmtp.app.open import ANSWER

        opener, target, settings = self.opener, self.target, self.opener.loaded.settings
        drafter = opener.drafter(target, settings, off=settings.num_draft_tokens == 0)
        tokenizer = opener.tokenizer(target)
        tokens, media = most_tokens(items, tokenizer, settings.image_tokens)
        tokens = min(tokens, opener.context(target)) + (settings.max_tokens or ANSWER)
        opener.require_memory(target, drafter, tokens, settings, turns=False, media=media)
        self.out.progress(f"loading {target.name}")
        self._opened = opener.open(target, drafter, settings, tokenizer)
        return self._opened
