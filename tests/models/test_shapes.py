"""Names and shapes from the configuration are those of the networks that get built."""

import pytest
from mlx.utils import tree_flatten

from mlxmtp.models.config import read_config
from mlxmtp.models.tensors import NORM, Quantization, Tensor, parameter_count, quantization_of, tensors
from tests import full_size
from tests.golden import FAMILIES, FOLDER
from tests.oracle import DrafterWeights, build_target


def same(config, network):
    built = {name: tuple(value.shape) for name, value in dict(tree_flatten(network.parameters())).items()}
    assert {tensor.name: tensor.shape for tensor in tensors(config)} == built


@pytest.mark.parametrize("family", FAMILIES)
def test_goldens(family):
    target = read_config(FOLDER / family / "target")
    drafter = read_config(FOLDER / family / "drafter")
    same(target, build_target(target))
    same(drafter, DrafterWeights(drafter))


@pytest.mark.parametrize("family", full_size.PAIRS)
def test_full_size(family, tmp_path):
    target, drafter = map(read_config, full_size.write(tmp_path, family))
    same(target, build_target(target))
    same(drafter, DrafterWeights(drafter))
    pair = full_size.PAIRS[family]
    assert parameter_count(target) == pair.target_parameters
    assert parameter_count(drafter) == pair.drafter_parameters


def test_packing_follows_the_block_of_config_json():
    quantization = {"group_size": 64, "bits": 4, "a.b": {"group_size": 32, "bits": 8}, "c": False}
    assert quantization_of(Tensor("x.weight", "mlp", (8, 128)), quantization) == Quantization(4, 64)
    assert quantization_of(Tensor("a.b.weight", "mlp", (8, 128)), quantization) == Quantization(8, 32)
    assert quantization_of(Tensor("c.weight", "mlp", (8, 128)), quantization) is None
    assert quantization_of(Tensor("x.weight", "mlp", (8, 100)), quantization) is None
    assert quantization_of(Tensor("x.weight", NORM, (128,), quantizable=False), quantization) is None
    assert quantization_of(Tensor("x.weight", "mlp", (8, 128)), {"mode": "mxfp4", "bits": 4}) == Quantization(
        4, 32, "mxfp4"
    )


@pytest.mark.parametrize(
    ("mode", "bits", "group"), [("affine", 4, 64), ("affine", 8, 32), ("mxfp4", 4, 32), ("nvfp4", 4, 16)]
)
def test_packed_bytes_are_those_that_mlx_makes(mode, bits, group):
    import mlx.core as mx

    arrays = mx.quantize(mx.ones((64, 128), mx.bfloat16), group_size=group, bits=bits, mode=mode)
    assert Quantization(bits, group, mode).nbytes(Tensor("x", "mlp", (64, 128))) == sum(a.nbytes for a in arrays)
