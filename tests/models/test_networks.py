"""Targets and drafters of all five families against the reference implementation (tests/goldens)."""

from typing import Any

import mlx.core as mx
import pytest

from mlxmtp.models import drafter as drafter_module
from mlxmtp.models.config import FULL, SLIDING
from mlxmtp.models.kv_cache import FixedView, KVCache, PromptView
from tests.golden import FAMILIES, PROMPTS, Record, load_golden, relative_error
from tests.networks import drafter, target

TOLERANCE = 1e-4


def read(family: str, prompt: list[int], chunks: list[int]) -> tuple[KVCache, mx.array]:
    """The cache and all hidden states [L, H] after reading ``prompt`` in chunks of these lengths (the last repeats)."""
    network = target(family)
    cache = KVCache(network.cache_spec, network.dtype)
    cache.reserve(len(prompt) + 16)
    hidden, start = [], 0
    while start < len(prompt):
        count = chunks.pop(0) if len(chunks) > 1 else chunks[0]
        part = mx.array(prompt[start : start + count])
        view = PromptView(network.cache_spec, cache.buffers, start, len(part))
        hidden.append(network.hidden(part, view))
        cache.buffers = view.buffers
        start += len(part)
    return cache, mx.concatenate(hidden)


def record(family: str, name: str) -> Record:
    return load_golden(family).records[name]


@pytest.mark.parametrize("name", PROMPTS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("chunks", [[1000], [16], [7, 1, 30], [1]], ids=str)
def test_hidden_states_and_logits_equal_the_reference(family, name, chunks):
    wanted = record(family, name)
    _, hidden = read(family, wanted.prompt, list(chunks))
    count = len(wanted.hidden)
    assert relative_error(hidden[-count:], wanted.hidden) < TOLERANCE
    assert relative_error(target(family).logits(hidden[-count:]), wanted.logits) < TOLERANCE


@pytest.mark.parametrize("name", PROMPTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_fixed_pass_equals_reading_the_same_rows(family, name):
    """The round's view of the cache (offset on the device, ring and mask by position) against the prompt's."""
    wanted, network = record(family, name), target(family)
    cache, _ = read(family, wanted.prompt[:-5], [1000])
    view = FixedView(network.cache_spec, cache.buffers, mx.array([len(wanted.prompt) - 5]), 5)
    hidden = network.hidden(mx.array(wanted.prompt[-5:]), view)
    assert relative_error(hidden, wanted.hidden[-5:]) < TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_row_alone_is_the_last_row(family):
    """Leaving out the rows that nobody reads changes neither the result nor the cache."""
    prompt, network = record(family, "long").prompt, target(family)
    caches, rows = [], []
    for last_only in (False, True):
        cache = KVCache(network.cache_spec, network.dtype)
        cache.reserve(64)
        view = PromptView(network.cache_spec, cache.buffers, 0, len(prompt))
        rows.append(network.hidden(mx.array(prompt), view, last_only=last_only)[-1:])
        caches.append(view.buffers)
    assert relative_error(rows[1], rows[0]) < 1e-5
    assert all(mx.array_equal(a, b) for a, b in zip(*caches, strict=True))


@pytest.mark.parametrize("name", PROMPTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_drafter_reads_the_k_v_of_the_reference(family, name):
    wanted, network = record(family, name), target(family)
    cache, _ = read(family, wanted.prompt, [1000])
    length = len(wanted.prompt)
    for kind, (keys, values) in ((SLIDING, wanted.sliding), (FULL, wanted.full)):
        buffer = cache.buffers[network.stores[kind]]
        positions = mx.arange(length - keys.shape[2], length) % buffer.shape[2]
        assert relative_error(buffer[:, :, positions], mx.concatenate([keys, values], axis=1)) < TOLERANCE


def chain(family: str, wanted: Record) -> tuple[list[int], list[mx.array], list[mx.array]]:
    """Four chained draft steps after the prompt: tokens, full-vocabulary logits [V], hidden states [H]."""
    network, draft = target(family), drafter(family)
    cache, hidden = read(family, wanted.prompt, [1000])
    context = draft.context(cache.buffers, mx.array([len(wanted.prompt)]))
    token, state = mx.array([wanted.bonus]), hidden[-1:]
    tokens: list[Any] = []
    logits, states = [], []
    for _ in range(4):
        scores, state = draft.step(network.embed(token), state, mx.array([0]), cache.buffers, context)
        best = mx.argmax(scores.values, axis=-1)
        token = best if scores.ids is None else scores.ids[best]
        full = scores.values[0]
        if scores.ids is not None:
            full = mx.full((network.config.vocab_size,), full.min() - 1)
            full[scores.ids] = scores.values[0]
        tokens.append(token.item())
        logits.append(full)
        states.append(state[0])
    return tokens, logits, states


@pytest.mark.parametrize("variant", ["draft", "draft_next"])
@pytest.mark.parametrize("name", PROMPTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_chained_drafts_equal_the_reference(family, name, variant, monkeypatch):
    """Also with the query one position later, as transformers places it: one constant decides."""
    if variant == "draft_next":
        monkeypatch.setattr(drafter_module, "QUERY_BEHIND", 0)
    wanted = record(family, name)
    tokens, logits, states = chain(family, wanted)
    reference = wanted.chains[variant]
    assert tokens == reference.tokens
    for i in range(4):
        assert relative_error(states[i], reference.hidden[i]) < TOLERANCE
        assert relative_error(logits[i], reference.logits[i]) < TOLERANCE
