"""Keys and values in 4 and 8 bits: what is stored, what is seen of it, how far the network moves by it."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

import mlxmtp
from mlxmtp.decode.decoder import Decoder
from mlxmtp.engine.tokenizer import Tokenizer
from mlxmtp.errors import LoadError
from mlxmtp.limits import STEP
from mlxmtp.models.config import FULL, SLIDING, read_config
from mlxmtp.models.kv_cache import CacheSpec, FixedView, KVCache, PromptView, visible
from mlxmtp.models.kv_quant import dequantized, quantize
from mlxmtp.models.layer import attend, halves
from mlxmtp.models.load import load_target
from mlxmtp.models.target import Target
from mlxmtp.models.tensors import Quantization, kv_quantization
from tests.golden import FOLDER
from tests.networks import decode, tokens
from tests.packable import PAIRS, pair

POCKET = Path(__file__).parents[2] / "assets" / "pocket" / "target"
HEADS, DIM = 2, 64
PACKINGS = [Quantization(8, 64), Quantization(4, 64), Quantization(4, 32)]


def spec(packing: Quantization | None) -> CacheSpec:
    return CacheSpec((SLIDING, FULL, FULL), (HEADS,) * 3, (32, DIM, DIM), 8, packing)


def rows(count: int, seed: int = 0) -> mx.array:
    return mx.random.normal((1, 2 * HEADS, count, DIM), key=mx.random.key(seed))


def write(held: KVCache, start: int, new: mx.array, *, chunk: bool) -> list[Any]:
    """Writes ``new`` as both full layers' rows from ``start`` on; what their queries attend to."""
    held.reserve(start + new.shape[2])
    view: FixedView | PromptView
    if chunk:
        view = PromptView(held.spec, held.buffers, start, new.shape[2])
    else:
        view = FixedView(held.spec, held.buffers, mx.array([start], mx.int32), new.shape[2])
    seen = [view.update(i, new) for i in (1, 2)]
    held.buffers = view.buffers
    return seen


def unpacked(held: KVCache, i: int) -> mx.array:
    return dequantized(held.spec.layer(held.buffers, i))


@pytest.mark.parametrize("packing", PACKINGS, ids=str)
def test_no_entry_moves_by_more_than_a_step_of_its_group(packing):
    new = rows(50)
    packed = quantize(new, packing)
    steps = mx.repeat(mx.abs(packed.scales), packing.group_size, axis=-1)
    assert float((mx.abs(dequantized(packed) - new) / steps).max()) < 1.01


@pytest.mark.parametrize("packing", PACKINGS, ids=str)
def test_what_a_row_becomes_depends_on_nothing_but_the_row(packing):
    """However it is written and whatever happens to the buffers: packed once, and seen the same by everybody."""
    new = rows(300)
    wanted = dequantized(quantize(new, packing))
    for sizes in ([300], [7, 100, 193], [299, 1]):
        for chunk in (True, False):
            held, start = KVCache(spec(packing), mx.float32), 0
            for size in sizes:
                seen = write(held, start, new[:, :, start : start + size], chunk=chunk)
                start += size
                for one in seen:
                    shown = dequantized(one)
                    assert mx.array_equal(shown[:, :, :start], wanted[:, :, :start])
            held.reserve(10 * STEP)
            held.shrink(301)
            assert held.capacity == 2 * STEP
            for i in (1, 2):
                assert mx.array_equal(unpacked(held, i)[:, :, :300], wanted)


def test_rejected_rows_are_written_over():
    packing = PACKINGS[0]
    held = KVCache(spec(packing), mx.float32)
    write(held, 0, rows(20), chunk=True)
    write(held, 20, rows(5, seed=1), chunk=False)
    write(held, 22, rows(5, seed=2), chunk=False)
    wanted = mx.concatenate([rows(20), rows(5, seed=1)[:, :, :2], rows(5, seed=2)], axis=2)
    assert mx.array_equal(unpacked(held, 1)[:, :, :27], dequantized(quantize(wanted, packing)))


@pytest.mark.parametrize("packing", PACKINGS, ids=str)
@pytest.mark.parametrize(("heads", "length"), [(2, 1), (8, 1), (8, 4), (4, 9)])
def test_products_with_packed_rows_are_those_with_the_rows_seen(packing, heads, length):
    packed = quantize(rows(40), packing)
    queries = mx.random.normal((1, length, heads, DIM), key=mx.random.key(3))
    mask = visible(mx.arange(30, 30 + length), mx.arange(40), None)
    got = attend(queries, halves(packed), mask)
    wanted = attend(queries, halves(dequantized(packed)), mask)
    assert float(mx.abs(got - wanted).max()) < 1e-4


@pytest.mark.parametrize(
    ("packing", "share"), [(Quantization(8, 64), 9.0), (Quantization(4, 64), 5.0), (Quantization(4, 32), 6.0)]
)
def test_full_layers_take_so_many_bits_an_entry_and_rings_what_they_took(packing, share):
    """Scale and bias are float32 here; with 16 bits it is 8.5 and 4.5."""
    held, plain = KVCache(spec(packing), mx.float32), KVCache(spec(None), mx.float32)
    for one in (held, plain):
        one.reserve(3 * STEP)
    full = 2 * 2 * HEADS * DIM * 3 * STEP
    assert plain.buffers[0].shape == held.buffers[0].shape
    saved = sum(buffer.nbytes for buffer in plain.buffers) - sum(buffer.nbytes for buffer in held.buffers)
    assert saved * 8 == full * (32 - share)


