"""Norm, sum and norm in one kernel: what computes otherwise than the plain operations is not taken. It never ran."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest

from mlxmtp.models import fused

EPS = 1e-6
PLAIN = fused.add_norm


def plain(h: mx.array, x: mx.array, weight: mx.array, eps: float, scale: Any, following: Any) -> Any:
    return PLAIN(h, x, weight, eps, scale=scale, following=following)


def with_error(size: float, which: int) -> Any:
    def kernel(*arguments: Any) -> list[mx.array]:
        return [one * (1 + size) if i == which else one for i, one in enumerate(plain(*arguments))]

    return kernel


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16, mx.float32], ids=str)
def test_a_kernel_is_taken_if_it_computes_alike(dtype, monkeypatch):
    monkeypatch.setattr(fused, "in_one_kernel", plain)
    assert fused.computes_alike(dtype, 64, EPS)
    eps = mx.finfo(dtype).eps
    for which in (0, 1):
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
    for scaled in (False, True):
        for followed in (False, True):
            fused._kernel(EPS, scaled, followed)
    fused._kernel.cache_clear()
    assert len({said["name"] for said in made}) == 4
    for said in made:
        source = said["source"]
        assert "1e-06f" in source
        for name in ("scale", "following"):
            assert (f"{name}[i]" in source) == (name in said["input_names"])
        assert ("normed[at" in source) == ("normed" in said["output_names"])
        assert "SCALED" not in source
        assert "FOLLOWED" not in source
        assert source.count("{") == source.count("}")


def test_on_a_cpu_the_plain_operations_stay():
    assert not fused.usable(mx.float32, 64, EPS) or mx.metal.is_available()
