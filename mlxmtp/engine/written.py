"""Answers with tool calls as the model wrote them, so that the next prompt begins with what is in the KV cache.

A template writes past calls anew: other blanks, keys in another order, numbers in another form, the text before them
trimmed. And many clients do not send thoughts back, without which a model goes on in its tools badly.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlxmtp.engine.calls import CALL_CLOSE, CallReader
from mlxmtp.engine.events import CLOSE, OPEN, Call, Splitter, Text, Thinking
from mlxmtp.engine.tokenizer import Tokenizer

_MOST_TOKENS = 1_000_000  # of all answers that are kept
_BOUNDARIES = ("<|turn>", "<|tool_response>", "<tool_response|>", "<image|>", "<audio|>")  # media end results of tools

Tokens = Sequence[int]
Message = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Answer:
    """The tokens of an answer up to its last call, and its thought as it was handed out."""

    tokens: tuple[int, ...]
    thought: str


class Written:
    """Keeps answers by the id of their first call; the oldest are forgotten."""

    def __init__(self) -> None:
        self._answers: dict[str, _Answer] = {}
        self._kept = 0

    def keep(self, number: str, calls: int, prompt: Tokens, tokens: Tokens, thought: str, tokenizer: Tokenizer) -> None:
        """Keep an answer to `prompt` of which `calls` calls were handed out, the first one with the id `number`."""
        begun: Tokens = ()
        if tokenizer.opens_in_thought(prompt):
            opening = tokenizer.special_id(OPEN)
            begun = prompt[next(i for i in range(len(prompt) - 1, -1, -1) if prompt[i] == opening) :]
        reader, end = CallReader(tokenizer), 0
        for place, token in enumerate(tokens, 1):
            if any(isinstance(part, Call) for part in reader.feed(token)):
                calls, end = calls - 1, place
            if not calls:
                break
        else:
            return  # the last call lacked its closing mark, which the template will write
        if tokenizer.opens_in_thought([*begun, *tokens[:end]]):
            return  # nor has the thought around it one, and the model would go on in it behind the result
        answer = _Answer((*begun, *tokens[:end]), thought.removesuffix("\n"))
        self._answers[number] = answer
        self._kept += len(answer.tokens)
        while self._kept > _MOST_TOKENS:
            self._kept -= len(self._answers.pop(next(iter(self._answers))).tokens)

    def with_thoughts(self, messages: Sequence[Message]) -> list[Message]:
        """Return messages in which calls have the thoughts that led to them, also where the client left them out.

        Some templates write a thought only in a message with calls, so it stands there and not beside the text.
        """
        found: list[Message] = []
        for message in messages:
            answer = self._of(message)
            text = found[-1] if found and found[-1].get("role") == "assistant" else {}
            given = text.get("reasoning") or message.get("reasoning") or ""
            if answer is not None and answer.thought and given.strip() in ("", answer.thought.strip()):
                if "tool_calls" not in text and text:
                    found[-1] = {key: value for key, value in text.items() if key != "reasoning"}
                found.append({**message, "reasoning": answer.thought})
            else:
                found.append(message)
        return found

    def splice(self, ids: Tokens, messages: Sequence[Message], tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
        """Return the prompt `ids` of `messages` with answers as they were written, and where in it each token of `ids`
        is; one more place is the end."""
        said = [message for message in messages if message.get("tool_calls")]
        pieces: list[int] = []
        places: list[int] = []
        done = 0
        for start, end, calls in _answers(ids, tokenizer) if self._answers else ():
            index = next((i for i, one in enumerate(said) if _calls_of(one) == calls), None)
            if index is None:
                continue
            answer = self._of(said[index])
            del said[: index + 1]
            written = None if answer is None else _fitting(answer.tokens, ids[start:end], tokenizer)
            if written is not None:
                places += range(len(pieces), len(pieces) + start - done)
                pieces += ids[done:start]
                places += [len(pieces)] * (end - start)
                pieces += written
                done = end
        places += range(len(pieces), len(pieces) + len(ids) - done + 1)
        return [*pieces, *ids[done:]], places

    def _of(self, message: Message) -> _Answer | None:
        calls = message.get("tool_calls")
        return self._answers.get(calls[0]["id"]) if calls else None


_Called = tuple[str, dict[str, Any]]


def _calls_of(message: Message) -> list[_Called]:
    return [(call["function"]["name"], call["function"]["arguments"]) for call in message["tool_calls"]]


def _answers(ids: Tokens, tokenizer: Tokenizer) -> Iterator[tuple[int, int, list[_Called]]]:
    """Yield where answers with calls begin and end in a prompt, and their calls."""
    boundaries = {tokenizer.special_id(mark) for mark in _BOUNDARIES}
    turn, closing = tokenizer.special_id(_BOUNDARIES[0]), tokenizer.special_id(CALL_CLOSE)
    marks = boundaries | {closing}
    start = last = 0  # of the answer, and behind its last call
    for place, token in enumerate(ids):
        if token not in marks:
            continue
        if token == closing:
            last = place + 1
            continue
        if last > start:
            yield start, last, _split(ids[start:last], tokenizer)[1]
        start = place + 1
        if token == turn:  # the line with the role is not the model's
            text = tokenizer.detokenizer()
            start = next((i for i in range(start, len(ids)) if "\n" in text.add(ids[i])), len(ids) - 1) + 1


def _split(tokens: Tokens, tokenizer: Tokenizer) -> tuple[list[str], list[_Called]]:
    """Return text and thoughts of an answer, without blanks, and its calls."""
    reader, detokenizer, splitter, calls = CallReader(tokenizer), tokenizer.detokenizer(), Splitter(), list[_Called]()
    said: list[Text | Thinking] = []
    for part in (part for token in tokens for part in reader.feed(token)):
        if isinstance(part, Call):
            calls.append((part.name, part.arguments))
        else:
            said += splitter.feed(detokenizer.add(part))
    said += splitter.finish()
    texts = ["".join(one.text for one in said if isinstance(one, kind)) for kind in (Text, Thinking)]
    return ["".join(text.split()) for text in texts], calls


def _fitting(written: Tokens, rendered: Tokens, tokenizer: Tokenizer) -> Tokens | None:
    """Return what was written, without its thoughts if `rendered` has none; None if it says something else."""
    opening, closing = tokenizer.special_id(OPEN), tokenizer.special_id(CLOSE)
    if opening not in rendered:
        written = _without_thoughts(written, opening, closing)
    return written if _split(written, tokenizer) == _split(rendered, tokenizer) else None


def _without_thoughts(tokens: Tokens, opening: int | None, closing: int | None) -> Tokens:
    found, inside = [], False
    for token in tokens:
        inside = inside or token == opening
        if not inside:
            found.append(token)
        elif token == closing:
            inside = False
    return found
