"""With packed keys and values drafting still changes nothing: not the length, not chunks, capacity, turns or files.

A row is packed from numbers whose last bits depend on the shape of the pass that computed them, so once in a while an
entry lands one step beside. The judge of a text is therefore a pass over all of it without a cache, as in
`test_edges.py`, with more room for ties.
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
from mlxmtp.engine.model import Model
from mlxmtp.errors import CacheRefused
from mlxmtp.limits import SLACK
from mlxmtp.models import kv_cache as cache_module
from mlxmtp.models.config import FULL, SLIDING
from mlxmtp.models.kv_cache import visible
from mlxmtp.models.kv_quant import dequantized, quantize
from mlxmtp.models.target import Target
from tests.networks import WAYS, Adversary, Oracle, decode, tokens
from tests.packable import PAIRS, pair

LIMIT = 512
BITS = (8, 4)
CASES = [(family, dim, bits) for family, dim in PAIRS for bits in BITS]
CASE = ("family", "dim", "bits")


class Whole:
    """A view of a whole text: rows are seen by position, nothing is stored; full layers see theirs as packed."""

    unused = 0

    def __init__(self, network: Target, length: int) -> None:
        self.positions = mx.arange(length)
        self._spec = network.cache_spec
        self.masks: dict[str, Any] = {
            FULL: visible(self.positions, self.positions, None),
            SLIDING: visible(self.positions, self.positions, self._spec.window),
        }

    def update(self, i: int, rows: mx.array) -> mx.array:
        how = self._spec.quantization
        assert how is not None
        return dequantized(quantize(rows, how)) if self._spec.kinds[i] == FULL else rows


def prompt(length: int) -> list[int]:
    return [4 + (17 * i + i * i // 3) % 120 for i in range(length)]


def decoder(family: str, dim: int, bits: int, draft: Any = None, **options: Any) -> Decoder:
    target, own = pair(family, dim, bits)
    return Decoder(target, draft or own, **({"compiled": "never"} | options))


def assert_greedy(network: Target, read: list[int], said: list[int]) -> None:
    """Every token of `said` has the highest score after what precedes it, but for an entry or two one step beside."""
    text = mx.array(read + said)
    logits = network.logits(network.hidden(text, Whole(network, len(text))))[len(read) - 1 : -1]
    chosen = mx.take_along_axis(logits, mx.array(said)[:, None], axis=1)[:, 0]
    assert float((logits.max(axis=1) - chosen).max()) < 0.02


@pytest.mark.few(2)
@pytest.mark.parametrize(CASE, CASES)
def test_the_text_is_that_of_the_rounded_rows_and_of_no_others(family, dim, bits):
    network, read = pair(family, dim, bits)[0], prompt(100)
    said = decode(decoder(family, dim, bits), read, 60, num_draft_tokens=3)
    assert_greedy(network, read, said)
    if bits == 4:
        assert said != decode(Decoder(pair(family, dim, None)[0], compiled="never"), read, 60)


@pytest.mark.few(2)
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temp=1.0, top_p=0.9, seed=5)], ids=str)
@pytest.mark.parametrize(CASE, CASES)
def test_no_draft_length_and_no_drafter_changes_a_text(family, dim, bits, sampling):
    read = prompt(45)
    plain = decode(decoder(family, dim, bits), read, 24, sampling=sampling, num_draft_tokens=0)
    known = Oracle(read + plain, 128)
    for k in (1, 2, 3, 7):
        draft = (None, known, Adversary(plain[1], 128))[k % 3]
        engine = decoder(family, dim, bits, draft)
        assert decode(engine, read, 24, sampling=sampling, num_draft_tokens=k) == plain, k
    rounds = list(decoder(family, dim, bits, known).rounds(read, max_tokens=24, num_draft_tokens=5, sampling=sampling))
    assert all(round_.accepted == 5 for round_ in rounds[1:-1])


@pytest.mark.parametrize(CASE, CASES)
def test_the_drafter_sees_the_rounded_rows(family, dim, bits):
    """Its drafts are those it makes of the target's rows as a plain buffer would hold them."""
    target, drafter = pair(family, dim, bits)
    engine = decoder(family, dim, bits)
    decode(engine, prompt(60), 2, num_draft_tokens=0)
    held, place = engine._cache, target.stores[FULL]
    offset, embedding = mx.array([61], mx.int32), target.embed(mx.array([9]))
    hidden = mx.random.normal(embedding.shape, key=mx.random.key(1))
    packed = drafter.step(embedding, hidden, offset, held.buffers, drafter.context(held.buffers, offset))[0].values
    plain, plain_drafter = pair(family, dim, None)
    rows: Any = target.cache_spec.layer(held.buffers, place)
    buffers = [held.buffers[held.spec.places(i)[0]] for i in range(len(plain.cache_spec.kinds))]
    buffers[place] = dequantized(rows)
    wanted = plain_drafter.step(embedding, hidden, offset, buffers, plain_drafter.context(buffers, offset))[0].values
    assert float(mx.abs(packed - wanted).max()) < 1e-4 * float(mx.abs(wanted).max())


