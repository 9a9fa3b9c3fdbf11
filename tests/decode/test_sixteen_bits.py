"""In 16 bits, as on a GPU: MLX's own attention, weights as views, a round in flight, half the digits.

Last bits depend on the number of rows in a pass, so a near tie may go either way. The judge of a text is a pass over
all of it: every token must have the highest score after what precedes it, but for a few of those bits.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest

from mlxmtp.decode.decoder import Decoder
from mlxmtp.decode.sampling import Sampling
from mlxmtp.models import device
from mlxmtp.models.drafter import Drafter
from mlxmtp.models.kv_cache import KVCache, PromptView
from mlxmtp.models.load import load_drafter, load_target
from mlxmtp.models.target import Target
from tests.golden import FAMILIES, load_golden
from tests.networks import Adversary, decode

COUNT = 20
NEAR = 2**-4
"""Largest distance between a chosen token's score and the best: two steps of a score in 8 .. 16."""


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "on_cpu", lambda: False)
    monkeypatch.setattr(device, "compute_dtype", lambda stored: stored)
    gathered: Any = mx.gather_mm

    def wide(x: mx.array, weights: mx.array, **pairs: Any) -> mx.array:
        return gathered(x.astype(mx.float32), weights.astype(mx.float32), **pairs).astype(x.dtype)

    monkeypatch.setattr(mx, "gather_mm", wide)  # on a CPU it takes nothing else


def load(family: str) -> tuple[Target, Drafter]:
    golden = load_golden(family)
    target = load_target(golden.target)
    return target, load_drafter(golden.drafter, target)


def judge(target: Target, read: list[int], said: list[int]) -> None:
    text = [*read, *said]
    cache = KVCache(target.cache_spec, target.dtype)
    cache.reserve(len(text))
    hidden = target.hidden(mx.array(text), PromptView(target.cache_spec, cache.buffers, 0, len(text)))
    scores = target.logits(hidden)[len(read) - 1 : -1]
    chosen = mx.take_along_axis(scores, mx.array(said)[:, None], axis=1)[:, 0]
    assert float((scores.max(axis=1) - chosen).max()) <= NEAR


@pytest.mark.few(2)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_draft_length_writes_the_text_of_the_network(family):
    target, drafter = load(family)
    assert target.dtype == mx.bfloat16
    prompt = load_golden(family).records["long"].prompt
    for drafts in (0, 1, 3, 4, 8):
        decoder = Decoder(target, drafter, compiled="never", chunk=40)
        said = decode(decoder, prompt, COUNT, num_draft_tokens=drafts)
        assert len(said) == COUNT
        judge(target, prompt, said)


@pytest.mark.few(1)
@pytest.mark.parametrize(("family", "chunk"), [("e2b", 16), ("31b", 500)])
def test_chunks_and_turns_keep_to_it(family, chunk):
    target, drafter = load(family)
    first = load_golden(family).records["long"].prompt
    decoder = Decoder(target, drafter, compiled="never", chunk=chunk)
    said = decode(decoder, first, COUNT + 70, num_draft_tokens=3, snapshot_at=[len(first)])
    following = [*first, *said[5:20], 5, 6, 7]  # the rings have moved past the question: back to its snapshot
    judge(target, following, decode(decoder, following, COUNT, num_draft_tokens=2))
    assert decoder.reused == len(first)
    other = Decoder(target, drafter, compiled="never", chunk=chunk)
    other.import_state(decoder.export_state())
    following = [*other.tokens, 9, 10]
    judge(target, following, decode(other, following, COUNT, num_draft_tokens=4))
    assert other.reused == len(following) - 2


def test_a_hostile_drafter_costs_nothing_but_time():
    target, _ = load("26b")
    prompt = load_golden("26b").records["short"].prompt
    hostile = Decoder(target, Adversary(7, target.config.vocab_size), compiled="never")
    sampling = Sampling(temp=1.0, seed=3)
    texts = [decode(hostile, prompt, 20, num_draft_tokens=k, sampling=sampling) for k in (1, 4)]
    assert texts[0] == texts[1]


def test_the_cap_keeps_neighbouring_scores_apart(monkeypatch):
    """In 16 bits it would not: of the numbers from 1 to 64, a third would become equal to their neighbours."""
    target, _ = load("e2b")
    scores = mx.arange(0x3F80, 0x4280).astype(mx.uint16).view(mx.bfloat16)[None]
    monkeypatch.setattr(target, "_head", type("Head", (), {"project": staticmethod(lambda _: scores)}))
    capped = target.logits(scores)[0]
    assert bool((capped[1:] > capped[:-1]).all())
    narrow = mx.tanh(scores[0] / 30.0) * 30.0
    assert not bool((narrow[1:] > narrow[:-1]).all())
