"""`doctor --check` on this machine: everything is found in order, and what is not in order is found."""

from __future__ import annotations

import json
from dataclasses import asdict

import mlx.core as mx
import pytest

from mlxmtp.bench import self_check
from mlxmtp.decode.exact import Passes
from mlxmtp.hub.registry import entries
from mlxmtp.hub.store import built_in
from mlxmtp.machine.checks import Check
from mlxmtp.models.load import load_target
from mlxmtp.models.target import Target

FAMILIES = ("e2b", "e4b", "12b", "26b", "31b")


@pytest.fixture(scope="module")
def checks() -> dict[str, Check]:
    return {one.what: one for one in self_check.measure()}


@pytest.mark.slow
def test_all_is_well_here(checks: dict[str, Check]) -> None:
    assert [name for name, one in checks.items() if one.verdict == "bad"] == []
    assert {f"network {family}" for family in FAMILIES} < checks.keys()
    assert checks["drafted text"].verdict == "ok"
    for what in ("4-bit products", "plain products", "passes"):
        cost = checks[f"{what} by rows"].figures
        assert cost is not None
        assert list(cost["rows"]) == [str(rows) for rows in self_check.ROWS]
    assert self_check.measured(checks.values()) is not None
    speed = checks["bandwidth"].figures
    assert speed is not None
    assert speed["gb_per_s"] > 0.1
    json.dumps([asdict(one) for one in checks.values()])


def test_a_folder_without_room_for_kernels_is_what_a_check_failed_on() -> None:
    def fails() -> Check:
        raise RuntimeError("filesystem error: cannot create directories: Read-only file system [/tmp/mlx]")

    [found] = self_check._guarded("kernels", fails)
    assert (found.verdict, "TMPDIR" in found.found) == ("bad", True)


@pytest.mark.parametrize("wrong", [float("nan"), 3.0])
def test_a_device_that_computes_wrong_numbers_is_found(wrong: float, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = self_check._scores, []

    def scores(target: Target) -> mx.array:
        calls.append(target)
        return real(target) + (wrong if len(calls) == 1 else 0)  # the first is this device's

    monkeypatch.setattr(self_check, "_scores", scores)
    monkeypatch.setattr(self_check, "backend", lambda: "Metal")
    found = self_check._network("e2b")
    assert len(calls) == 2
    assert found.verdict == "bad"
    assert "wrong numbers" in str(found.advice)


@pytest.mark.parametrize("backend", ["CPU", "Metal"])
def test_a_machine_whose_cpu_is_wrong_as_well_is_found(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = self_check._scores
    monkeypatch.setattr(self_check, "_scores", lambda target: real(target) + 20)
    monkeypatch.setattr(self_check, "backend", lambda: backend)
    found = self_check._network("e2b")
    assert found.verdict == "bad"
    assert found.figures is not None
    assert found.figures["difference"] < self_check.FAR < found.figures["from_recorded"]


@pytest.mark.parametrize(("found", "told"), [(Passes(2, 5), "2 to 5 rows"), ("its numbers wander", "cannot be had")])
def test_exact_text_is_tried_out(found: Passes | str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_check, "probe", lambda _: found)
    monkeypatch.setattr(self_check, "_TOKENS", 4)
    check = self_check._exact_text(load_target(built_in("target")))
    assert told in check.found
    assert check.figures is not None
    assert check.figures["available"] == (found == Passes(2, 5))


def test_a_device_that_fails_is_a_result_and_the_rest_is_still_checked() -> None:
    def fails() -> Check:
        raise RuntimeError("[METAL] Command buffer execution failed")

    (found,) = self_check._guarded("network e2b", fails)
    assert (found.what, found.verdict) == ("network e2b", "bad")
    assert "report" in str(found.advice)


def test_the_networks_are_those_of_the_families() -> None:
    entry = next(entry for entry in entries() if entry.family == "31b")
    small, wide = self_check._small(entry.target_config()), entry.target_config()
    for kind in set(wide.layer_types):
        assert small.head_dim(kind) == wide.head_dim(kind)
        assert small.kv_heads(kind) == wide.kv_heads(kind)
    assert small.heads == wide.heads
    assert set(small.layer_types) == set(wide.layer_types)
