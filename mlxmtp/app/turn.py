"""One turn for every front end, from any thread: `fit`, `begin`, `take` every event but the last, `end` once."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from itertools import accumulate, pairwise
from operator import sub
from typing import Any, Literal

from mlxmtp.app.open import Asked, OpenModel
from mlxmtp.app.tools.calls import CallRunner
from mlxmtp.chat.conversation import Conversation
from mlxmtp.chat.history import Exchange
from mlxmtp.chat.message import Message, ToolCall, ToolResult
from mlxmtp.engine import tokenizer
from mlxmtp.engine.answer import Answer, OnPrefill
from mlxmtp.engine.events import Call, End, FinishReason, Text, Thinking
from mlxmtp.engine.media import Media, Medium, media_in
from mlxmtp.engine.params import Params
from mlxmtp.engine.stats import Stats
from mlxmtp.engine.tokenizer import Tokenizer, Tool

Kind = Literal["ask", "edit", "regenerate", "continue"]
"""A new question, other words for the last one, another answer to it, or more of that answer."""

WARN_AT = 0.8
_NOTHING = nullcontext()
RESERVE = 1024
"""Tokens an answer needs if nobody set a limit of its own; a small context reserves at most an eighth of itself."""


@dataclass(frozen=True, slots=True)
class Fit:
    """A prompt beside the context. Counts are tokens; `used` includes the next question, not the answer's reserve.

    `full`: the answer would not have its reserve. Then `droppable` says how many of the oldest exchanges must go;
    None means that the question alone is too long.
    """

    used: int
    context: int
    reserve: int
    droppable: int | None = 0

    @property
    def full(self) -> bool:
        return self.used + self.reserve > self.context

    @property
    def warns(self) -> bool:
        return not self.full and self.used >= WARN_AT * self.context

    @property
    def percent(self) -> int:
        return 100 * self.used // self.context


def reserve_for(context: int, max_tokens: int | None) -> int:
    """Return the tokens to leave for the answer: its limit, or RESERVE; at most an eighth of the context."""
    return min(RESERVE if max_tokens is None else max_tokens, context // 8)


def fit(used: int, exchanges: Sequence[int], context: int, reserve: int) -> Fit:
    """Judge a prompt of `used` tokens, the new question included; `exchanges` are the shares of it, oldest first.

    A share may be a lower bound (the text without the template's marks): then more is dropped than need be, never less.
    """
    left = accumulate(exchanges, sub, initial=used)
    return Fit(used, context, reserve, next((n for n, tokens in enumerate(left) if tokens + reserve <= context), None))


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a turn. `error` if it failed; then there may be no `stats`."""

    text: str
    thinking: str
    reason: FinishReason
    stats: Stats | None
    error: Exception | None
    called: bool = False

    @property
    def said(self) -> bool:
        """True if there is an answer, or a tool was called: a thought is none."""
        return self.called or bool(self.text.strip())

    def fills(self, context: int) -> bool:
        """Return True if prompt and answer leave no room in a context of so many tokens."""
        return self.stats is not None and self.stats.prompt_tokens + self.stats.generation_tokens >= context


class Turn:
    """One answer on its way into a conversation and its session."""

    def __init__(self, conversation: Conversation, kind: Kind, asking: Exchange) -> None:
        """`asking` is the exchange as the model will read it, with a reply only if that is to be continued."""
        self.kind, self.asking = kind, asking
        self._conversation = conversation
        self._before = None if kind == "ask" else conversation.exchanges[-1]
        self._opened: OpenModel | None = None
        self._dropped = 0
        self._sampling: dict[str, Any] | None = None
        self._text: list[str] = []
        self._thinking: list[str] = []
        self._tools: Sequence[Tool] = ()
        self._answer: Answer | None = None
        self._thought_of_calls = ""
        self.calls: list[ToolCall] = []  # that wait for results; see `pause`
        self._called = False

    @property
    def messages(self) -> list[tokenizer.Message]:
        if self._opened is not None:
            return self._conversation.messages()
        return self._conversation.messages(self.asking, instead=self._before is not None)

    def prepared(self, media: Media, image_tokens: int | None) -> list[tokenizer.Message]:
        """Return the messages with what the network gets of images and audio. Raises as `Media.prepare` does."""
        return media.prepared(self.messages, image_tokens)

    def fit(
        self,
        used: int,
        messages: Sequence[tokenizer.Message],
        text: Tokenizer,
        context: int,
        max_tokens: int | None,
    ) -> Fit:
        """Judge whether a prompt of `used` tokens leaves room for the answer, and what can be left out if not.

        `messages` are those of the prompt, as `prepared` returns them.
        """
        reserve = reserve_for(context, max_tokens)
        # An answer goes on while there is any room.
        state = fit(used, (), context, 1 if self.kind == "continue" else reserve)
        if not state.full:
            return state
        shares = exchange_tokens(self._conversation, messages, text)
        return fit(used, shares if self._before is None else shares[:-1], context, reserve)

    def begin(self, opened: OpenModel, params: Params, drop: int = 0, tools: Sequence[Tool] = ()) -> str:
        """Change the conversation so that the answer can come; `drop` of its oldest exchanges leave the prompt.

        `tools` may be called in it. Returns what is done before, if anything. Raises MlxmtpError if nobody can answer.
        """
        asked = Asked(
            self.messages,
            params,
            self.asking.question,
            tools=bool(tools),
            material=any(one.material or one.media for one in [*self._conversation.exchanges[drop:], self.asking]),
            before=self._answered_before(drop),
            goes_on=self.kind == "continue",
        )
        doing = opened.begin_turn(asked)
        self._opened, self._dropped, self._sampling, self._tools = opened, drop, asdict(params), tools
        self._conversation.drop_oldest(drop)
        if self.kind == "ask":
            one = self.asking
            self._conversation.ask(one.question, one.attached, one.mentioned, one.media)
        elif self.kind == "edit":
            self._conversation.replace_question(self.asking.question, self.asking.mentioned, self.asking.media)
        elif self.kind == "regenerate":
            self._conversation.retract_reply()
        return doing

    def _answered_before(self, drop: int) -> str:
        """Return the model of the last answer that stays in the prompt, or that is to be continued."""
        stays = self._conversation.exchanges[drop:]
        if self.kind in ("edit", "regenerate"):
            stays = stays[:-1]
        return next((one.model for one in reversed(stays) if one.answered or one.calls), "")

    def stream(
        self, params: Params, on_prefill: OnPrefill | None = None, snapshot_at: Collection[int] | None = None
    ) -> Answer:
        """Begin an answer, or go on after calls. `snapshot_at` as in `Model.stream`."""
        assert self._opened is not None
        goes_on = self.kind == "continue" and not self._called
        options: dict[str, Any] = {"continues": goes_on, "question": "" if self._called else self.asking.question}
        options |= {"tools": self._tools, "written": self._opened.written, "snapshot_at": snapshot_at}
        self._answer = self._opened.model.stream(self.messages, params, on_prefill=on_prefill, **options)
        return self._answer

    def run(
        self,
        answer: Answer,
        show: Callable[[Text | Thinking], bool],
        waiting: AbstractContextManager[object] = _NOTHING,
    ) -> Outcome | None:
        """Take a whole answer on this thread, until `show` returns false; what is raised cancels the turn.

        None: it has `calls`, and another one follows their results (`returned`). `waiting` is entered whenever the
        model is at work, and only then.
        """
        reason: FinishReason = "stop"
        events = iter(answer)
        try:
            while True:
                with waiting:
                    event = next(events, None)
                if event is None:
                    break
                if isinstance(event, End):
                    reason = event.finish_reason
                    break
                if isinstance(event, Text | Thinking | Call):
                    self.take(event)
                if isinstance(event, Text | Thinking) and not show(event):
                    break
        except BaseException:
            answer.close()
            self.end("cancelled", answer.stats)
            raise
        answer.close()
        if self.calls and reason != "length":
            self.pause(answer.stats)
            return None
        return self.end(reason, answer.stats)

    def take(self, event: Text | Thinking | Call) -> None:
        if isinstance(event, Call):
            number = event.id or f"call_{secrets.token_hex(8)}"
            self.calls.append(ToolCall(id=number, name=event.name, arguments=event.arguments))
        elif isinstance(event, Text):
            self._text.append(event.text)
            self._conversation.part(text=event.text)
        elif event.text:
            self._thinking.append(event.text)
            self._thought_of_calls += event.text
            self._conversation.part(thinking=event.text)

    def pause(self, stats: Stats) -> None:
        """End an answer that has calls: what was said so far is kept, and the turn goes on with `returned`."""
        assert self._opened is not None
        answer, first, count = self._answer, self.calls[0].id, len(self.calls)
        if answer is not None and answer.tokens:
            said, thought = answer.tokens, self._thought_of_calls
            self._opened.written.keep(first, count, answer.prompt, said, thought, self._opened.model.tokenizer)
        self._conversation.finish("tool", stats.to_dict(), self._sampling, self.calls)
        self._called, self._thought_of_calls = True, ""

    def carry_out(self, runner: CallRunner) -> list[tuple[ToolCall, ToolResult]]:
        """Run the calls and take their results: `stream` goes on from there. What is raised cancels the turn."""
        called = self.calls
        try:
            results = runner.carry_out(called)
        except BaseException:
            self.end("cancelled")
            raise
        self.returned(results)
        return list(zip(called, results, strict=True))

    def returned(self, results: Sequence[ToolResult]) -> None:
        """Take the results of the calls."""
        self.calls = []
        self._conversation.add(Message("tool", tuple(results)))

    def end(
        self, reason: FinishReason, stats: Stats | None = None, error: Exception | None = None, *, returns: bool = False
    ) -> Outcome:
        """Finish the answer and save what drafting learned. Silence is undone; `returns`: the question, too."""
        assert self._opened is not None
        said, thought = "".join(self._text), "".join(self._thinking)
        outcome = Outcome(said, thought, reason, stats, error, self._called)
        self._conversation.finish(reason, None if stats is None else stats.to_dict(), self._sampling)
        goes_on = self.kind == "continue" and bool(said)  # with blanks, too
        if not (outcome.said or goes_on) and (self._before is not None or returns):
            if self._before is not None:
                self._conversation.put_back(self._before)
            else:
                self._conversation.undo()
            self._conversation.take_back_oldest(self._dropped)
        self._opened.learned.save(self._opened.model)  # now: most conversations end with their window
        return outcome


def exchange_tokens(conversation: Conversation, messages: Sequence[tokenizer.Message], text: Tokenizer) -> list[int]:
    """Return the tokens of every exchange in a prompt's `messages` without the template's marks, oldest first."""
    begins = [at for at, one in enumerate(messages) if one["role"] == "user"]
    counts = (
        sum(_tokens(one, text) for one in messages[begin:end]) for begin, end in pairwise([*begins, len(messages)])
    )
    return [next(counts) if one.answered or one.calls else 0 for one in conversation.exchanges]


def _tokens(message: tokenizer.Message, text: Tokenizer) -> int:
    """Return the tokens of texts, media, and arguments of calls."""
    content = message["content"]
    texts = [content] if isinstance(content, str) else [one["text"] for one in content if one["type"] == "text"]
    for call in message.get("tool_calls", ()):
        given = call["function"]["arguments"].values()
        texts += [one if isinstance(one, str) else json.dumps(one, ensure_ascii=False) for one in given]
    media: list[Medium] = media_in([message])
    return sum(len(text.encode(one)) for one in texts) + sum(one.count for one in media)
