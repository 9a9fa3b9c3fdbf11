"""One question, from settings to the last byte of the answer.

The order is the point: everything that can be refused is refused before the weights are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from mlxmtp.app.open import answer_params, read_model, read_tokenizer
from mlxmtp.app.prompt_cache import Repeated, before_question
from mlxmtp.cli.commands.pull import pick_drafter, pick_target
from mlxmtp.cli.terminal.keyboard import ctrl_c_first, resumption
from mlxmtp.cli.terminal.presenters import stats_line
from mlxmtp.cli.terminal.progress import PrefillProgress
from mlxmtp.errors import ContextOverflow, MlxmtpError
from mlxmtp.hub.store import Store

if TYPE_CHECKING:
    from mlxmtp.chat.conversation import Conversation
    from mlxmtp.chat.history import Exchange
    from mlxmtp.cli.terminal.output import Output
    from mlxmtp.cli.terminal.presenters import Presenter
    from mlxmtp.engine.answer import Answer
    from mlxmtp.engine.events import FinishReason
    from mlxmtp.engine.model import Model
    from mlxmtp.engine.params import Params
    from mlxmtp.engine.tokenizer import Prompt, Tokenizer
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

    def __init__(
        self,
        loaded: Loaded,
        out: Output,
        conversation: Conversation,
        asking: Exchange,
        form: Form,
        *,
        force: bool = False,
    ) -> None:
        self._loaded = loaded
        self._settings = loaded.settings
        self._out = out
        self._conversation = conversation
        self._asking = asking
        self._form = form
        self._force = force
        self._store = Store(loaded.places, loaded.aliases)

    def show_prompt(self) -> None:
        """--dry-run: the prompt and its length, from the tokenizer alone."""
        from mlxmtp.cli.terminal.presenters import as_json
        from mlxmtp.engine.model import context_of

        found = pick_target(self._loaded, self._out, self._store, self._settings.model)
        prompt = self._prompt(read_tokenizer(found))
        context, count = context_of(found.folder), len(prompt.ids)
        if self._form.json or self._form.jsonl:
            shown = {"model": found.name, "prompt": prompt.text, "tokens": count, "context": context}
            self._out.write(as_json(shown))
        else:
            self._out.write(prompt.text if prompt.text.endswith("\n") else f"{prompt.text}\n")
            self._out.write(f"{count} tokens, context {context}\n")
        self._check_room(count, context, found.name)

    def answer(self) -> None:
        """The answer, streamed; everything that can be refused is refused before the weights are read."""
        from mlxmtp.app.learned import remembered
        from mlxmtp.app.open import require_memory
        from mlxmtp.engine.model import context_of

        found = pick_target(self._loaded, self._out, self._store, self._settings.model)
        off = self._settings.num_draft_tokens == 0
        drafter = pick_drafter(self._settings, self._out, self._store, found, off=off)
        tokenizer = read_tokenizer(found)
        ids = self._prompt(tokenizer).ids
        self._check_room(len(ids), context_of(found.folder), found.name)
        params = answer_params(self._settings)
        cached = bool(self._settings.cache)  # the reading is kept as it was before the answer: a snapshot
        rows, kv_bits = len(ids) + (params.max_tokens or _ANSWER), self._settings.kv_bits
        require_memory(found, drafter, rows, force=self._force, turns=cached, kv_bits=kv_bits)
        if self._renders():
            _warm_up()
        self._out.progress(f"loading {found.name}")
        model = read_model(found, drafter, tokenizer, self._settings)
        self._answered_by(found.name)
        before = before_question(tokenizer, self._conversation, self._asking, params.think) if cached else 0
        with remembered(model, drafter, self._loaded.places, self._settings.draft_bits):
            self._stream(model, ids, params, before)

    def _stream(self, model: Model, ids: Sequence[int], params: Params, before: int) -> None:
        """`before`: tokens that do not depend on the question, to be taken from disk and kept there."""
        self._conversation.ask(self._asking.question, self._asking.attached)
        presenter = self._presenter(model)
        sampling = asdict(params)
        repeated = Repeated(self._loaded, self._out.note, model, ids, before) if before else None
        if repeated is not None:
            repeated.recall()
        answer = model.stream_ids(ids, params, on_prefill=PrefillProgress(self._out).count, snapshot_at=[before])
        reason: FinishReason = "stop"
        try:
            with ctrl_c_first(), resumption():
                reason = self._pass_on(answer, presenter)
        except KeyboardInterrupt:
            answer.close()
            self._conversation.finish("cancelled", answer.stats.to_dict(), sampling)
            self._cancelled(answer, presenter, model.config.max_positions)
            raise
        answer.close()
        self._conversation.finish(reason, answer.stats.to_dict(), sampling)
        presenter.end(reason, answer.stats)
        self._remarks(reason, answer, model)
        if repeated is not None:
            repeated.keep()
        if self._conversation.trouble is not None:
            raise MlxmtpError(self._conversation.trouble)

    def _pass_on(self, answer: Answer, presenter: Presenter) -> FinishReason:
        from mlxmtp.engine.events import End, Text

        show = self._shows_thinking()
        for event in answer:
            if isinstance(event, End):
                return event.finish_reason
            if isinstance(event, Text):
                self._conversation.part(text=event.text)
                presenter.text(event.text)
                if presenter.satisfied:
                    break
            elif event.text:
                self._conversation.part(thinking=event.text)
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

    def _prompt(self, tokenizer: Tokenizer) -> Prompt:
        return tokenizer.prompt(self._conversation.messages(self._asking), think=bool(self._settings.think))

    def _check_room(self, count: int, context: int, name: str) -> None:
        """Raise ContextOverflow for a prompt that is too long; one of many turns must leave room for an answer."""
        from mlxmtp.chat.context import fit, reserve_for
        from mlxmtp.engine.model import check_length

        if not self._conversation.exchanges:
            check_length(count, context, name)
            return
        room = fit(count, (), context, reserve_for(context, self._settings.max_tokens))
        if room.full:
            session = self._conversation.session
            raise ContextOverflow(
                f"The conversation with this question has {count:,} tokens, which leaves no room for an answer in the "
                f"{context:,} of '{name}': ask anew, without -c, or leave out its oldest turns in "
                f"mlxmtp chat {'-c' if session is None else f'-r {session}'}."
            )
        if room.warns:
            self._out.note(f"The conversation fills {room.percent} % of the context.")

    def _answered_by(self, name: str) -> None:
        before = self._conversation.model
        if before and before != name:
            self._out.note(f"This conversation was with {before}; {name} goes on with it.")
        if before != name:
            self._conversation.use_model(name)

    def _presenter(self, model: Model) -> Presenter:
        from mlxmtp.cli.terminal import presenters

        out, form = self._out, self._form
        shape: Presenter
        if form.json:
            shape = presenters.Json(out, model.name, model.drafter, self._conversation.session)
        elif form.jsonl:
            shape = presenters.JsonLines(out, model.name, model.drafter, self._conversation.session)
        else:
            shape = presenters.Rendered(out) if self._renders() else presenters.Raw(out)
        if form.extract:
            return presenters.Extracted(shape)
        return presenters.AtOnce(shape) if form.no_stream and not form.json else shape

    def _renders(self) -> bool:
        """Whether the answer is drawn as markdown: on a terminal, unless someone wants it as it is."""
        from mlxmtp.cli.terminal.presenters import fits_markdown

        form = self._form
        as_is = self._settings.plain or form.json or form.jsonl or form.extract
        return not as_is and fits_markdown(self._out)

    def _shows_thinking(self) -> bool:
        settings = self._settings
        if settings.show_thinking is not None:
            return settings.show_thinking
        return self._out.error_terminal and not settings.quiet


def _warm_up() -> None:
    """Import rich beside the loading of the weights, which mostly waits for the disk."""
    from threading import Thread

    from mlxmtp.cli.terminal.markdown import warm_up

    Thread(target=warm_up, daemon=True).start()