@pytest.mark.parametrize(CASE, CASES[:2])
def test_compiled_rounds_say_the_same_while_buffers_grow(family, dim, bits, monkeypatch):
    monkeypatch.setattr(cache_module, "STEP", 32)
    monkeypatch.setattr(decoder_module, "AHEAD", 1)
    wanted = decode(decoder(family, dim, bits), prompt(20), 60, num_draft_tokens=0)
    engine = decoder(family, dim, bits, Oracle(prompt(20) + wanted, 128), compiled="always", in_flight=1)
    assert decode(engine, prompt(20), 60, num_draft_tokens=3) == wanted


@cache
def plain(case: tuple[str, int, int], length: int, sampling: Sampling) -> list[int]:
    """The text as one chunk, one step of capacity and no drafter give it."""
    engine = decoder(*case, chunk=LIMIT)
    engine._cache.reserve(2 * LIMIT)
    return decode(engine, prompt(length), 24, sampling=sampling, num_draft_tokens=0)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    case=st.sampled_from(CASES),
    knows=st.booleans(),
    **WAYS,
)
def test_chunks_capacity_and_drafts_never_change_a_text(
    case, length, chunk, step, ahead, drafts, in_flight, knows, temp
):
    sampling = Sampling(temp=temp, seed=4)
    wanted = plain(case, length, sampling)
    draft = Oracle(prompt(length) + wanted, 128) if knows else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache_module, "STEP", step)
        patch.setattr(decoder_module, "AHEAD", ahead)
        family, dim, bits = case
        engine = decoder(family, dim, bits, draft, chunk=chunk, in_flight=in_flight)
        assert decode(engine, prompt(length), 24, sampling=sampling, num_draft_tokens=drafts) == wanted


@pytest.mark.few(2)
@pytest.mark.parametrize(CASE, CASES)
def test_turns_go_back_to_rows_that_were_packed_once(family, dim, bits):
    engine, first = decoder(family, dim, bits), prompt(45)
    said = decode(engine, first, 2 * SLACK, num_draft_tokens=3, snapshot_at=[len(first)])
    before = engine._cache.cut(len(first))[-1].tolist()  # biases of the last full layer
    edited = [*first[:-5], 7, 8]
    for following, reused in (([*first, *said[-20:], 5], len(first)), (edited, len(first) - 5)):
        assert decode(engine, following, 20, num_draft_tokens=2) == decode(decoder(family, dim, bits), following, 20)
        assert engine.reused == reused
    kept = len(first) - 5
    assert mx.array_equal(mx.array(before)[:, :, :kept], engine._cache.cut(kept)[-1])


@pytest.mark.parametrize(CASE, CASES)
def test_another_process_goes_on_and_one_with_other_bits_reads_again(family, dim, bits, tmp_path):
    path, first = tmp_path / "kv.safetensors", prompt(100)

    def model(kv_bits: int | None) -> Model:
        target, own = pair(family, dim, kv_bits)
        return Model(Decoder(target, own, compiled="never"), target.config, kv_bits=kv_bits)

    def said(one: Model, ids: list[int]) -> list[int]:
        return tokens(one.rounds(ids, max_tokens=20, num_draft_tokens=2, stop=()))

    one = model(bits)
    following = [*first, *said(one, first), 5, 6]
    one.save_cache(path)
    other = model(bits)
    assert other.load_cache(path) == len(first) + 19
    assert said(other, following) == said(model(bits), following)
    for kv_bits, kept in ((None, f"in {bits} bits.*unpacked"), (12 - bits, f"in {bits} bits.*in {12 - bits} bits")):
        assert model(kv_bits).cache_label() != one.cache_label()
        with pytest.raises(CacheRefused, match=kept):
            model(kv_bits).load_cache(path)
    unpacked = model(None)
    said(unpacked, first)
    unpacked.save_cache(path)
    with pytest.raises(CacheRefused, match=f"unpacked.*in {bits} bits"):
        one.load_cache(path)
