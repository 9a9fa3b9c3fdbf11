"""Log-probabilities beside the text that their tokens wrote."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from mlxmtp.engine.events import Event, Text, TokenLogprob

if TYPE_CHECKING:
    from mlxmtp.decode.logprobs import Logprob
    from mlxmtp.engine.tokenizer import Tokenizer


class TextLogprobs:
    """Add the tokens of a text as they are decoded; they leave with the pieces of it, which may come later.

    A token whose text never comes, because a stop string or a mark took it, leaves with none.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self._detokenizer = tokenizer, tokenizer.detokenizer()
        self._waiting: deque[tuple[TokenLogprob, int]] = deque()  # with the length of the text up to its end
        self._written = self._shown = 0  # characters

    def add(self, one: Logprob) -> None:
        """Take the next token of the text."""
        self._written += len(self._detokenizer.add(one.token))
        top = tuple(self._named(*other) for other in one.top)
        self._waiting.append((replace(self._named(one.token, one.logprob), top=top), self._written))

    def beside(self, events: Iterable[Event]) -> list[Event]:
        """Return events, texts with the tokens that end in them."""
        return [self._with(event) if isinstance(event, Text) else self._skip(event) for event in events]

    def _with(self, text: Text) -> Text:
        self._shown = min(self._shown + len(text.text), self._written)
        found = []
        while self._waiting and self._waiting[0][1] <= self._shown:
            found.append(self._waiting.popleft()[0])
        return replace(text, logprobs=tuple(found))

    def _skip(self, event: Event) -> Event:
        self._waiting.clear()
        self._shown = self._written
        return event

    def _named(self, token: int, logprob: float) -> TokenLogprob:
        return TokenLogprob(token, self._tokenizer.token_bytes(token), logprob)
