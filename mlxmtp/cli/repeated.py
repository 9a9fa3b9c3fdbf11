"""`--cache`: material that is asked about more than once is read once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlxmtp.chat.conversation import Conversation
    from mlxmtp.chat.history import Exchange
    from mlxmtp.cli.output import Output
    from mlxmtp.engine.engine import Model
    from mlxmtp.engine.prompt import Tokenizer
    from mlxmtp.settings import Loaded

_GB = 20.0
"""What may be kept if nobody says otherwise: 100 pages take 0.3 GB with E2B and some 5 GB with 31B."""

_OTHER = ("?", "A", "9.")  # questions that begin differently, also as tokens


class Repeated:
    """The part of one prompt that comes before the question, taken from disk where it is and kept there afterwards."""

    def __init__(self, loaded: Loaded, out: Output, model: Model, ids: Sequence[int], before: int) -> None:
        """`before`: how many of the prompt's `ids` do not depend on the question."""
        from mlxmtp.engine.readings import Readings

        limit = loaded.settings.cache_gb
        self._readings = Readings(loaded.places.cache / "prompts", int((_GB if limit is None else limit) * 1e9))
        self._out, self._model, self._text, self._ids = out, model, ids[:before], ids
        self._held = 0

    def recall(self) -> None:
        """Take from disk what is there, before the prompt is read."""
        self._held, note = self._readings.recall(self._model, self._ids)
        if note is not None:
            self._out.note(note)

    def keep(self) -> None:
        """Write what was read, when the answer is there."""
        if self._held >= len(self._text):
            return
        note = self._readings.keep(self._model, self._text)
        if note is not None:
            self._out.note(note)


def before_question(tokenizer: Tokenizer, conversation: Conversation, asking: Exchange, think: bool) -> int:
    """How many tokens of the prompt stay the same whatever is asked."""
    prompts = [
        tokenizer.prompt_ids(conversation.messages(replace(asking, question=question)), think=think)
        for question in (asking.question, *_OTHER)
    ]
    alike = (len(set(column)) == 1 for column in zip(*prompts, strict=False))
    return next((i for i, same in enumerate(alike) if not same), 0)
