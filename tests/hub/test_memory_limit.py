"""What the device says a model may take, which is asked through MLX, and known to the commands that do without it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mlxmtp.cli.app import main
from mlxmtp.errors import LoadError
from mlxmtp.hub.store import built_in
from mlxmtp.machine.chip import FILE, Machine
from mlxmtp.models import device
from mlxmtp.models.load import load_target

GB = 2**30
MAC = Machine("macOS 26.2", "Apple M4 Max", 4, "Max", 128 * GB, 96 * GB, None)


def test_it_is_known_to_later_processes_on_this_machine(tmp_path: Path) -> None:
    data = tmp_path / "data"
    MAC.keep(data, None)
    assert not data.exists()
    assert MAC.as_told(data) == MAC, "a guess on first use"
    MAC.keep(data, 107 * GB)
    assert MAC.as_told(data) == replace(MAC, usable=107 * GB)
    for other in (replace(MAC, system="macOS 27.0"), replace(MAC, memory=192 * GB)):
        assert other.as_told(data) == other


def test_a_limit_that_the_user_has_set_comes_first_and_is_not_kept(tmp_path: Path) -> None:
    by_hand = replace(MAC, wired_limit=120 * GB, usable=120 * GB)
    by_hand.keep(tmp_path, 120 * GB)
    assert MAC.as_told(tmp_path) == MAC
    MAC.keep(tmp_path, 107 * GB)
    assert by_hand.as_told(tmp_path) == by_hand


@pytest.mark.parametrize("told", [-1, 0, True, "9", 1e9, None, 129 * GB])
def test_what_cannot_be_true_is_a_guess_again(told: object, tmp_path: Path) -> None:
    MAC.keep(tmp_path, 107 * GB)
    file = tmp_path / FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | {"usable": told}))
    assert MAC.as_told(tmp_path) == MAC


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", "\udcff"])
def test_a_damaged_file_is_none(text: str, tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(text.encode("utf-8", "surrogateescape"))
    assert MAC.as_told(tmp_path) == MAC


@pytest.mark.parametrize("command", [("doctor",), ("ask", "-m", "pocket", "--max-tokens", "1", "--no-stdin", "Hi")])
def test_show_and_ls_know_it_after_a_command_that_loads_mlx(
    command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLXMTP_HOME", str(tmp_path))

    def fits() -> set[bool]:
        capsys.readouterr()
        assert main(["show", "pocket", "--json"]) == 0
        shown = {one["fits"] for one in json.loads(capsys.readouterr().out)["memory"]}
        assert main(["ls", "--json"]) == 0
        return shown | {one["fits"] for one in json.loads(capsys.readouterr().out)["models"]}

    assert fits() == {True}
    monkeypatch.setattr(device, "memory_limit", lambda: 1_000_000)
    main([*command])
    assert fits() == {False}


def test_an_array_that_is_larger_than_a_buffer_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "largest_buffer", lambda: 4_000_000)
    with pytest.raises(LoadError, match=r"has .* in one piece, and this GPU takes 4 MB"):
        load_target(built_in("target"))
