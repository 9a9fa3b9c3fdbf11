"""Where long texts break: around the window, the ring, the capacity and the context limit, however they are reached.

The judge is a pass over the whole text without any cache: every row sees the rows that its position allows.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import mlx.core as mx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxmtp.decode import decoder as decoder_module
from mlxmtp.decode.decoder import Decoder
from mlxmtp.decode.sampling import Sampling
from mlxmtp.limits import SLACK, STEP
from mlxmtp.models import kv_cache as cache_module
from mlxmtp.models.config import FULL, SLIDING
from mlxmtp.models.kv_cache import visible
from tests.networks import WAYS, decode, drafter, target

WINDOW = 16
RING = WINDOW + SLACK
LIMIT = 512
EDGES = sorted(
    {
        edge + off
        for edge in (WINDOW, 2 * WINDOW, 5 * WINDOW, RING, 2 * RING, STEP, STEP - 9, 2 * STEP - 16)
        for off in (-1, 0, 1)
    }
)


class Uncached:
    """A view of a whole text: rows are seen by position, nothing is stored."""

    unused = 0

    def __init__(self, length: int, window: int) -> None:
        self.positions = mx.arange(length)
        self.masks: dict[str, Any] = {
            FULL: visible(self.positions, self.positions, None),
            SLIDING: visible(self.positions, self.positions, window),
        }

    def update(self, i: int, rows: mx.array) -> mx.array:
        del i
        return rows


def prompt(length: int) -> list[int]:
    return [4 + (17 * i + i * i // 3) % 120 for i in range(length)]


def assert_greedy(family: str, read: list[int], said: list[int]) -> None:
    """Every token of `said` has the highest score after what precedes it, but for rounding."""
    network = target(family)
    text = mx.array(read + said)
    logits = network.logits(network.hidden(text, Uncached(len(text), network.config.window)))[len(read) - 1 : -1]
    chosen = mx.take_along_axis(logits, mx.array(said)[:, None], axis=1)[:, 0]
    assert float((logits.max(axis=1) - chosen).max()) < 1e-3


def test_the_numbers_here_are_the_goldens():
    config = target("e2b").config
    assert (config.window, config.max_positions) == (WINDOW, LIMIT)


@pytest.mark.few(21)
@pytest.mark.parametrize("family", ["e2b", "31b"])
@pytest.mark.parametrize("length", EDGES)
def test_a_prompt_that_ends_at_an_edge(family, length):
    engine = Decoder(target(family), drafter(family), compiled="never")
    said = decode(engine, prompt(length), 8, num_draft_tokens=3)
    assert_greedy(family, prompt(length), said)
    following = [*prompt(length), *said, 5, 6]  # the next turn starts at an edge, too
    if len(following) < LIMIT:
        assert_greedy(family, following, decode(engine, following, 4, num_draft_tokens=3))


@pytest.mark.few(2)
@pytest.mark.parametrize("family", ["e2b", "26b"])
@pytest.mark.parametrize("length", [3, RING - 5])
def test_an_answer_that_crosses_every_edge(family, length, monkeypatch):
    monkeypatch.setattr(cache_module, "STEP", 32)
    monkeypatch.setattr(decoder_module, "AHEAD", 1)  # so that the buffers grow under way
    engine = Decoder(target(family), drafter(family), compiled="never", in_flight=1)
    said = decode(engine, prompt(length), 110, num_draft_tokens=4)
    assert_greedy(family, prompt(length), said)


@pytest.mark.few(10)
@pytest.mark.parametrize("left", [1, 2, 3, 8, 9])
@pytest.mark.parametrize("drafts", [0, 8])
@pytest.mark.parametrize("in_flight", [0, 1])
def test_the_last_positions_of_the_context(left, drafts, in_flight):
    engine = Decoder(target("e2b"), drafter("e2b"), compiled="never", in_flight=in_flight)
    said = decode(engine, prompt(LIMIT - left), 100, num_draft_tokens=drafts)
    assert len(said) == left
    assert_greedy("e2b", prompt(LIMIT - left), said)


@cache
def plain(family: str, length: int, sampling: Sampling) -> list[int]:
    """The text as one chunk, one step of capacity and no drafter give it."""
    engine = Decoder(target(family), compiled="never", chunk=LIMIT)
    engine._cache.reserve(2 * LIMIT)
    return decode(engine, prompt(length), 24, sampling=sampling)


@settings(max_examples=15, deadline=None)
@given(
    family=st.sampled_from(["e2b", "31b"]),
    **WAYS,
)
def test_chunks_capacity_and_drafts_never_change_a_text(family, length, chunk, step, ahead, drafts, in_flight, temp):
    sampling = Sampling(temp=temp, seed=4)
    wanted = plain(family, length, sampling)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache_module, "STEP", step)
        patch.setattr(decoder_module, "AHEAD", ahead)
        engine = Decoder(target(family), drafter(family), compiled="never", chunk=chunk, in_flight=in_flight)
        assert decode(engine, prompt(length), 24, sampling=sampling, num_draft_tokens=drafts) == wanted
