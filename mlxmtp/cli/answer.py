"""`mlxmtp ask`: one turn on stdout and stderr.

All that can be refused is refused before the weights are read, but for tool servers, which start meanwhile.
"""

from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from threading import Thread

from mlxmtp.app.open import ANSWER, Checkpoint, Opener, OpenModel, answer_params
from mlxmtp.app.prompt_cache import PromptCache, prefix_before_question
from mlxmtp.app.tools.calls import ROUNDS, CallRunner
from mlxmtp.app.tools.chosen import Tools
from mlxmtp.app.turn import Outcome, Turn
from mlxmtp.chat.conversation import Conversation
from mlxmtp.chat.history import Exchange
from mlxmtp.chat.message import ToolCall
from mlxmtp.cli.calls import call_line, progress_line
from mlxmtp.cli.terminal import presenters
from mlxmtp.cli.terminal.keyboard import resumption
from mlxmtp.cli.terminal.markdown import warm_up
from mlxmtp.cli.terminal.output import Output
from mlxmtp.cli.terminal.progress import PrefillProgress
from mlxmtp.cli.terminal.signals import LastWords, interrupts
from mlxmtp.engine.answer import Answer
from mlxmtp.engine.events import Text, Thinking
from mlxmtp.engine.media import Medium, largest, media_in
from mlxmtp.engine.model import Model, check_length
from mlxmtp.engine.params import Params
from mlxmtp.engine.stats import Stats
from mlxmtp.engine.tokenizer import Message, Tokenizer
from mlxmtp.errors import ContextOverflow, MlxmtpError, UsageError
from mlxmtp.settings import Loaded


@dataclass(frozen=True, slots=True)
class Form:
    """The shape of the answer on stdout."""

    json: bool = False
    jsonl: bool = False
    extract: bool = False
    no_stream: bool = False


