"""Norm, sum and norm in one kernel: what computes otherwise than the plain operations is not taken. It never ran."""

from __future__ import annotations

import shutil
from functools import cache
from itertools import product
from typing import Any

import mlx.core as mx
import pytest

from mlxmtp.models import fused
from tests.metal_emulator import metal_kernel

EPS = 1e-6


def with_error(size: float, which: int) -> Any:
    def kernel(*arguments: Any) -> Any:
        y, normed = fused.in_several(*arguments)
        found = [one * (1 + size) if i == which else one for i, one in enumerate([y, *normed])]
        return found[0], found[1:]

    return kernel


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16, mx.float32], ids=str)
def test_a_kernel_is_taken_if_it_computes_alike(dtype, monkeypatch):
    monkeypatch.setattr(fused, "in_one_kernel", fused.in_several)
    assert fused.computes_alike(dtype, 64, EPS)
    eps = mx.finfo(dtype).eps
    for which in range(4):
        monkeypatch.setattr(fused, "in_one_kernel", with_error(2 * eps, which))
        assert fused.computes_alike(dtype, 64, EPS)
        for error in (40 * eps, float("nan"), float("inf")):
            monkeypatch.setattr(fused, "in_one_kernel", with_error(error, which))
            assert not fused.computes_alike(dtype, 64, EPS)


@pytest.mark.parametrize("error", [RuntimeError("[metal::Device] Unable to build metal library"), ValueError("x")])
def test_a_kernel_that_does_not_run_is_left(error, monkeypatch):
    def fails(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(fused, "in_one_kernel", fails)
    assert not fused.computes_alike(mx.bfloat16, 64, EPS)


def test_every_kernel_is_made_of_what_it_is_given(monkeypatch):
    """No compiler for Metal is here: names that a variant does not have must not stand in its source."""
    made: list[dict[str, Any]] = []

    def make(**said: Any) -> int:
        made.append(said)
        return len(made)

    monkeypatch.setattr(mx.fast, "metal_kernel", make)
    fused._kernel.cache_clear()
    for before, scaled, following in product((False, True), (False, True), range(4)):
        fused._kernel(EPS, before, scaled, following)
    fused._kernel.cache_clear()
    assert len({said["name"] for said in made}) == 16
    for said in made:
        source = said["source"]
        assert "1e-06f" in source
        for name in ("before", "scale", "following0", "following2"):
            assert (f"{name}[i]" in source) == (name in said["input_names"])
        for name in ("normed0", "normed2"):
            assert (f"{name}[at" in source) == (name in said["output_names"])
        assert not {"BESIDE", "SCALED", "WRITTEN"} & set(source.replace("(", " ").replace(";", " ").split())
        assert source.count("{") == source.count("}")
        assert source.count("(") == source.count(")")


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=str)
def test_the_source_computes_what_the_plain_operations_do(dtype, monkeypatch, tmp_path):
    """Compiled as C++, with a real thread for each of the kernel's; a broken sum is found by the same test."""
    monkeypatch.setattr(mx.fast, "metal_kernel", metal_kernel(tmp_path))
    monkeypatch.setattr(fused, "_THREADS", 64)
    fused._kernel.cache_clear()
    assert fused.computes_alike(dtype, 96, EPS)
    if dtype == mx.float32:
        monkeypatch.setattr(fused, "_SOURCE", fused._SOURCE.replace("sum_x += value * value", "sum_x += value"))
        fused._kernel.cache_clear()
        assert not fused.computes_alike(dtype, 96, EPS)
    fused._kernel.cache_clear()


def test_on_a_cpu_the_plain_operations_stay():
    assert not fused.usable(mx.float32, 64, EPS) or mx.metal.is_available()


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=str)
def test_experts_are_chosen_in_one_kernel_as_by_the_plain_operations(dtype, monkeypatch, tmp_path):
    monkeypatch.setattr(mx.fast, "metal_kernel", metal_kernel(tmp_path))
    monkeypatch.setattr(fused, "_chooser", cache(fused._chooser.__wrapped__))
    assert fused.chooses_alike(dtype, 128, 8)
    if dtype == mx.bfloat16:
        return
    scores = mx.concatenate([mx.zeros((1, 128)), mx.full((1, 128), mx.nan)])  # equal ones, and none: still experts
    indices, weights = fused.chosen_in_one_kernel(scores, 8, mx.ones((128,)))
    assert mx.array_equal(mx.sort(indices[0]), mx.arange(8))
    assert mx.allclose(weights[0], mx.array(1 / 8))
    assert mx.all(indices < 128)
    fused._chooser.cache_clear()
    monkeypatch.setattr(fused, "_CHOOSE", fused._CHOOSE.replace("weight / sum", "weight"))
    assert not fused.chooses_alike(dtype, 128, 8)


def test_a_choice_that_does_not_run_or_is_another_is_left(monkeypatch):
    def fails(*_: Any) -> Any:
        raise RuntimeError("[metal::Device] Unable to build metal library")

    def others(scores: mx.array, k: int, scale: mx.array) -> Any:
        indices, weights = fused.chosen_in_several(scores, k, scale)
        return (indices + 1) % scores.shape[-1], weights

    for wrong in (fails, others):
        monkeypatch.setattr(fused, "chosen_in_one_kernel", wrong)
        assert not fused.chooses_alike(mx.bfloat16, 128, 8)
    monkeypatch.setattr(fused, "chosen_in_one_kernel", fused.chosen_in_several)
    assert fused.chooses_alike(mx.bfloat16, 128, 8)
