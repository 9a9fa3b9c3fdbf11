"""One question, from settings to the last byte of the answer.

The order is the point: everything that can be refused is refused before the weights are read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlxmtp.cli.figures import stats_line
from mlxmtp.cli.pick import pick_drafter, pick_target
from mlxmtp.errors import MlxmtpError
from mlxmtp.hub.store import Found, Store

if TYPE_CHECKING:
    from mlxmtp.cli.output import Output
    from mlxmtp.cli.presenters import Presenter
    from mlxmtp.engine.answer import Answer
    from mlxmtp.engine.engine import Model
    from mlxmtp.engine.events import FinishReason
    from mlxmtp.engine.params import Params
    from mlxmtp.engine.prompt import Prompt, Tokenizer
    from mlxmtp.settings import Loaded


_ANSWER = 1024  # tokens of an answer without a limit of its own that must fit the memory


@dataclass(frozen=True, slots=True)
class Form:
    """The shape of the answer on stdout."""

    json: bool = False
    jsonl: bool = False
    extract: bool = False
    no_stream: bool = False


class Turn:
    """One question, from settings to the last byte of the answer."""

    def __init__(self, loaded: Loaded, out: Output, message: str, form: Form, *, force: bool = False) -> None:
        self._loaded = loaded
        self._settings = loaded.settings
        self._out = out
        self._message = message
        self._form = form
        self._force = force
        self._store = Store(loaded.places, loaded.aliases)

    def show_prompt(self) -> None:
        """--dry-run: the prompt and its length, from the tokenizer alone."""
        from mlxmtp.cli.markdown import without_controls
        from mlxmtp.cli.presenters import as_json
        from mlxmtp.engine.engine import check_length, context_of

        found = self._target()
        prompt = self._prompt(_tokenizer(found))
        context, count = context_of(found.folder), len(prompt.ids)
        if self._form.json or self._form.jsonl:
            shown = {"model": found.name, "prompt": prompt.text, "tokens": count, "context": context}
            self._out.write(as_json(shown))
        else:
            text = without_controls(prompt.text) if self._out.terminal else prompt.text
            self._out.write(text if text.endswith("\n") else f"{text}\n")
            self._out.write(f"{count} tokens, context {context}\n")
        check_length(count, context, found.name)

    def answer(self) -> None:
        """The answer, streamed; everything that can be refused is refused before the weights are read."""
        from mlxmtp.engine.engine import check_length, context_of
        from mlxmtp.hub.room import require_memory

        found = self._target()
        drafter = self._drafter(found)
        tokenizer = _tokenizer(found)
        ids = self._prompt(tokenizer).ids
        check_length(len(ids), context_of(found.folder), found.name)
        params = self._params()
        require_memory(found, drafter, len(ids) + (params.max_tokens or _ANSWER), force=self._force)
        if self._renders():
            _warm_up()
        self._out.progress(f"loading {found.name}")
        model = _load(found, drafter, tokenizer, self._settings.draft_bits)
        self._stream(model, ids, params)

    def _stream(self, model: Model, ids: Sequence[int], params: Params) -> None:
        presenter = self._presenter(model)
        answer = model.stream_ids(ids, params, on_prefill=self._on_prefill)
        reason: FinishReason = "stop"
        try:
            reason = self._pass_on(answer, presenter)
        except KeyboardInterrupt:
            answer.close()
            self._cancelled(answer, presenter, model.config.max_positions)
            raise
        answer.close()
        presenter.end(reason, answer.stats)
        self._remarks(reason, answer, model)

    def _pass_on(self, answer: Answer, presenter: Presenter) -> FinishReason:
        from mlxmtp.engine.events import End, Text

        show = self._shows_thinking()
        for event in answer:
            if isinstance(event, End):
                return event.finish_reason
            if isinstance(event, Text):
                presenter.text(event.text)
                if presenter.satisfied:
                    break
            else:
                presenter.thinking(event.text)
                if show:
                    self._out.thinking(event.text)
        return "stop"

    def _cancelled(self, answer: Answer, presenter: Presenter, context: int) -> None:
        """Ctrl-C: keep what was said."""
        self._out.clear_progress()
        self._out.end_thought()
        try:
            presenter.end("cancelled", answer.stats)
        except MlxmtpError:  # no code block yet: nothing to keep
            return
        if self._settings.stats:
            self._out.line(stats_line(answer.stats, context))

    def _remarks(self, reason: FinishReason, answer: Answer, model: Model) -> None:
        stats = answer.stats
        if reason == "length":
            full = stats.prompt_tokens + stats.generation_tokens >= model.config.max_positions
            limit = "the model's own limit" if self._settings.max_tokens is None else "--max-tokens"
            why = "the context is full" if full else limit
            self._out.note(f"The answer was cut after {stats.generation_tokens} tokens ({why}).")
        if self._settings.stats:
            self._out.line(stats_line(stats, model.config.max_positions))

    def _target(self) -> Found:
        return pick_target(self._loaded, self._out, self._store, self._settings.model)

    def _drafter(self, found: Found) -> Found | None:
        off = self._settings.num_draft_tokens == 0
        return pick_drafter(self._settings, self._out, self._store, found, off=off)

    def _prompt(self, tokenizer: Tokenizer) -> Prompt:
        messages: list[Mapping[str, str]] = []
        if self._settings.system:
            from mlxmtp.chat.attach import read_reference

            messages.append({"role": "system", "content": read_reference(self._settings.system)})
        messages.append({"role": "user", "content": self._message})
        return tokenizer.prompt(messages, think=bool(self._settings.think))

    def _params(self) -> Params:
        from mlxmtp.engine.params import Params

        settings = self._settings
        return Params(
            max_tokens=settings.max_tokens,
            temp=settings.temp,
            top_p=settings.top_p,
            top_k=settings.top_k,
            min_p=settings.min_p,
            seed=settings.seed,
            num_draft_tokens="auto" if settings.num_draft_tokens is None else settings.num_draft_tokens,
            think=bool(settings.think),
        )

    def _presenter(self, model: Model) -> Presenter:
        from mlxmtp.cli import presenters

        out, form = self._out, self._form
        shape: Presenter
        if form.json:
            shape = presenters.Json(out, model.name, model.drafter)
        elif form.jsonl:
            shape = presenters.JsonLines(out, model.name, model.drafter)
        else:
            shape = presenters.Rendered(out) if self._renders() else presenters.Raw(out)
        if form.extract:
            return presenters.Extracted(shape)
        return presenters.AtOnce(shape) if form.no_stream and not form.json else shape

    def _renders(self) -> bool:
        """Whether the answer is drawn as markdown: on a terminal, unless someone wants it as it is."""
        from mlxmtp.cli.presenters import fits_markdown

        form = self._form
        as_is = self._settings.plain or form.json or form.jsonl or form.extract
        return not as_is and fits_markdown(self._out)

    def _shows_thinking(self) -> bool:
        settings = self._settings
        if settings.show_thinking is not None:
            return settings.show_thinking
        return self._out.error_terminal and not settings.quiet

    def _on_prefill(self, done: int, total: int) -> None:
        if done < total:
            self._out.progress(f"reading the prompt, {done} of {total} tokens")
        else:
            self._out.clear_progress()


def _load(found: Found, drafter: Found | None, tokenizer: Tokenizer, draft_bits: int | None) -> Model:
    from mlxmtp.engine.engine import Model

    return Model.load(
        found.folder,
        None if drafter is None else drafter.folder,
        name=found.name,
        drafter_name=None if drafter is None else drafter.name,
        draft_bits=draft_bits,
        tokenizer=tokenizer,
    )


def _tokenizer(found: Found) -> Tokenizer:
    from mlxmtp.engine.prompt import Tokenizer

    return Tokenizer.load(found.folder)


def _warm_up() -> None:
    """Import rich beside the loading of the weights, which mostly waits for the disk."""
    from threading import Thread

    from mlxmtp.cli.markdown import warm_up

    Thread(target=warm_up, daemon=True).start()
