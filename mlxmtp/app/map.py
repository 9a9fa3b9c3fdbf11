"""One prompt over many inputs, several at a time: the batch job of `mlxmtp map`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from mlxmtp.app.map_inputs import Item
from mlxmtp.app.open import Asked, OpenModel
from mlxmtp.app.turn import reserve_for
from mlxmtp.engine.answer import Answer
from mlxmtp.engine.events import End, Text, Thinking
from mlxmtp.engine.params import Params
from mlxmtp.errors import ContextOverflow, MlxmtpError, sentence

if TYPE_CHECKING:  # networks, which a server's answers do without
    from mlxmtp.engine.seat import Seat
    from mlxmtp.engine.streams import Running

_MARKS = 64  # tokens of a template around a prompt, and more


@dataclass(slots=True)
class Result:
    """The answer to one item, or what went wrong with it."""

    item: Item
    key: str = ""
    response: str = ""
    thinking: str = ""
    end: End | None = None
    error: str = ""

    def to_text(self) -> str:
        """Return the answer below the name of its input; nothing without an answer."""
        return "" if self.error else f"--- {self.item.name} ---\n{self.response.rstrip()}\n\n"

    def to_json(self) -> str:
        """Return a line of JSON."""
        found: dict[str, Any] = {"input": self.item.input, "key": self.key}
        if self.end is None:
            found["error"] = self.error
        else:
            found |= {"response": self.response, "finish_reason": self.end.finish_reason}
            found |= {"thinking": self.thinking} if self.thinking else {}
            found["stats"] = self.end.stats.to_dict()
        return json.dumps(found, ensure_ascii=False) + "\n"


@dataclass
class Job:
    """Items to ask `opened`, `parallel` at a time; `results` yields them in order."""

    opened: OpenModel
    items: Sequence[Item]
    params: Params
    parallel: int
    system: str = ""
    on_progress: Callable[[int, int], None] = lambda done, tokens: None
    tokens: int = field(default=0, init=False)

    def results(self, start: int = 0) -> Iterator[Result]:
        """Yield results in the order of the items from number `start` on, each as soon as those before it are there.

        An item that cannot be answered, one too long for the context for instance, has an `error`.
        """
        streams, waiting = self.opened.model.streams(self.parallel), iter(range(start, len(self.items)))
        found: dict[int, Result] = {}
        ended: set[int] = set()
        following = start
        try:
            while following < len(self.items):
                while len(streams.running) < self.parallel and (index := next(waiting, None)) is not None:
                    found[index] = Result(self.items[index])
                    try:
                        streams.begin(partial(self._ask, self.items[index]), index)
                    except MlxmtpError as error:
                        found[index].error = str(error)
                        ended.add(index)
                for running, event in streams.step():
                    if self._take(found[running.tag], running, event):
                        ended.add(running.tag)
                coming = sum(len(running.answer.tokens) for running in streams.running)
                self.on_progress(following + len(ended), self.tokens + coming)
                while following in ended:
                    ended.remove(following)
                    yield found.pop(following)
                    following += 1
        finally:
            streams.close()
            self.opened.save_learned()

    def _ask(self, item: Item, seat: Seat) -> Answer:
        system = [{"role": "system", "content": self.system}] if self.system else []
        model = self.opened.model.seated(seat)
        return model.stream([*system, {"role": "user", "content": item.content}], self.params)

    def _take(self, result: Result, running: Running, event: object) -> bool:
        """Take in an event; return True if it is the last one."""
        if isinstance(event, Text):
            result.response += event.text
        elif isinstance(event, Thinking):
            result.thinking += event.text
        elif isinstance(event, End):
            result.end = event
            self.tokens += event.stats.generation_tokens
            if not running.answer.complete:
                way = "allow more --max-tokens" if event.finish_reason == "length" else "leave out --stop"
                result.end, result.error = None, f"The answer was cut before it had its form: {way}."
        elif isinstance(event, Exception):
            result.error = sentence(event)
        return isinstance(event, End | Exception)


def summarise(
    opened: OpenModel,
    prompt: str,
    answers: Sequence[tuple[str, str]],
    params: Params,
    system: str = "",
    on_progress: Callable[[str], None] = lambda doing: None,
) -> Result:
    """Ask `prompt` about all answers, which come with names; where they are too long, about parts and then about those.

    A router's big model answers. Raises MlxmtpError.
    """
    texts = [f"--- {name} ---\n{text.strip()}" for name, text in answers]
    params = replace(params, constraint=None)
    room = opened.context - reserve_for(opened.context, params.max_tokens) - _MARKS
    text_side = opened.model.tokenizer
    room -= len(text_side.encode(f"{system}\n{prompt}"))
    while True:
        parts = grouped(texts, [len(text_side.encode(text)) + 2 for text in texts], room)
        apart = len(parts) == len(texts)
        if len(parts) == 1 or (apart and text_side.estimates):  # the server counts, and refuses what is too long
            on_progress("summary")
            return _answer_about(opened, prompt, texts, params, system)
        if apart:
            raise ContextOverflow("The answers are too long to be summed up: ask for shorter ones.")
        texts = []
        for number, part in enumerate(parts, 1):
            on_progress(f"summary of part {number} of {len(parts)}")
            found = _answer_about(opened, prompt, part, params, system)
            texts.append(f"--- part {number} ---\n{found.response.strip()}")


def grouped(texts: Sequence[str], tokens: Sequence[int], room: int) -> list[list[str]]:
    """Return texts in their order in groups of at most `room` tokens; a longer one is a group of its own."""
    groups: list[list[str]] = []
    filled = 0
    for text, count in zip(texts, tokens, strict=True):
        if not groups or filled + count > room:
            groups.append([])
            filled = 0
        groups[-1].append(text)
        filled += count
    return groups


def _answer_about(opened: OpenModel, prompt: str, texts: Sequence[str], params: Params, system: str) -> Result:
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": "\n\n".join([*texts, prompt])})
    opened.begin_turn(Asked(messages, params, prompt, material=True, wanted="big"))
    result = Result(Item("summary", "summary", prompt))
    for event in opened.model.stream(messages, params):
        if isinstance(event, Text):
            result.response += event.text
        elif isinstance(event, End):
            result.end = event
    return result


def keys_of(items: Sequence[Item], model: str, params: Params, system: str, kv_bits: int | None = None) -> list[str]:
    """Return what tells in a file of answers which question each answers. `model` is no alias."""
    about = {"params": repr(params), "system": system}
    if kv_bits is not None:
        about["kv_bits"] = str(kv_bits)
    return [item.key(model, about) for item in items]
