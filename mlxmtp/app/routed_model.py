"""The models that a router chooses from, as one model: `-m auto`. Each is opened when it is wanted first.

An endpoint that fails before its first token is followed by the next model; what fails later is reported.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import TYPE_CHECKING, Any, ClassVar

from mlxmtp.app.candidates import FIRST_TOKEN, Candidates
from mlxmtp.app.endpoints import AUTO, endpoints_of
from mlxmtp.app.open import Asked, Checkpoint, LearnedDrafting, Opener, OpenModel
from mlxmtp.app.remote_model import RemoteOpenModel, text_in
from mlxmtp.app.router import SMALL, Facts, Route, Rules, Skill, reason, route, rules_of
from mlxmtp.engine.answer import Answer, OnPrefill
from mlxmtp.engine.declarations import declaration
from mlxmtp.engine.events import Call, End, Event, Text, Thinking
from mlxmtp.engine.media import Media, media_in
from mlxmtp.engine.model import Model
from mlxmtp.engine.params import Params
from mlxmtp.engine.stats import Stats
from mlxmtp.engine.tokenizer import Message, Tokenizer, Tool
from mlxmtp.engine.written import Written
from mlxmtp.errors import EndpointFailed, MlxmtpError, UsageError
from mlxmtp.settings import Settings

if TYPE_CHECKING:
    from mlxmtp.engine.seat import Seat
    from mlxmtp.engine.streams import Streams

FIRST_WORDS = 32  # tokens whose mean log-probability says whether the small model hands over
_EXPERT = declaration(
    "ask_expert",
    "Hand the question over to a larger model. Call this instead of answering when you are not sure of the answer.",
    {"type": "object", "properties": {"why": {"type": "string"}}, "required": ["why"]},
    "ask_expert",
)


@dataclass
class RouterOpener(Opener):
    """Opens the models of `[router]` as one."""

    here: ClassVar[bool] = False
    clock: Callable[[], float] = field(default=time.monotonic, kw_only=True)

    def __post_init__(self) -> None:
        """Raise ConfigError for a router that is incomplete."""
        super().__post_init__()
        self.rules = rules_of(self.loaded, endpoints_of(self.loaded))

    def target(self, name: str | None) -> Checkpoint:
        """Return the small model, by the router's name. Raises as that of any opener."""
        del name
        models = Opener(self.loaded, self.tell, self.obtain, self.attended, calls=self.calls)
        self.candidates = Candidates(self.rules, models, self.clock)
        small = self.candidates[SMALL].target
        assert small is not None
        return Checkpoint(AUTO, small.folder)

    def drafter(self, target: Checkpoint, settings: Settings, *, off: bool = False) -> Checkpoint | None:
        return None if off else self.candidates[SMALL].drafter

    def about(self, target: Checkpoint, drafter: Checkpoint | None) -> str:
        first, *others = (self.candidates[name].title for name in self.candidates)
        return f"{AUTO}: {first}, or as skills say {', '.join(others)}"

    def media(self, target: Checkpoint) -> Media:
        """Return the senses of all models here."""
        return self.candidates.media

    def context(self, target: Checkpoint) -> int:
        """Return the longest context of those that may answer."""
        return self.candidates.context

    def has(self, name: str) -> bool:
        return name == AUTO or super().has(name)

    def open(
        self, target: Checkpoint, drafter: Checkpoint | None, settings: Settings, tokenizer: Tokenizer | None = None
    ) -> OpenModel:
        """Return the models as one; none is read yet."""
        model = RoutedModel(self, tokenizer or self.tokenizer(target))
        return RoutedOpenModel(model, target, None, LearnedDrafting(self.loaded.places.data, None))


@dataclass(frozen=True, slots=True, eq=False)
class RoutedOpenModel(OpenModel):
    """The router's models, with the longest of their contexts."""

    @property
    def context(self) -> int:
        return self.routed.candidates.context

    @property
    def routed(self) -> RoutedModel:
        assert isinstance(self.model, RoutedModel)
        return self.model

    def prepare(self) -> None:
        """Read the small model."""
        self.routed.candidates.opened(SMALL)

    def begin_turn(self, asked: Asked) -> str:
        """Choose who answers. Raises MlxmtpError if nobody can."""
        return self.routed.choose(asked)

    def save_learned(self) -> None:
        self.routed.candidates.save_learned()