def test_a_pass_writes_packed_rows_in_place_and_growth_holds_one_buffer_twice():
    held = KVCache(spec(Quantization(8, 64)), mx.float32)
    held.reserve(20_000)
    mx.eval(held.buffers)
    largest = max(buffer.nbytes for buffer in held.buffers)
    for position in range(2):
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        write(held, position, rows(1), chunk=False)
        mx.eval(held.buffers)
        assert mx.get_peak_memory() - before < largest / 2
    before, total = mx.get_active_memory(), sum(buffer.nbytes for buffer in held.buffers)
    mx.reset_peak_memory()
    held.reserve(21_000)
    grown = sum(buffer.nbytes for buffer in held.buffers)
    assert mx.get_peak_memory() - before < grown - total + 1.3 * largest


def test_what_was_cut_is_filled_in_again_and_another_packing_is_refused():
    held = KVCache(spec(Quantization(8, 64)), mx.float32)
    write(held, 0, rows(30), chunk=True)
    cut = held.cut(25)
    again = KVCache(held.spec, mx.float32)
    again.fill(cut, 25, 29)
    for i in (1, 2):
        assert mx.array_equal(unpacked(again, i)[:, :, :25], unpacked(held, i)[:, :, :25])
    for other in (None, Quantization(4, 64), Quantization(8, 32)):
        with pytest.raises(ValueError, match="buffer"):
            KVCache(spec(other), mx.float32).fill(cut, 25, 29)


@pytest.mark.parametrize(("bits", "family", "message"), [(3, "e2b", "to 4 or 8 bits, not 3"), (8, "e2b", "16 entries")])
def test_what_cannot_be_packed_is_refused_before_weights_are_read(bits, family, message, tmp_path):
    (tmp_path / "config.json").write_bytes((FOLDER / family / "target" / "config.json").read_bytes())
    with pytest.raises(LoadError, match=message):
        load_target(tmp_path, kv_bits=bits)


def test_groups_are_as_large_as_heads_allow():
    assert kv_quantization(read_config(POCKET), 4) == Quantization(4, 64)
    assert pair("31b", 32, 8)[0].cache_spec.quantization == Quantization(8, 32)


def logits(network: Target, ids: list[int]) -> mx.array:
    cache = KVCache(network.cache_spec, network.dtype)
    cache.reserve(len(ids))
    found = network.logits(network.hidden(mx.array(ids), PromptView(network.cache_spec, cache.buffers, 0, len(ids))))
    return found - mx.logsumexp(found, axis=-1, keepdims=True)


def moved(plain: Target, packed: Target, ids: list[int]) -> tuple[float, float]:
    """Mean divergence in nats, and the share of positions whose likeliest token is the same."""
    p, q = logits(plain, ids), logits(packed, ids)
    same = mx.argmax(p, axis=-1) == mx.argmax(q, axis=-1)
    return float(mx.sum(mx.exp(p) * (p - q), axis=-1).mean()), float(mx.mean(same))


@pytest.mark.parametrize(("bits", "kl"), [(8, 1e-3), (4, 0.1)])
@pytest.mark.parametrize(("family", "dim"), PAIRS)
def test_a_small_network_moves_little(family, dim, bits, kl):
    """Measured: 2e-4 and 0.03 or less, on random weights. Nothing at all would mean that nothing is packed."""
    ids = [4 + (17 * i + i * i // 3) % 120 for i in range(300)]
    divergence, _ = moved(pair(family, dim, None)[0], pair(family, dim, bits)[0], ids)
    assert 0 < divergence < kl


@cache
def own_answer() -> list[int]:
    """A question and 200 tokens of what the built-in model says to it."""
    if not (POCKET / "model.safetensors").is_file():
        pytest.skip("the built-in model has not been trained")
    prompt = Tokenizer.load(POCKET).prompt_ids([{"role": "user", "content": "How does speculative decoding work?"}])
    return prompt + decode(Decoder(load_target(POCKET), compiled="never"), prompt, 200)


@pytest.mark.parametrize(("bits", "kl", "top1"), [(8, 1e-4, 0.99), (4, 0.02, 0.96)])
def test_the_built_in_model_moves_little(bits, kl, top1):
    """Measured: 8e-6 nats and 100 %, 2e-3 nats and 99.5 %; three times as far on a conversation twice as long."""
    network, ids = load_target(POCKET), own_answer()
    divergence, same = moved(network, load_target(POCKET, kv_bits=bits), ids)
    assert 0 < divergence < kl
    assert same >= top1


def test_the_python_interface_takes_the_bits():
    if not (POCKET / "model.safetensors").is_file():
        pytest.skip("the built-in model has not been trained")
    model = mlxmtp.load(POCKET, kv_bits=8)
    first, second = (
        tokens(model.rounds([5, 6, 7], max_tokens=12, num_draft_tokens=count, stop=())) for count in (0, 3)
    )
    assert first == second
    assert (model.kv_bits, mlxmtp.load(POCKET, drafter=False).kv_bits) == (8, None)
    with pytest.raises(LoadError, match="to 4 or 8 bits, not 16"):
        mlxmtp.load(POCKET, kv_bits=16)
