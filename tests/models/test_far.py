"""Rotation near the end of a published context: against the reference, and against exact angles."""

import math
from typing import Any

import mlx.core as mx
import pytest

from mlxmtp.models.config import FULL, SLIDING
from mlxmtp.models.kv_cache import visible
from mlxmtp.models.layer import Rotary
from tests.golden import FOLDER, relative_error
from tests.networks import target

FAMILIES = ("e2b", "31b")


class Scattered:
    """A view of tokens at given positions and of nothing else: every layer sees these rows alone."""

    unused = 0

    def __init__(self, positions: mx.array, window: int) -> None:
        self.positions = positions
        self.masks: dict[str, Any] = {
            FULL: visible(positions, positions, None),
            SLIDING: visible(positions, positions, window),
        }
        self.rows: dict[int, mx.array] = {}

    def update(self, i: int, rows: mx.array) -> mx.array:
        self.rows[i] = rows
        return rows


def far(family: str) -> dict[str, mx.array]:
    arrays = mx.load(str(FOLDER / family / "far.safetensors"))
    assert isinstance(arrays, dict)
    return arrays


@pytest.mark.parametrize("family", FAMILIES)
def test_networks_at_positions_up_to_262143_equal_the_reference_with_exact_angles(family):
    wanted, network = far(family), target(family)
    view = Scattered(wanted["positions"], network.config.window)
    hidden = network.hidden(wanted["tokens"], view)
    assert relative_error(hidden, wanted["exact.hidden"]) < 2e-5
    for kind, name in ((SLIDING, "sliding"), (FULL, "full")):
        keys = mx.split(view.rows[network.stores[kind]][0], 2)[0]
        assert relative_error(keys, wanted[f"exact.{name}_keys"]) < 1e-5
    # The reference's own angles are rounded to 1/64 of a radian there; this is how far that moves its result.
    rounding = relative_error(wanted["float32.hidden"], wanted["exact.hidden"])
    assert relative_error(hidden, wanted["float32.hidden"]) < 1.1 * rounding < 0.01


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", [SLIDING, FULL])
def test_an_angle_is_exact_at_every_position(family, kind):
    positions = [0, 1, 511, 4096, 65535, 131071, 131072, 262143, 2**20 - 1]
    config = target(family).config
    rope, half = config.rope(kind), config.head_dim(kind) // 2
    turning = int(rope.get("partial_rotary_factor", 1.0) * half)
    turn = Rotary(config, kind).at(mx.array(positions))
    for row, position in enumerate(positions):
        for i in range(half):
            angle = position * rope["rope_theta"] ** (-i / half) if i < turning else 0.0
            assert turn.first[0, row, 0, 0, i].item() == pytest.approx(math.cos(angle), abs=1e-6)
            assert turn.first[0, row, 0, 1, i].item() == pytest.approx(math.sin(angle), abs=1e-6)
