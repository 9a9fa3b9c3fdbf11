from __future__ import annotations

import pytest

from mlxmtp.hub.machine import Machine, parse_chip, this_machine
from mlxmtp.hub.registry import Entry, find_entry
from mlxmtp.hub.speed import predict, read_per_token


def entry(name: str) -> Entry:
    found = find_entry(name)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("name", "generation", "tier", "speed"),
    [
        ("Apple M1", 1, "", 68),
        ("Apple M4 Pro", 4, "Pro", 273),
        ("Apple M3 Ultra", 3, "Ultra", 819),
        ("Apple M4 Ultra", 4, "Ultra", None),
        ("Apple M9 Max", 9, "Max", None),
        ("AMD EPYC", None, "", None),
    ],
)
def test_chips(name: str, generation: int | None, tier: str, speed: float | None) -> None:
    assert parse_chip(name) == (generation, tier)
    machine = Machine("", name, generation, tier, 0, 0, None)
    assert machine.bandwidth == (None if speed is None else speed * 1e9)


def test_this_machine_knows_itself() -> None:
    machine = this_machine()
    assert machine.chip
    assert 0 < machine.room <= machine.memory


# Public single-stream figures of other engines on 4-bit models: chip, GB/s, model, tokens per second without a drafter.
@pytest.mark.parametrize(("bandwidth", "name", "measured"), [(819, "31b", 31.5), (614, "12b", 39), (614, "26b", 115)])
def test_predictions_are_of_the_size_that_others_measured(bandwidth: int, name: str, measured: float) -> None:
    model = entry(name)
    speed = predict(model.target_config(), model.drafter_config(), bandwidth * 1e9)
    assert speed.plain == pytest.approx(measured, rel=0.3)
    assert speed.drafted is not None
    assert speed.plain < speed.drafted < 3 * speed.plain


def test_a_token_reads_neither_tables_nor_experts_that_are_not_chosen() -> None:
    assert read_per_token(entry("26b").target_config()) < 3e9
    assert read_per_token(entry("e2b").target_config()) < 0.6 * read_per_token(entry("e4b").target_config())
    assert predict(entry("e2b").target_config(), None, 1e11).drafted is None