class RoutedModel(Model):
    """Answers with the model that was chosen for the turn; within a turn it stays the same."""

    def __init__(self, opener: RouterOpener, tokenizer: Tokenizer) -> None:
        self.name, self.drafter, self.kv_bits = AUTO, None, None
        self.rules, self.candidates = opener.rules, opener.candidates
        self._agree, self._small_tokenizer = opener.agree, tokenizer
        self._current: str | None = None  # who answered before, or answers
        self.chosen = Route((SMALL,), "")

    @property
    def media(self) -> Media:
        return self.candidates.media

    def choose(self, asked: Asked) -> str:
        """Choose who answers a turn, and return what will be done first. Raises MlxmtpError if nobody can."""
        rules, facts = self.rules, self._facts(asked)
        if asked.wanted:
            rules = replace(rules, skills=(Skill("summary", asked.wanted),))
        self._current = self.candidates.named(asked.before)
        if asked.goes_on and self._current is not None:
            rules = replace(rules, skills=())
        obstacles = {name: self.candidates.obstacle(name, facts) for name in self.candidates}
        choose = self._agreed if rules.remote == "ask" else self._route
        found = choose(rules, facts, obstacles)
        if not found.order:
            told = ", ".join(f"{self.candidates[name].title} {obstacle}" for name, obstacle in found.passed)
            raise MlxmtpError(f"No model of the router can answer this: {told}.")
        self.chosen = found
        one = self.candidates[found.order[0]]
        if one.breaker is not None:
            return f"asking {one.title}"
        seconds = one.seconds_to_load
        return f"loading {one.title}, about {seconds:.0f} s" if seconds >= 1 else ""

    def _route(self, rules: Rules, facts: Facts, obstacles: Mapping[str, str]) -> Route:
        return route(rules, facts, obstacles, self._current)

    def _agreed(self, rules: Rules, facts: Facts, obstacles: Mapping[str, str]) -> Route:
        """Choose with a person's word on the endpoint that is wanted; no other one is a way out then."""
        found = self._route(rules, facts, obstacles)
        wanted = next((name for name in found.order[:1] if name in rules.endpoints), None)
        host = "" if wanted is None else rules.endpoints[wanted].remote(FIRST_TOKEN).host
        told = f"Send this conversation, about {facts.prompt_tokens:,} tokens, to {wanted} at {host}?"
        if wanted is not None and (self._agree is None or not self._agree(told)):
            denied = {name: one or "was not allowed" for name, one in obstacles.items() if name in rules.endpoints}
            return self._route(rules, facts, {**obstacles, **denied})
        return replace(found, order=tuple(one for one in found.order if one == wanted or one not in rules.endpoints))

    def _facts(self, asked: Asked) -> Facts:
        """Return what skills look at; tokens are those of the texts, without the template's marks."""
        media = media_in(asked.messages)
        kinds = {getattr(one, "kind", "image") for one in media}
        tokens = sum(len(self._small_tokenizer.encode(text_in(one))) for one in asked.messages)
        return Facts(
            asked.question,
            tokens + sum(getattr(one, "count", 0) for one in media),
            tools=asked.tools,
            schema=asked.params.constraint is not None,
            think=asked.params.think,
            images=bool(media),
            attachments=asked.material,
            results=any(one.get("role") == "tool" for one in asked.messages),
            sees=bool(kinds - {"audio"}),
            hears="audio" in kinds,
        )

    def stream(
        self,
        messages: Sequence[Message],
        params: Params | None = None,
        *,
        on_prefill: OnPrefill | None = None,
        continues: bool = False,
        question: str = "",
        tools: Sequence[Tool] = (),
        written: Written | None = None,
        snapshot_at: Collection[int] | None = None,
    ) -> Answer:
        """Answer with the models that were chosen, in their order. Errors are raised while the answer is read."""

        def ask(opened: OpenModel, wanted: Params, offered: Sequence[Tool]) -> Answer:
            options: dict[str, Any] = {"on_prefill": on_prefill, "continues": continues, "question": question}
            options["snapshot_at"] = snapshot_at
            elsewhere, text = isinstance(opened, RemoteOpenModel), opened.model.tokenizer
            if elsewhere or text.special_ids == self._small_tokenizer.special_ids:  # ids of the same vocabulary
                options["written"] = written
            return opened.model.stream(messages, wanted, tools=offered, **options)

        return RoutedAnswer(self, params or Params(), tools, ask, may_hand_over=not continues)

    def answered_by(self, name: str) -> None:
        """Stay with a model for the rest of the turn; the next one goes on with it if no skill says otherwise."""
        self._current = name
        self.chosen = replace(self.chosen, order=(name,))

    @property
    def tokenizer(self) -> Tokenizer:
        """The text side of the model here that answered last, else of the small one."""
        name = SMALL if self._current is None or self._current in self.rules.endpoints else self._current
        opened = self.candidates[name].opened
        return self._small_tokenizer if opened is None else opened.model.tokenizer

    def prepare_constraints(self) -> None:
        """Leave that to the model that will answer."""

    def streams(self, parallel: int) -> Streams:
        raise UsageError("A router answers one question after the other: name a model with -m.")

    def seated(self, seat: Seat) -> Model:
        del seat
        return self

    def learned(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        """Free the memory of all."""
        self.candidates.close()


class RoutedAnswer(Answer):
    """An answer of the first model that gives one, with the way to it in its numbers."""

    def __init__(
        self,
        model: RoutedModel,
        params: Params,
        tools: Sequence[Tool],
        ask: Callable[[OpenModel, Params, Sequence[Tool]], Answer],
        *,
        may_hand_over: bool,
    ) -> None:
        self._model, self._params, self._tools, self._ask = model, params, tools, ask
        self._cascade = (model.rules.router.cascade or "off") if may_hand_over and params.constraint is None else "off"
        self._why = model.chosen.why
        self._passed = [(model.candidates[name].title, obstacle) for name, obstacle in model.chosen.passed]
        self._title = model.candidates[model.chosen.order[0]].title
        self._answer: Answer | None = None
        self._sent: list[str] = []  # hosts that had the text and gave no answer
        self._shown = False
        self._events = self._tried(model.chosen.order)

    @property
    def stats(self) -> Stats:
        stats = Stats() if self._answer is None else self._answer.stats
        hosts = ", ".join(dict.fromkeys(filter(None, [*self._sent, stats.sent_to])))
        by = self._title if self._shown else ""
        return replace(stats, answered_by=by, route=reason(self._title, self._why, self._passed), sent_to=hosts)

    @property
    def complete(self) -> bool:
        return self._answer is None or self._answer.complete

    @property
    def prompt(self) -> Sequence[int]:  # type: ignore[override]
        return () if self._answer is None else self._answer.prompt

    @property
    def tokens(self) -> list[int]:  # type: ignore[override]
        return [] if self._answer is None else self._answer.tokens

    def close(self) -> None:
        if self._answer is not None:
            self._answer.close()
        self._events.close()

    def _tried(self, order: Sequence[str]) -> Generator[Event, None, None]:
        for place, name in enumerate(order):
            self._title, rest = self._model.candidates[name].title, order[place + 1 :]
            self._answer = None
            try:
                over = yield from self._from(name, rest)
            except MlxmtpError as error:
                if self._shown or not rest:
                    raise
                why = error.reason if isinstance(error, EndpointFailed) else str(error).rstrip(".")
                self._passed.append((self._title, f"failed ({why})"))
                continue
            if over is None:
                return
            self._passed.append((self._title, f"handed over ({over})"))
            self._shown = False  # of the next one: should it fail now, another may answer
            yield Text(f"\n\n[{self._title} hands over to {self._model.candidates[rest[0]].title}: {over}]\n\n")

    def _from(self, name: str, rest: Sequence[str]) -> Generator[Event, None, str | None]:
        """Yield the events of one model; return the reason if it hands over."""
        one = self._model.candidates[name]
        breaker = one.breaker
        if breaker is not None and not breaker.begin():
            raise EndpointFailed(f"{one.title} is left alone for a while after failures.", "it is left alone")
        told = False
        try:
            opened = self._model.candidates.opened(name)
            cascade = self._cascade if name == SMALL and rest else "off"
            for event in self._heard(opened, cascade):
                if isinstance(event, str):
                    told = True
                    return event
                if breaker is not None and not told and isinstance(event, Text | Thinking | Call | End):
                    breaker.succeed()
                told = told or isinstance(event, Text | Thinking | Call | End)
                if told and not self._shown:
                    self._shown = True
                    self._model.answered_by(name)
                yield replace(event, stats=self.stats) if isinstance(event, End) else event
        except EndpointFailed as error:
            if self._answer is not None:
                self._sent.append(self._answer.stats.sent_to)
            if breaker is not None and error.counts:
                breaker.fail(error.retry_after)
                told = True
            raise
        finally:
            if breaker is not None and not told:
                breaker.give_up()
        return None

    def _heard(self, opened: OpenModel, cascade: str) -> Iterator[Event | str]:
        """Yield the events of a model; a text in place of one is its reason to hand over, and the last."""
        params, tools = self._params, self._tools
        if cascade == "logprob":
            params = replace(params, top_logprobs=params.top_logprobs or 0)
        if cascade == "tool":
            tools = [*tools, _EXPERT]
        self._answer = answer = self._ask(opened, params, tools)
        heard, calls = list[float](), list[Call]()
        for event in answer:
            if cascade == "tool" and isinstance(event, Call) and event.name == "ask_expert":
                answer.close()
                yield str(event.arguments.get("why") or "it is not sure")
                return
            if cascade != "off" and isinstance(event, Call):  # it may still hand over: then nobody may run this
                calls.append(event)
                continue
            if cascade == "logprob" and len(heard) < FIRST_WORDS and isinstance(event, Text | End):
                heard += [] if isinstance(event, End) else [one.logprob for one in event.logprobs]
                if heard and (len(heard) >= FIRST_WORDS or isinstance(event, End)):
                    mean = fmean(heard[:FIRST_WORDS])
                    told = f"mean log-probability {mean:.3g}"
                    if mean < (self._model.rules.router.certainty or 0.0):
                        if isinstance(event, Text):
                            yield event
                        answer.close()
                        yield told
                        return
                    self._why += f", {told}"  # so that a person finds the certainty that suits the model
            if isinstance(event, End):
                yield from calls
            yield event
