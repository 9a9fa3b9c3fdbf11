"""Experts with gate and up in one product beside mlx-lm's own layer, for a round's rows and a prompt's."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest

from mlxmtp.models import device
from mlxmtp.models.layer import Experts
from mlxmtp.models.linear import Matrix, Weights
from mlxmtp.models.tensors import Quantization
from tests.oracle import gemma4_text

PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
HIDDEN, INNER, COUNT, CHOSEN = 64, 96, 5, 2


def layer(bits: dict[str, int]) -> Any:
    """mlx-lm's layer; ``bits`` by projection, where it is packed."""
    mx.random.seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": HIDDEN,
        "moe_intermediate_size": INNER,
        "num_experts": COUNT,
        "top_k_experts": CHOSEN,
    }
    found = gemma4_text.Experts(gemma4_text.ModelArgs(**sizes))
    packed = {f"switch_glu.{name}": {"group_size": 32, "bits": count} for name, count in bits.items()}
    nn.quantize(found, class_predicate=lambda path, _: packed.get(path, False))
    mx.eval(found.parameters())
    return found


def matrix(module: Any) -> Matrix:
    """The weights of mlx-lm's projection as ours."""
    if "scales" not in module:
        return Matrix((module.weight,))
    return Matrix((module.weight, module.scales, module.biases), Quantization(module.bits, module.group_size))


@pytest.mark.parametrize(
    "bits",
    [{}, {"gate_proj": 4, "up_proj": 4, "down_proj": 8}, {"gate_proj": 4, "up_proj": 8, "down_proj": 4}],
    ids=["float", "packed", "packed differently"],
)
@pytest.mark.parametrize("rows", [1, 2, 9, 31, 32, 70])
def test_they_answer_as_mlx_lms_do(bits, rows):
    x = mx.random.normal((rows, HIDDEN), key=mx.random.key(rows))
    indices = mx.argsort(mx.random.uniform(shape=(rows, COUNT), key=mx.random.key(1)), axis=1)[:, :CHOSEN]
    weights = mx.softmax(mx.random.normal((rows, CHOSEN), key=mx.random.key(2)), axis=1)
    source = layer(bits)
    wanted = source(x, indices, weights)
    mx.eval(wanted)
    ours = Experts(*(matrix(source.switch_glu[name]) for name in PROJECTIONS))
    assert mx.allclose(ours(x, indices, weights), wanted, rtol=1e-4, atol=1e-6).item()


@pytest.mark.parametrize(("bits", "cpu", "pairs"), [({}, False, 64), (4, True, 64), (4, False, 512), (8, False, 512)])
def test_pairs_are_sorted_from_where_the_kernel_for_sorted_ones_takes_over(bits, cpu, pairs, monkeypatch):
    """Sorting fewer is two sorts and three gathers in every layer of a round, for nothing."""
    monkeypatch.setattr(device, "on_cpu", lambda: cpu)
    packing = Quantization(bits, 32) if bits else None
    experts = 128
    weights = Matrix((mx.zeros((experts, INNER, HIDDEN)),), packing)
    assert Experts(weights, weights, weights).sorted_from == pairs


def test_no_projection_is_held_twice():
    glu = layer({}).switch_glu
    taken = {f"{name}.weight": matrix(glu[name]) for name in PROJECTIONS}
    weights = Weights(taken)
    Experts(*(weights.matrix(name) for name in PROJECTIONS))
    assert not taken
