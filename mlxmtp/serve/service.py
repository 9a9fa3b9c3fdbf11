"""From a checked request to its answer: prompt, place in the line, events as they come."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from threading import Event, Thread
from typing import Any

from mlxmtp.app.open import OpenModel
from mlxmtp.app.worker import Failed
from mlxmtp.engine.answer import Answer, OnPrefill
from mlxmtp.engine.call_grammar import calls_only, form_or_calls
from mlxmtp.engine.constraint import Constraint
from mlxmtp.engine.events import Call, End, Text, Thinking
from mlxmtp.engine.media import Medium, kinds_in, media_in
from mlxmtp.engine.params import Params
from mlxmtp.engine.tokenizer import Tokenizer
from mlxmtp.engine.written import Written
from mlxmtp.errors import MlxmtpError, UsageError, sentence
from mlxmtp.serve.answers import Collected, Ending, Piece, ToolUse, new_id
from mlxmtp.serve.contents import MOST_MEDIA, files_in, has_unread, read_all
from mlxmtp.serve.fields import Refused
from mlxmtp.serve.metrics import Metrics
from mlxmtp.serve.models import Models, Served
from mlxmtp.serve.request import AnswerRequest
from mlxmtp.serve.scheduler import Job, Scheduler

_TURN = "<|turn>"
_MOST_EQUAL = 4
"""Equal calls in one answer; a model that writes more of them goes on for ever."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request with its model and prompt. `places`: how many tokens of it other prompts may begin with; `begun`: its
    last tokens, with which an answer of a form begins."""

    served: Served
    request: AnswerRequest
    ids: Sequence[int]
    places: Sequence[int]
    begun: Sequence[int]
    media: Sequence[Medium]  # at the negative ids of the prompt, in order
    params: Sequence[Params]


class AnswerFailed(Exception):
    """The model could not answer."""


class Service:
    """Answers with one model at a time. `defaults` are fields of `Params` for requests that do not set them."""

    def __init__(
        self,
        models: Models,
        scheduler: Scheduler,
        defaults: Mapping[str, Any],
        *,
        report: Callable[[Exception], None],
        fetches: bool = False,
    ) -> None:
        """`report` gets what an answer failed with; `fetches`: what requests name by an address is fetched."""
        self.models, self.scheduler, self._fetches = models, scheduler, fetches
        self.metrics = Metrics()
        self._written = Written()
        self._defaults, self._report = defaults, report

    async def prepare(self, request: AnswerRequest) -> Prepared:
        """Write the prompt. Raises Refused for a conversation that the template refuses."""
        served = await self.found(request.model)
        tokenizer = await self.tokenizer(served)
        request = replace(request, given={**self._defaults, **request.given})
        try:
            if has_unread(request.messages):
                _require_few(files_in(request.messages))
                request = replace(request, messages=await self._read(request))
            if media_in(request.messages):
                request = await asyncio.to_thread(self._with_media, served, request)
            written = await asyncio.to_thread(self._written_out, served.name, tokenizer, request)
            ids, places, begun, constraint = written
            params = [self._params(request, constraint, index) for index in range(request.n)]
        except UsageError as error:
            raise Refused(str(error), "response_format") from error
        except MlxmtpError as error:
            raise Refused(str(error), "messages") from error
        except ValueError as error:
            raise Refused(f"{error}.") from error
        return Prepared(served, request, ids, places, begun, media_in(request.messages), params)

    async def _read(self, request: AnswerRequest) -> list[dict[str, Any]]:
        """Return the messages with their files, in a thread of their own: files may keep one waiting for a minute, and
        a server that ends waits for none of them."""
        over, found = Event(), Future[list[dict[str, Any]]]()

        def read() -> None:
            try:
                found.set_result(read_all(request.messages, fetches=self._fetches, over=over))
            except BaseException as error:  # noqa: BLE001  (raised again where it is awaited)
                found.set_exception(error)

        found.set_running_or_notify_cancel()
        Thread(target=read, daemon=True).start()
        try:
            return await asyncio.wrap_future(found)
        finally:
            over.set()

    async def load(self, name: str) -> Served:
        """Return the model of that name once it is in memory, which is when its turn has come. Raises Refused."""
        job = Job(await self.found(name), begin=None, ended=self._report_failure)
        self.scheduler.submit(job)
        event = await job.events.get()
        if isinstance(event, Failed):
            raise Refused(sentence(event.error), status=503) from event.error
        return job.served

    async def tokenizer(self, served: Served) -> Tokenizer:
        """Return a model's text side. Raises Refused if its files cannot be read."""
        try:
            return await asyncio.wrap_future(served.tokenizer)
        except MlxmtpError as error:
            raise Refused(str(error), "model", status=503) from error

    async def found(self, name: str) -> Served:
        """Return the model of that name; one that was not asked for before is looked at. Raises Refused."""
        served = self.models.known(name)
        return await asyncio.to_thread(self.models.find, name) if served is None else served

    def submit(self, prepared: Prepared) -> list[Job]:
        """Put every answer that is wanted into the line.

        Raises Refused if it is full, or the context cannot hold the prompt.
        """
        tokens, most = len(prepared.ids), prepared.served.context
        if tokens >= most:  # agents look for these words, and then shorten the conversation
            told = f"The prompt is too long: {tokens} tokens > {most} maximum, the context of"
            raise Refused(f"{told} '{prepared.served.name}' here.", "messages", code="context_length_exceeded")
        jobs: list[Job] = []
        try:
            for params in prepared.params:
                jobs.append(self._job(prepared, params))
                self.scheduler.submit(jobs[-1])
        except Refused:
            self.cancel(jobs)
            raise
        return jobs

    def cancel(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            self.scheduler.cancel(job)

    async def pieces(self, job: Job, prepared: Prepared, prefix: str) -> AsyncIterator[Piece | Ending]:
        """Yield an answer, its ending last. Raises AnswerFailed, with a sentence for the client."""
        calls: Counter[str] = Counter()
        cut, thought, first = False, "", ""
        while True:
            event = await job.events.get()
            if isinstance(event, Failed):
                raise AnswerFailed(sentence(event.error)) from event.error
            if isinstance(event, Text | Thinking) and not cut:
                thought += event.text if isinstance(event, Thinking) else ""
                yield event
            elif isinstance(event, Call) and not cut:
                use = ToolUse(new_id(prefix), event)
                first = first or use.id
                calls[f"{event.name} {use.arguments}"] += 1
                cut = not prepared.request.parallel_calls or max(calls.values()) >= _MOST_EQUAL
                yield use
            elif isinstance(event, End):
                tokenizer = prepared.served.tokenizer.result()
                if first and job.answer is not None:
                    said = job.answer.tokens
                    self._written.keep(first, calls.total(), prepared.ids, said, thought, tokenizer)
                reason = "stop" if cut else event.finish_reason
                thinking = len(tokenizer.encode(thought)) if thought else 0
                yield Ending(reason, event.stats, called=bool(calls), stop=event.stop, thinking=thinking)
                return
            if cut:
                self.scheduler.cancel(job)

    async def collect(self, jobs: Sequence[Job], prepared: Prepared, prefix: str) -> list[tuple[Collected, Ending]]:
        """Return all answers when they are complete. Raises AnswerFailed."""
        answers = []
        for job in jobs:
            said = Collected()
            async for piece in self.pieces(job, prepared, prefix):
                if isinstance(piece, Ending):
                    answers.append((said, piece))
                else:
                    said.add(piece)
        return answers

    def _with_media(self, served: Served, request: AnswerRequest) -> AnswerRequest:
        """Return the request with media as the network gets them. Raises Refused for what cannot be read."""
        _require_few(len(media_in(request.messages)))  # documents have several
        if refused := next((served.refused[kind] for kind in kinds_in(request.messages) if kind in served.refused), ""):
            raise Refused(refused, "messages")  # for good: 503 would have clients ask again
        try:
            messages = served.media.prepared(request.messages, request.given.get("image_tokens"))
            return replace(request, messages=[dict(one) for one in messages])
        except UsageError as error:
            raise Refused(str(error), "messages", code="invalid_value") from error

    def _written_out(
        self, name: str, tokenizer: Tokenizer, request: AnswerRequest
    ) -> tuple[list[int], list[int], list[int], Constraint | None]:
        """Return the prompt, places in it, its tokens that have the form of the answer, and that form."""
        ids, places, begun = self._prompt(name, tokenizer, request)
        _require_tokens(tokenizer, request)
        constraint = _constraint(tokenizer, request)
        if begun and constraint is not None and not tokenizer.opens_in_thought(ids):
            _require_fit(tokenizer, constraint, begun)
        return ids, places, begun, constraint

    def _prompt(
        self, name: str, tokenizer: Tokenizer, request: AnswerRequest
    ) -> tuple[list[int], list[int], list[int]]:
        if request.raw is not None:
            return tokenizer.raw_ids(request.raw), [], []
        if request.tools and not tokenizer.declares_tools:
            raise Refused(f"The chat template of '{name}' does not support tools: leave them out.", "tools")
        messages, tools = self._written.with_thoughts(request.messages), request.tools
        think = bool(request.given.get("think"))
        if request.continues:
            prompt, begun = tokenizer.continued_ids(messages, think=think, tools=tools)
            formed = "constraint" in request.given and not request.forced  # a forced call may follow any text
            return prompt + begun, [], begun if formed else []
        rendered = tokenizer.prompt_ids(messages, think=think, tools=tools)
        ids, places = self._written.splice(rendered, messages, tokenizer)
        lasting = places[tokenizer.lasting(messages, rendered, think=think, tools=tools)]
        turn = tokenizer.special_id(_TURN)
        turns = [place for place, token in enumerate(ids) if token == turn]
        # Other conversations share the first turn; a retry and a summary share all up to the last question.
        return ids, sorted({*turns[1:2], *turns[-2:-1], lasting} - {0}), []

    @staticmethod
    def _params(request: AnswerRequest, constraint: Constraint | None, index: int) -> Params:
        params = {**request.given, "constraint": constraint}
        params["stop_strings"] = [*params.get("stop_strings", ()), *filter(None, request.stops)]
        if index and params.get("seed") is not None:
            params["seed"] = (params["seed"] + index) % 2**64
        return Params(**params)

    def _job(self, prepared: Prepared, params: Params) -> Job:
        room = prepared.served.context - len(prepared.ids)  # which the memory may limit

        def begin(opened: OpenModel, on_prefill: OnPrefill) -> Answer:
            if opened.cache is not None:
                opened.cache.extend(opened.model, prepared.ids)
            return opened.model.stream_ids(
                prepared.ids,
                replace(params, max_tokens=params.token_limit(opened.model.config.generation, room)),
                on_prefill=on_prefill,
                snapshot_at=prepared.places,
                begun=prepared.begun,
                calls=bool(prepared.request.tools),
                media=prepared.media,
            )

        return Job(prepared.served, begin, self._ended)

    def _ended(self, event: End | Failed, untold: bool) -> None:
        """Count an answer, and report why one failed."""
        if isinstance(event, End):
            cancelled = event.finish_reason == "cancelled"
            self.metrics.count(event.stats, read=not cancelled or event.stats.generation_tokens > 0)
        else:
            self.metrics.failed += 1
        self._report_failure(event, untold)

    def _report_failure(self, event: End | Failed, untold: bool) -> None:
        if isinstance(event, Failed) and untold:
            self._report(event.error)


def _require_few(count: int) -> None:
    if count > MOST_MEDIA:
        told = f"The messages have {count} images and audio files, and at most {MOST_MEDIA} are accepted."
        raise Refused(told, "messages")


def _require_tokens(tokenizer: Tokenizer, request: AnswerRequest) -> None:
    """Raise Refused if a bias is for tokens that the model does not have."""
    unknown = [token for token in request.given.get("logit_bias", ()) if not tokenizer.token_bytes(token)]
    if unknown:
        raise Refused(f"logit_bias: the model has no token {unknown[0]}.", "logit_bias", code="invalid_value")


def _require_fit(tokenizer: Tokenizer, form: Constraint, begun: Sequence[int]) -> None:
    """Raise Refused if no answer of the form begins like that; what has marks is left to the model's matcher."""
    text = b"".join(map(tokenizer.token_bytes, begun)).decode("utf-8", "replace")
    if tokenizer.special_ids.isdisjoint(begun) and not form.begins(text):
        told = "The answer that is to be continued does not have the form that is asked for"
        raise Refused(f"{told}: change its beginning, or leave it out.", "messages", code="invalid_value")


def _constraint(tokenizer: Tokenizer, request: AnswerRequest) -> Constraint | None:
    """Return the form that an answer must have. Raises UsageError for a schema that is not supported."""
    form: Constraint | None = request.given.get("constraint")
    if form is not None:
        form.check()
    if request.forced:
        return calls_only(request.forced, tokenizer, several=request.parallel_calls)
    if form is not None and request.tools:
        return form_or_calls(form, request.tools, tokenizer, several=request.parallel_calls)
    return form
