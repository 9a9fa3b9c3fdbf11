"""The five full-size pairs build without memory, with the parameter counts of the published files."""

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from mlxmtp.models.config import check_pair, read_config
from mlxmtp.models.drafter import Drafter
from mlxmtp.models.load import assemble
from mlxmtp.models.target import Target
from tests import full_size
from tests.oracle import DrafterWeights, build_target


@pytest.mark.parametrize("family", full_size.PAIRS)
def test_parameters_are_those_of_the_published_files(family, tmp_path):
    pair = full_size.PAIRS[family]
    target_folder, drafter_folder = full_size.write(tmp_path, family)
    config, drafter_config = read_config(target_folder), read_config(drafter_folder)
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    network, weights = build_target(config), DrafterWeights(drafter_config)
    tensors = dict(tree_flatten(network.parameters()))
    drafter_tensors = dict(tree_flatten(weights.parameters()))
    assert sum(t.size for t in tensors.values()) == pair.target_parameters
    ordering = drafter_tensors.pop("masked_embedding.token_ordering", None)
    assert (ordering is not None) == pair.centroids
    if ordering is not None:
        assert (ordering.shape, ordering.dtype) == ((full_size.VOCAB,), mx.int64)
    assert sum(t.size for t in drafter_tensors.values()) == pair.drafter_parameters
    width, hidden = pair.drafter_text["hidden_size"], pair.text["hidden_size"]
    assert drafter_tensors["pre_projection.weight"].shape == (width, 2 * hidden)
    assert drafter_tensors["post_projection.weight"].shape == (hidden, width)
    assert drafter_tensors["model.embed_tokens.weight"].shape == (full_size.VOCAB, width)
    check_pair(config, drafter_config)
    drafter_tensors |= {} if ordering is None else {"masked_embedding.token_ordering": ordering}
    target = Target(assemble(config, tensors), config)
    Drafter(assemble(drafter_config, drafter_tensors), drafter_config, target)
    assert target.stores == {"sliding_attention": pair.stores[0], "full_attention": pair.stores[1]}
    assert mx.get_peak_memory() - before < 50_000_000


@pytest.mark.parametrize("family", full_size.PAIRS)
def test_a_drafter_fits_its_own_target_only(family, tmp_path):
    from mlxmtp.errors import LoadError

    target = read_config(full_size.write(tmp_path / family, family)[0])
    for other in full_size.PAIRS:
        drafter = read_config(full_size.write(tmp_path / "others" / other, other)[1])
        if other == family:
            check_pair(target, drafter)
        else:
            with pytest.raises(LoadError, match="does not fit this target"):
                check_pair(target, drafter)
