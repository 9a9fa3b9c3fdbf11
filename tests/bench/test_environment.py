"""Where a run took place: what macOS's pmset says, read without a Mac."""

from __future__ import annotations

import pytest

from mlxmtp.bench import environment
from mlxmtp.bench.environment import Conditions, Environment, low_power, power_source, thermal_pressure

BATTERY = (
    "Now drawing from 'Battery Power'\n -InternalBattery-0 (id=1)\t71%; discharging; 4:11 remaining present: true\n"
)
QUIET = "Note: No thermal warning level has been recorded\nNote: No performance warning level has been recorded\n"


@pytest.mark.parametrize(
    ("said", "expected"),
    [("Now drawing from 'AC Power'\n", "AC"), (BATTERY, "battery"), ("", None), ("something else", None)],
)
def test_power(said, expected):
    assert power_source(said) == expected


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (" powernap 1\n lowpowermode         1\n", True),
        (" lowpowermode 0\n", False),
        ("", None),
        ("lowpowermode", None),
    ],
)
def test_saving(said, expected):
    assert low_power(said) is expected


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (QUIET, "none"),
        ("", None),
        ("2026-01-01 CPU Power notify\n\tCPU_Speed_Limit \t= 100\n", "none"),
        ("\tCPU_Speed_Limit \t= 62\n", "CPU_Speed_Limit \t= 62"),
        ("Thermal Warning Level = 1\n", "Thermal Warning Level = 1"),
    ],
)
def test_heat(said, expected):
    assert thermal_pressure(said) == expected


def test_a_mac_is_asked_and_a_silent_one_is_not_known(monkeypatch):
    answers = {("pmset", "-g", "batt"): BATTERY, ("pmset", "-g", "therm"): QUIET}
    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.setattr(environment, "_output", lambda *command: answers.get(command, ""))
    found = environment.conditions()
    assert (found.power_source, found.low_power_mode, found.thermal_pressure) == ("battery", None, "none")


def test_a_program_that_is_missing_or_fails_says_nothing():
    assert environment._output("a-program-that-does-not-exist") == ""
    assert environment._output("sh", "-c", "echo something; exit 3") == ""
    assert environment._output("sh", "-c", "echo something") == "something\n"


def test_linux_reads_the_kernels_own_files(monkeypatch, tmp_path):
    monkeypatch.setattr(environment, "_SUPPLIES", tmp_path)
    assert environment._linux_power() is None
    for name, kind, file, value in [("BAT0", "Battery", "status", "Discharging"), ("AC", "Mains", "online", "0")]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "type").write_text(f"{kind}\n")
        (tmp_path / name / file).write_text(f"{value}\n")
    assert environment._linux_power() == "battery"
    (tmp_path / "AC" / "online").write_text("1\n")
    assert environment._linux_power() == "AC"


def test_this_machine_is_described():
    found = environment.environment()
    assert found.chip
    assert found.memory_bytes > found.usable_bytes > 0
    assert found.versions["mlx"]


def test_what_speaks_against_measuring_now_is_said():
    def sentences(**conditions) -> list[str]:
        return Environment("x", 8, 8, 4, "Linux", "x86_64", "3.12", {}, Conditions(**conditions)).cautions

    calm = {"load": 0.3, "power_source": "AC", "low_power_mode": False, "thermal_pressure": "none"}
    assert sentences(**calm) == []
    assert sentences() == []
    hot = {"load": 6.0, "power_source": "battery", "low_power_mode": True, "thermal_pressure": "CPU_Speed_Limit = 62"}
    assert [sentence.split()[0] for sentence in sentences(**hot)] == ["Other", "This", "Low", "The"]
