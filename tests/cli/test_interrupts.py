"""Ctrl-C at random moments, a few of the many runs of scripts/interrupts.py, which counts how they end."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.cli.conftest import ROOT


@pytest.mark.parametrize("options", [("-n", "6"), ("-n", "3", "--command", "chat"), ("-n", "3", "--times", "3")])
def test_a_signal_at_any_moment_ends_quietly(options: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "scripts.interrupts", "--seed", "7", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
