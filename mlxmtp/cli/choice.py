"""What the settings say about answering, and the moment a model is read."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlxmtp.engine.engine import Model
    from mlxmtp.engine.params import Params
    from mlxmtp.engine.prompt import Tokenizer
    from mlxmtp.hub.store import Found
    from mlxmtp.settings import Settings


def answer_params(settings: Settings) -> Params:
    """What the settings say about answering."""
    from mlxmtp.engine.params import Params

    return Params(
        max_tokens=settings.max_tokens,
        temp=settings.temp,
        top_p=settings.top_p,
        top_k=settings.top_k,
        min_p=settings.min_p,
        seed=settings.seed,
        num_draft_tokens="auto" if settings.num_draft_tokens is None else settings.num_draft_tokens,
        think=bool(settings.think),
        think_tokens=settings.think_tokens,
    )


def read_tokenizer(found: Found) -> Tokenizer:
    """The text side of a model. Raises LoadError."""
    from mlxmtp.engine.prompt import Tokenizer

    return Tokenizer.load(found.folder)


def read_model(found: Found, drafter: Found | None, tokenizer: Tokenizer, settings: Settings) -> Model:
    """Target and drafter in memory. Raises LoadError."""
    from mlxmtp.engine.engine import Model

    return Model.load(
        found.folder,
        None if drafter is None else drafter.folder,
        name=found.name,
        drafter_name=None if drafter is None else drafter.name,
        draft_bits=settings.draft_bits,
        kv_bits=settings.kv_bits,
        tokenizer=tokenizer,
    )
