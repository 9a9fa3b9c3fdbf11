"""What is asked of a Mac while a long command runs; there is none where the tests run, so the program is recorded."""

import os
import subprocess

import pytest

from mlxmtp.machine.awake import stay_awake


@pytest.mark.parametrize("system", ["darwin", "linux"])
def test_a_mac_stays_awake_as_long_as_this_process_runs(system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr("sys.platform", system)
    monkeypatch.setattr(subprocess, "Popen", lambda command, **_: started.append(command))
    stay_awake()
    assert started == ([["/usr/bin/caffeinate", "-i", "-w", str(os.getpid())]] if system == "darwin" else [])


def test_a_mac_without_the_program_works_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.setattr("mlxmtp.machine.awake._CAFFEINATE", "/nowhere/caffeinate")
    stay_awake()
