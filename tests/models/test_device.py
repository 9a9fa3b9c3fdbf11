"""What is asked of MLX's memory on a GPU; there is none where the tests run, so MLX's functions are recorded."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlxmtp.models import device
from mlxmtp.models.chunks import BUDGET


@pytest.mark.parametrize("gpu", ["Metal", "CUDA"])
def test_freed_memory_is_bounded_and_what_is_loaded_is_wired(gpu, monkeypatch):
    calls: list[tuple[str, Any]] = []
    monkeypatch.setattr(device, "on_cpu", lambda: False)
    monkeypatch.setattr(mx.metal, "is_available", lambda: gpu == "Metal")
    monkeypatch.setattr(mx, "device_info", lambda: {"max_recommended_working_set_size": 1000})

    def limit(name: str) -> Any:
        def set_limit(value: int) -> int:
            calls.append((name, value))
            return 7

        return set_limit

    monkeypatch.setattr(mx, "set_cache_limit", limit("cache"))
    monkeypatch.setattr(mx, "set_wired_limit", limit("wired"))
    monkeypatch.setattr(mx, "get_active_memory", lambda: 10**9)
    device.bound_memory.cache_clear()
    device.bound_memory()
    device.bound_memory()
    assert calls == [("cache", BUDGET)]
    device.bound_memory.cache_clear()
    for most, wired in ((2 * 10**9, 10**9 + 2**26), (10**9, 10**9)):
        calls.clear()
        monkeypatch.setattr(mx, "device_info", lambda most=most: {"max_recommended_working_set_size": most})
        device.wire()
        assert calls == [("wired", wired)][: 1 if gpu == "Metal" else 0]


def test_a_mac_that_computes_on_its_cpu_has_no_limits_of_a_gpu(monkeypatch):
    monkeypatch.setattr(device, "on_cpu", lambda: True)
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.setattr(mx, "device_info", lambda: {"device_name": "Apple M4", "architecture": "arm64"})
    assert device.memory_limit() is None
    assert device.largest_buffer() is None


@pytest.mark.parametrize(
    ("words", "step"),
    [
        ("kIOGPUCommandBufferCallbackErrorImpactingInteractivity", "let the display sleep"),
        ("Caused GPU Timeout Error", "let the display sleep"),
        ("kIOGPUCommandBufferCallbackErrorSubmissionsIgnored", "start it again"),
        ("Insufficient Memory", "--kv-bits 8"),
    ],
)
def test_what_the_gpu_failed_for_is_told_with_a_step_that_helps(words, step):
    assert step in str(device.failure(RuntimeError(f"[METAL] Command buffer execution failed: {words}.")))


def test_a_cpu_keeps_what_a_round_over_a_long_context_frees(monkeypatch):
    limits: list[int] = []
    monkeypatch.setattr(device, "on_cpu", lambda: True)
    monkeypatch.setattr(mx, "set_cache_limit", limits.append)
    monkeypatch.setattr(mx, "set_wired_limit", pytest.fail)
    device.bound_memory.cache_clear()
    device.bound_memory()
    device.bound_memory.cache_clear()
    rows, heads, width = 8, 4, 4
    arrays_of_scores = 4  # the product, masked, exponentials, weights
    assert arrays_of_scores * 16_384 * rows * heads * width < limits[0] < BUDGET


@pytest.mark.parametrize(
    "words",
    [
        "filesystem error: temp_directory_path: No such file or directory",
        "Could not load C++ shared library /tmp/x.so: failed to map segment from shared object",
        "[Compile::eval_cpu] Failed to compile function f:\nIn file included\nld: No space left\nld returned 1",
    ],
)
def test_where_no_kernel_can_be_built_the_folder_is_blamed_and_not_the_memory(words: str) -> None:
    said = str(device.failure(RuntimeError(words)))
    assert "TMPDIR" in said
    assert "memory" not in said
    assert "; ".join(words.split("\n")[-2:]) in said
    assert "In file included" not in said
    assert "memory is full" in str(device.failure(RuntimeError("[metal::malloc] Unable to allocate 99 bytes.")))


ASKS_FOR_ITS_COMPILER = """
import signal, time, numpy
from threading import Thread
from mlxmtp.models.device import find_compiler
heard = []
signal.signal(signal.SIGINT, lambda *_: heard.append("Ctrl-C"))
thread = Thread(target=find_compiler)
thread.start()
thread.join()
find_compiler()
print(*heard)
"""


@pytest.mark.cpu
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere MLX has another compiler")
def test_ctrl_c_while_mlx_looks_for_its_compiler_is_heard(tmp_path):
    """As from a terminal, by all that run in it; on another thread than the main one, and beside those of BLAS."""
    compiler = tmp_path / "g++"
    compiler.write_text("#!/bin/sh\nkill -INT 0\nsleep 0.1\n")
    compiler.chmod(0o755)
    environ = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(Path(__file__).parents[2])}
    environ.pop("OPENBLAS_NUM_THREADS", None)
    command = [sys.executable, "-c", ASKS_FOR_ITS_COMPILER]
    done = subprocess.run(
        command, env=environ, capture_output=True, text=True, timeout=120, check=True, start_new_session=True
    )
    assert done.stdout.split() == ["Ctrl-C"]


def test_a_failure_within_another_piece_of_work_is_told_once():
    once = device.failure(RuntimeError("Insufficient Memory"))
    assert str(device.failure(once)) == str(once)
