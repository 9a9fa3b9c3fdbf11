"""Loaded golden networks, once per test run, and drafters made for tests."""

from __future__ import annotations

from functools import cache
from typing import Any

import mlx.core as mx
from hypothesis import strategies as st

from mlxmtp.decode.decoder import Decoder
from mlxmtp.decode.round import Round
from mlxmtp.models.drafter import Drafter, Scores
from mlxmtp.models.load import load_drafter, load_target
from mlxmtp.models.target import Target
from tests.golden import load_golden

WAYS: dict[str, Any] = {
    "length": st.sampled_from([1, 15, 16, 17, 45, 79, 80, 81, 161, 250, 257, 300]),
    "chunk": st.one_of(st.integers(1, 40), st.sampled_from([64, 79, 80, 81, 128, 256, 500])),
    "step": st.sampled_from([1, 3, 16, 64, 100, 256]),
    "ahead": st.sampled_from([1, 20, 512]),
    "drafts": st.sampled_from([0, 1, 2, 3, 4, 5, 7, 8, "auto"]),
    "in_flight": st.integers(0, 2),
    "temp": st.sampled_from([0.0, 1.0]),
}
"""A text depends on `length` and `temp`, and on nothing else here."""


@cache
def target(family: str) -> Target:
    return load_target(load_golden(family).target)


@cache
def drafter(family: str) -> Drafter:
    return load_drafter(load_golden(family).drafter, target(family))


class Adversary:
    """A drafter that proposes `token` whatever it sees, with scores no distribution has."""

    def __init__(self, token: int, vocab: int) -> None:
        self._values = mx.where(mx.arange(vocab) == token, 1e6, -1e6)[None]

    def context(self, buffers: list[mx.array], offset: mx.array) -> list[mx.array]:
        del buffers, offset
        return []

    def step(self, embedding: mx.array, hidden: mx.array, position: mx.array, *_: Any) -> tuple[Scores, mx.array]:
        del embedding, position
        return Scores(self._values, None), hidden


class Oracle:
    """A drafter that knows the text: `text[p]` is the token at position p."""

    def __init__(self, text: list[int], vocab: int) -> None:
        self._text, self._vocab = mx.array(text + [0] * 64, mx.int32), vocab

    def context(self, buffers: list[mx.array], offset: mx.array) -> list[mx.array]:
        del buffers, offset
        return []

    def step(self, embedding: mx.array, hidden: mx.array, position: mx.array, *_: Any) -> tuple[Scores, mx.array]:
        del embedding
        return Scores(mx.where(mx.arange(self._vocab) == self._text[position], 1e6, -1e6)[None], None), hidden


def tokens(rounds: Any) -> list[int]:
    """All kept tokens of some rounds."""
    return [token for round_ in rounds for token in round_.tokens]


def decode(decoder: Decoder, prompt: list[int], count: int, **options: Any) -> list[int]:
    return tokens(decoder.rounds(prompt, max_tokens=count, **options))


__all__ = ["Adversary", "Oracle", "Round", "decode", "drafter", "target", "tokens"]
