"""Attention of a few rows as a GPU and as a CPU take it, beside MLX's own function, and where that has a kernel."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest

from mlxmtp.models import device, kv_quant, metal
from mlxmtp.models.layer import attend, halves
from mlxmtp.models.metal import has_kernel, route
from mlxmtp.models.tensors import Quantization
from tests.full_size import PAIRS

SLIDING, FULL = "sliding", "full"


@pytest.mark.parametrize("cpu", [True, False])
@pytest.mark.parametrize(("heads", "groups"), [(8, 1), (8, 2), (4, 4)])
@pytest.mark.parametrize("rows", [1, 2, 9])
@pytest.mark.parametrize("keys", [40, 2100])
def test_it_is_mlxs_attention(cpu, heads, groups, rows, keys, monkeypatch):
    """Heads of 16 have no kernel anywhere, so both devices write it out."""
    monkeypatch.setattr(device, "on_cpu", lambda: cpu)
    monkeypatch.setattr(kv_quant, "APART", 2000)
    mx.random.seed(rows)
    queries, held = mx.random.normal((1, rows, heads, 16)), mx.random.normal((2, groups, keys, 16))
    mask = mx.arange(keys)[None] < mx.arange(keys - rows, keys)[:, None]
    wanted = mx.fast.scaled_dot_product_attention(
        queries.transpose(0, 2, 1, 3), held[:1], held[1:], scale=1.0, mask=mask
    )
    got = attend(queries, (held[:1], held[1:]), mask)
    assert float(mx.abs(got - wanted.transpose(0, 2, 1, 3).reshape(rows, -1)).max()) < 1e-5


@pytest.mark.parametrize(("slots", "groups", "fused"), [(1, 2, True), (2, 1, True), (2, 2, False)])
def test_metals_kernel_is_left_where_it_would_copy_keys_and_values(slots, groups, fused, monkeypatch):
    """It has one stride for slots and heads of K/V, which a half of a buffer of several slots does not keep."""
    calls: list[int] = []
    real = mx.fast.scaled_dot_product_attention

    def counted(*given: Any, **more: Any) -> mx.array:
        calls.append(1)
        return real(*given, **more)

    monkeypatch.setattr(device, "on_cpu", lambda: False)
    monkeypatch.setattr(metal, "has_kernel", lambda *_: True)
    monkeypatch.setattr(mx.fast, "scaled_dot_product_attention", counted)
    queries, held = mx.random.normal((1, 2 * slots, 4, 16)), mx.random.normal((slots, 2 * groups, 40, 16))
    mask = mx.broadcast_to(mx.arange(40)[None] < mx.array([[38], [39]]), (slots, 2, 40))
    got = attend(queries, halves(held), mask if slots > 1 else mask[0])
    assert bool(calls) == fused
    by_slot = queries.reshape(slots, 2, 4, 16).transpose(0, 2, 1, 3)
    wanted = real(by_slot, *mx.split(held, 2, axis=1), scale=1.0, mask=mask[:, None])
    assert float(mx.abs(got - wanted.transpose(0, 2, 1, 3).reshape(2 * slots, -1)).max()) < 1e-5


@pytest.mark.parametrize("rows", [64, 96, 100, 101])
def test_long_sums_over_quantized_values_are_taken_in_pieces_on_a_gpu(rows, monkeypatch):
    values = kv_quant.quantize(mx.random.normal((1, 2, rows, 64)), Quantization(8, 64))
    weights = mx.softmax(mx.random.normal((1, 2, 4, rows)), axis=-1)
    wanted = weights @ kv_quant.dequantized(values)
    monkeypatch.setattr(kv_quant, "APART", 32)
    monkeypatch.setattr(device, "on_cpu", lambda: False)
    sums: list[int] = []
    real = mx.quantized_matmul

    def counted(left: mx.array, *given: Any, **more: Any) -> mx.array:
        sums.append(left.shape[-1])
        return real(left, *given, **more)

    monkeypatch.setattr(mx, "quantized_matmul", counted)
    assert float(mx.abs(kv_quant.weighted_sum(weights, values) - wanted).max()) < 1e-5
    assert sums == [{64: 2, 96: 3, 100: 25, 101: 101}[rows]]


def heads_per_group(family: str, kind: str) -> tuple[int, int]:
    """Query heads of a K/V head, and the head size, of a published target."""
    text = PAIRS[family].text
    shared = text["num_global_key_value_heads"] if kind == FULL else None
    return text["num_attention_heads"] // (shared or text["num_key_value_heads"]), 512 if kind == FULL else 256


@pytest.mark.parametrize(
    ("family", "rows"), [("e2b", 4), ("e4b", 8), ("12b", 8), ("26b", 8), ("31b", 8)]
)  # one more than the longest draft whose sliding layers have a kernel
def test_sliding_layers_have_a_kernel_up_to_so_many_rows_and_full_ones_have_none(family, rows):
    """MLX 0.32.4's routing of a masked pass on Metal, read in the wheel: nothing ran there."""
    group, dim = heads_per_group(family, SLIDING)
    assert [n for n in range(1, 10) if has_kernel(n, group, dim)] == list(range(1, rows + 1))
    group, dim = heads_per_group(family, FULL)
    assert not any(has_kernel(n, group, dim) for n in range(1, 10))


@pytest.mark.parametrize("family", list(PAIRS))
@pytest.mark.parametrize("keys", [100, 1023, 1024, 2048, 131072])
@pytest.mark.parametrize("m5", [False, True])
def test_attention_on_metal_goes_where_the_wheel_sends_it(family, keys, m5):
    """Rounds of every length, draft steps and chunks of prompts; the limits are written out once more here."""
    text = PAIRS[family].text
    heads, sliding, full = text["num_attention_heads"], *(heads_per_group(family, kind)[0] for kind in (SLIDING, FULL))
    for rows in range(1, 10):
        fused = rows <= 8 and rows * sliding <= 32
        wanted = "few rows" if fused else "products"
        assert route(rows, heads, heads // sliding, 256, "array", keys, m5=m5) == wanted
        assert route(rows, heads, heads // full, 512, "array", keys, m5=m5) == "products"
    alone = "few rows" if full == 8 and keys >= 1024 else "products"
    assert route(1, heads, heads // full, 512, "none", keys, m5=m5) == alone
    for rows in (512, 1023, 1024, 2048):
        assert route(rows, heads, heads // full, 512, "causal", keys) == ("blocked" if rows >= 1024 else "products")
        assert route(rows, heads, heads // full, 512, "array", keys) == "products"
        least = 1024 if m5 else 2048
        wide = "blocked" if rows >= least and (m5 or rows == keys) else "products"
        assert route(rows, heads, heads // sliding, 256, "causal", keys, m5=m5) == wide
