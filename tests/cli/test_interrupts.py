"""Ctrl-C at random moments, a few of the many runs of scripts/interrupts.py, which counts how they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.conftest import PATIENCE, ROOT


@pytest.mark.parametrize("options", [("-n", "6"), ("-n", "3", "--command", "chat"), ("-n", "3", "--times", "3")])
def test_a_signal_at_any_moment_ends_quietly(options: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "scripts.interrupts", "--seed", "7", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.cpu
@pytest.mark.skipif(sys.platform != "linux", reason="kernels are built by a compiler on the CPU only")
def test_ctrl_c_that_the_main_thread_cannot_hear_ends_it(tmp_path: Path) -> None:
    """The compiler of kernels does not end by it here; in the middle of a run, none may be running just then."""
    compiler, begun = tmp_path / "g++", tmp_path / "begun"
    script = ("#!/bin/sh", "trap '' INT", "case $* in *--version*) exit ;; esac")
    waits = (f"touch {begun}", f"while [ -e {begun} ]; do sleep 0.1; done")
    compiler.write_text("\n".join((*script, *waits, "")))
    compiler.chmod(0o755)
    environ = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    environ |= {"HOME": str(tmp_path), "MLXMTP_HOME": str(tmp_path), "TMPDIR": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    run = [sys.executable, "-m", "mlxmtp", "bench", "-q", "-m", "pocket", "-n", "16", "-r", "1"]
    with subprocess.Popen(run, env=environ, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        try:
            while not begun.exists():
                assert process.poll() is None
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=PATIENCE) == 130
        finally:
            process.kill()
            begun.unlink(missing_ok=True)  # it ends, too
        assert process.stderr is not None
        assert process.stderr.read().endswith("Nothing had been measured yet.\n")


COMMANDS = {
    "ask": ["ask", "Hi"],
    "bench": ["bench", "-n", "16", "-r", "1"],
    "map": ["map", "Hi {}", "input.txt"],
    "serve": ["serve", "--port", "0"],
    "doctor": ["doctor", "--check"],
}


@pytest.mark.cpu
@pytest.mark.skipif(sys.platform != "linux", reason="MLX asks for a compiler elsewhere only on the CPU")
@pytest.mark.parametrize("command", COMMANDS)
def test_ctrl_c_while_mlx_asks_for_its_compiler_is_not_lost(command: str, tmp_path: Path) -> None:
    """MLX ignores it in the whole process meanwhile. Here the compiler itself strikes all that the terminal runs."""
    compiler = tmp_path / "g++"
    compiler.write_text("#!/bin/sh\nkill -INT 0\nsleep 0.1\n")
    compiler.chmod(0o755)
    (tmp_path / "input.txt").write_text("one")
    environ = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    environ |= {"HOME": str(tmp_path), "MLXMTP_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    run = [sys.executable, "-m", "mlxmtp", *COMMANDS[command]]
    done = subprocess.run(
        run,
        cwd=tmp_path,
        env=environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        start_new_session=True,
        timeout=2 * PATIENCE,
        check=False,
    )
    ended = 0 if command == "serve" else 130
    assert done.returncode == ended, done.stdout + done.stderr
    assert "serves" not in done.stderr
