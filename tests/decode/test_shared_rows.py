"""Rows that layers and the drafter share: at long contexts a check waits until nobody reads them any more."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import pytest

from mlxmtp.decode import compile as compiling
from mlxmtp.decode.compile import Rounds
from mlxmtp.decode.decoder import Decoder
from mlxmtp.hub.registry import find_entry
from mlxmtp.models.config import FULL
from mlxmtp.models.kv_cache import CacheSpec
from mlxmtp.models.tensors import own_layers
from tests.networks import drafter, target

GREEDY = (0.0, 1.0, 0, 0.0)
PROMPT = list(range(5, 40))


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What is evaluated and awaited while it lasts."""
    waited: list[Any] = []
    evaluate = mx.eval

    def wait(*arrays: Any) -> None:
        waited.append(arrays)
        evaluate(*arrays)

    with monkeypatch.context() as patched:
        patched.setattr(mx, "eval", wait)
        yield waited


def rounds(k: int) -> list[int]:
    decoder = Decoder(target("e2b"), drafter("e2b"), in_flight=1, compiled="never")
    found = decoder.rounds(PROMPT, max_tokens=24, num_draft_tokens=k)
    return [token for one in found for token in one.tokens]


@pytest.mark.parametrize("k", [0, 3])
def test_a_check_waits_for_the_drafts_where_rows_are_shared_and_many(k, monkeypatch):
    monkeypatch.setattr(compiling, "on_cpu", lambda: False)
    wanted = rounds(k)
    with counted(monkeypatch) as without:
        assert rounds(k) == wanted
    monkeypatch.setattr(compiling, "COPIED_FROM", 0)
    with counted(monkeypatch) as waited:
        assert rounds(k) == wanted
    assert len(waited) > len(without) + 20 / (k + 1)
    monkeypatch.setattr(compiling, "on_cpu", lambda: True)
    with counted(monkeypatch) as here:
        assert rounds(k) == wanted
    assert len(here) == len(without)


def test_a_trace_evaluates_nothing(monkeypatch):
    monkeypatch.setattr(compiling, "on_cpu", lambda: False)
    monkeypatch.setattr(compiling, "COPIED_FROM", 0)
    own = Rounds(target("e2b"), drafter("e2b"), "always")
    cache = own._cache(GREEDY)
    cache.reserve(1)
    with counted(monkeypatch) as waited:
        own.trace(3, GREEDY, cache.buffers, cache.capacity)
    assert waited == []
    own.close()


@pytest.mark.parametrize(
    ("family", "capacity", "texts", "waits"),
    [
        ("e2b", 32768, 1, False), ("e2b", 131072, 1, True), ("e4b", 16384, 1, False), ("e4b", 32768, 1, True),
        ("e4b", 16384, 4, True), ("12b", 262144, 1, False), ("31b", 262144, 4, False),
    ],
)  # fmt: skip
def test_it_waits_where_a_copy_would_take_longer(family, capacity, texts, waits, monkeypatch):
    monkeypatch.setattr(compiling, "on_cpu", lambda: False)
    entry = find_entry(family)
    assert entry is not None
    config = entry.target_config()
    own = own_layers(config)
    kinds = config.layer_types[:own]
    spec = CacheSpec(
        tuple(kinds), tuple(map(config.kv_heads, kinds)), tuple(map(config.head_dim, kinds)), config.window
    )
    network: Any = SimpleNamespace(
        layers=config.layer_types, cache_spec=spec, dtype=mx.bfloat16, stores={FULL: own - 1 - kinds[::-1].index(FULL)}
    )
    found = Rounds(network, None, "never")
    monkeypatch.setattr(found, "_texts", lambda _: texts)
    assert found._waits(GREEDY, capacity) == waits