@dataclass
class OneAnswer:
    """One question and its answer, between pipes."""

    loaded: Loaded
    out: Output
    opener: Opener
    conversation: Conversation
    asking: Exchange
    form: Form
    tools: Tools

    def __post_init__(self) -> None:
        self.settings = self.loaded.settings
        self.turn = Turn(self.conversation, "ask", self.asking)
        self._spoke, self._gap = False, ""  # between the text before calls and the one after them
        # Markdown is drawn on a terminal, unless someone wants the answer as it is.
        as_is = self.settings.plain or self.settings.in_form or self.form.json or self.form.jsonl or self.form.extract
        self.renders = not as_is and presenters.fits_markdown(self.out)

    def take_tools(self) -> None:
        """Wait for the tool servers. Raises MlxmtpError for one that does not work: the answer may need it."""
        if self.tools.servers is not None:
            self.out.progress("starting tool servers")
        remarks = self.tools.renew()
        for line in self.tools.written if self.settings.debug else ():
            self.out.line(line)
        self._require_servers()
        self._runner = CallRunner(self.tools.box, self.tools.approvals, on_progress=self._show_call)
        for remark in remarks:
            self.out.note(remark)

    def _require_servers(self) -> None:
        """Raise MlxmtpError for a tool server that does not work."""
        if complaints := self.tools.complaints:
            raise MlxmtpError(complaints[0])

    def show_prompt(self) -> None:
        """Write the prompt and its length for --dry-run, from the tokenizer alone."""
        if not self.opener.here:
            raise UsageError("--dry-run shows the prompt of a model on this machine: name one with -m.")
        found = self.opener.target(self.settings.model)
        tokenizer = self.opener.tokenizer(found)
        self.take_tools()
        tools = self.tools.declarations
        messages = self._messages(found)
        prompt = tokenizer.prompt(messages, think=bool(self.settings.think), tools=tools)
        context, count = self.opener.context(found), len(prompt.ids)
        if self.form.json or self.form.jsonl:
            shown = {"model": found.name, "prompt": prompt.text, "tokens": count, "context": context}
            self.out.write(presenters.as_json(shown))
        else:
            self.out.write(prompt.text if prompt.text.endswith("\n") else f"{prompt.text}\n")
            self.out.write(f"{count} tokens, context {context}\n")
        self._check_fit(count, messages, tokenizer, context, found.name)

    def answer(self) -> None:
        """Write the answer as it comes; Ctrl-C ends the process after what was said. Raises MlxmtpError."""
        settings = self.settings
        params = answer_params(settings)
        target = self.opener.target(settings.model)
        drafter = self.opener.drafter(target, settings, off=settings.num_draft_tokens == 0)
        tokenizer = self.opener.tokenizer(target)
        messages = self._messages(target)
        ids = self._prompt(messages, target, drafter, tokenizer, whole=self.tools.servers is None)
        self._require_servers()  # as far as is known: they are waited for behind the weights
        if self.renders:  # what draws is imported beside the loading of the weights, which mostly waits for the disk
            Thread(target=warm_up, daemon=True).start()
        self.out.progress(f"loading {target.name}" if self.opener.here else f"asking {target.name}")
        opened = self.opener.open(target, drafter, settings, tokenizer)
        self.take_tools()
        if self.tools.servers is not None:
            ids = self._prompt(messages, target, drafter, tokenizer)
        before = self.conversation.model
        if before and before != target.name:
            self.out.note(f"This conversation was with {before}; {target.name} goes on with it.")
        if before != target.name:
            self.conversation.use_model(target.name)
        self._stream(opened, ids, params, media_in(messages))

    def _prompt(
        self,
        messages: list[Message],
        target: Checkpoint,
        drafter: Checkpoint | None,
        tokenizer: Tokenizer,
        *,
        whole: bool = True,
    ) -> list[int]:
        """Return the prompt with the tools that are there, which is `whole` once those of servers are.

        Raises ContextOverflow, TooLarge if there is no room for it.
        """
        settings = self.settings
        ids = tokenizer.prompt_ids(messages, think=bool(settings.think), tools=self.tools.declarations)
        self._check_fit(len(ids), messages, tokenizer, self.opener.context(target), target.name, warns=whole)
        # --cache stores the prompt as it was before the answer: a snapshot takes memory.
        tokens, cached = len(ids) + (settings.max_tokens or ANSWER), bool(settings.cache)
        media = largest(media_in(messages))
        self.opener.require_memory(target, drafter, tokens, settings, turns=cached, media=media)
        return ids

    def _messages(self, target: Checkpoint) -> list[Message]:
        """Return the conversation as the model reads it, and say what was attached to this question."""
        messages = self.turn.messages
        if not media_in(messages):
            return messages
        messages = self.turn.prepared(self.opener.media(target), self.settings.image_tokens)
        for one in media_in(messages[-1:]):
            for note in one.notes:
                self.out.note(note)
            if self.out.error_terminal:
                self.out.note(presenters.medium(one))
        return messages

    def _stream(self, opened: OpenModel, ids: list[int], params: Params, media: list[Medium]) -> None:
        model = opened.model
        cache, prefix, loaded = self._from_cache(model, ids, params)
        if doing := self.turn.begin(opened, params, tools=self.tools.declarations):
            self.out.progress(doing)
        presenter = self._presenter(opened)
        on_prefill = PrefillProgress(self.out).count
        if self.opener.here and not self.tools.box:
            answer = model.stream_ids(ids, params, on_prefill=on_prefill, snapshot_at=[prefix], media=media)
        else:
            answer = self.turn.stream(params, on_prefill, [prefix])

        def cut_short() -> None:
            self.turn.end("cancelled", answer.stats)
            self.out.settle()
            with suppress(MlxmtpError):  # no code block yet: there is nothing to write
                presenter.end("cancelled", answer.stats)
                self._show_stats(answer.stats, opened.context)

        last_words = LastWords(cut_short)
        try:
            with interrupts(last_words), resumption():
                outcome = self.turn.run(answer, lambda event: self._show(event, presenter), last_words)
                while outcome is None and self._call(last_words, presenter):
                    answer = self.turn.stream(params, on_prefill, [prefix])
                    outcome = self.turn.run(answer, lambda event: self._show(event, presenter), last_words)
                outcome = outcome or self.turn.end("stop", answer.stats)
        except Exception:
            if self._spoke:  # a pipe gets nothing of an answer that never began
                with suppress(MlxmtpError):
                    presenter.end("cancelled", answer.stats)
            raise
        presenter.end(outcome.reason, answer.stats)
        for remark in self.tools.unsaved_approvals():
            self.out.note(remark)
        if outcome.reason == "length":
            self.say_cut(outcome, answer.stats.generation_tokens, opened.context)
        self._show_stats(answer.stats, opened.context)
        if cache is not None and loaded < prefix:
            self._note(cache.save(model, ids[:prefix]))
        self._require_whole(outcome, answer)

    def _require_whole(self, outcome: Outcome, answer: Answer) -> None:
        """Raise MlxmtpError for an answer that lacks what was asked for."""
        if self.settings.in_form and outcome.reason in ("length", "stop") and not answer.complete:
            way = "--max-tokens allows more" if outcome.reason == "length" else "leave out --stop"
            raise MlxmtpError(f"The answer was cut before it had the requested form: {way}.")
        if self._runner.spent:
            raise MlxmtpError(f"The answer was ended: it went on calling tools after {ROUNDS} rounds.")
        self.tools.approvals.require_none_refused()
        if self.conversation.trouble is not None:
            raise MlxmtpError(self.conversation.trouble)

    def _from_cache(self, model: Model, ids: list[int], params: Params) -> tuple[PromptCache | None, int, int]:
        """Return the cache of prompts, the tokens that other questions share with this one, and how many it had."""
        if not self.settings.cache or not self.opener.here:  # a server keeps what it has read by itself
            return None, 0, 0
        prepared = partial(model.media.prepared, image_tokens=self.settings.image_tokens)
        about = model.tokenizer, self.conversation, self.asking, params.think, prepared
        prefix = prefix_before_question(*about, self.tools.declarations)
        if not prefix:
            return None, 0, 0
        cache = PromptCache.of(self.loaded)
        loaded, remark = cache.load(model, ids)
        self._note(remark)
        return cache, prefix, loaded

    def say_cut(self, outcome: Outcome, tokens: int, context: int) -> None:
        limit = "the model's own limit" if self.settings.max_tokens is None else "--max-tokens"
        why = "the context is full" if outcome.fills(context) else limit
        self.out.note(f"The answer was cut after {tokens} tokens ({why}).")
        if outcome.thinking and not outcome.said:
            self.out.note("All of it was reasoning. Give more --max-tokens, or end that with --think-tokens N.")

    def _show_call(self, call: ToolCall, seconds: float, told: str) -> None:
        if seconds >= 1:
            self.out.progress(progress_line(call, seconds, told))

    def _call(self, waiting: LastWords, presenter: presenters.Presenter) -> bool:
        """Carry out the calls of the answer; false if it has had all it may have. What is raised ends the turn."""
        presenter.settle()
        for call in self.turn.calls:
            presenter.call(call)
        with waiting:
            answered = self.turn.carry_out(self._runner)
        for _, result in answered:
            presenter.result(result)
        self._gap = "\n\n" if self._spoke else ""
        if self.out.error_terminal and not self.settings.quiet:
            self.out.settle()
            for call, result in answered:
                self.out.line(call_line(call, result))
        return not self._runner.spent

    def _show(self, event: Text | Thinking, presenter: presenters.Presenter) -> bool:
        if isinstance(event, Text):
            presenter.text(self._gap + (event.text.lstrip("\n") if self._gap else event.text))
            self._gap, self._spoke = "", self._spoke or bool(event.text.strip())
            return not presenter.satisfied
        if event.text:
            presenter.thinking(event.text)
            show = self.settings.show_thinking
            if (self.out.error_terminal and not self.settings.quiet) if show is None else show:
                if self._spoke:
                    presenter.settle()
                self.out.thinking(event.text)
        return True

    def _show_stats(self, stats: Stats, context: int) -> None:
        if self.settings.stats:
            self.out.remark(presenters.stats_line(stats, context))
        elif stats.route and stats.sent_to:
            self.out.note(f"The {presenters.went_to(stats)}.")

    def _note(self, remark: str | None) -> None:
        if remark is not None:
            self.out.note(remark)

    def _check_fit(
        self,
        count: int,
        messages: list[Message],
        tokenizer: Tokenizer,
        context: int,
        name: str,
        *,
        warns: bool = True,
    ) -> None:
        """Raise ContextOverflow for a prompt that is too long; one of many turns must leave room for an answer.

        An estimate refuses nothing: it may be twice the count.
        """
        if tokenizer.estimates and count >= context:
            if warns:
                told = f"By estimate the prompt has {count:,} tokens, and the context of '{name}' holds {context:,}"
                self.out.note(f"{told}: the server says whether it is too long.")
            return
        if not self.conversation.exchanges:
            check_length(count, context, name)
            return
        fit = self.turn.fit(count, messages, tokenizer, context, self.settings.max_tokens)
        if fit.full and not tokenizer.estimates:
            session = self.conversation.origin
            raise ContextOverflow(
                f"The conversation with this question has {count:,} tokens, which leaves no room for an answer in the "
                f"{context:,} of '{name}': ask anew, without -c, or leave out its oldest turns in "
                f"mlxmtp chat {'-c' if session is None else f'-r {session}'}."
            )
        if fit.warns and warns:
            self.out.note(f"The conversation fills {fit.percent} % of the context.")

    def _presenter(self, opened: OpenModel) -> presenters.Presenter:
        out, form, model = self.out, self.form, opened.model
        shape: presenters.Presenter
        if form.json or form.jsonl:
            session = self.conversation.session
            head = {"model": model.name, "drafter": model.drafter, **({"session": session} if session else {})}
            shape = presenters.Json(out, head) if form.json else presenters.JsonLines(out, head)
        else:
            shape = presenters.Rendered(out) if self.renders else presenters.Raw(out)
        if form.extract:
            return presenters.Extracted(shape, stops=bool(self.settings.stop))
        return presenters.AtOnce(shape) if form.no_stream and not form.json else shape
