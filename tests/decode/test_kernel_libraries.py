"""Few kernel libraries: Metal builds one for every distinct fused graph, and the first rounds wait for each."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import mlx
import pytest

ROOT = Path(__file__).parents[2]
MOST = 45

pytestmark = [
    pytest.mark.slow,
    pytest.mark.cpu,
    pytest.mark.skipif(sys.platform != "linux" or shutil.which("g++") is None, reason="counts what g++ is given"),
]


@pytest.fixture(scope="module")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a g++ that does not optimize and has MLX's header compiled already: 0.2 s a graph, not 1.2."""
    folder = tmp_path_factory.mktemp("compiler")
    real, include = shutil.which("g++"), Path(mlx.__path__[0]) / "include"
    header = Path("mlx/backend/cpu/compiled_preamble.h")
    ready = folder / header.with_suffix(".h.gch")
    ready.parent.mkdir(parents=True)
    options = ["-std=c++17", "-O0", "-Wall", "-fPIC"]
    subprocess.run(
        [str(real), *options, "-I", str(include), "-x", "c++-header", str(include / header), "-o", str(ready)],
        check=True, capture_output=True,
    )  # fmt: skip
    program = folder / "g++"
    program.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && exit 0\nshift 2\nexec {real} -std=c++17 -O0 -I {folder} "$@"\n'
    )
    program.chmod(0o755)
    return folder


def count(compiler: Path, built: Path, *arguments: str) -> int:
    """Libraries in the folder `built` after the rounds of a family have run."""
    built.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-m", "scripts.benchmarks.graphs.libraries", *arguments],
        cwd=ROOT, capture_output=True, text=True, check=True,
        env=os.environ | {"PATH": f"{compiler}:{os.environ['PATH']}", "TMPDIR": str(built), "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    return int(done.stdout)


@pytest.mark.few(1)
@pytest.mark.parametrize("family", ["e2b", "26b"])  # between them all kinds of layers and both heads
def test_rounds_of_a_family_need_few_libraries(family, compiler, tmp_path):
    assert 20 < count(compiler, tmp_path / "built", family, "--lengths", "0", "3") <= MOST


def test_neither_layers_nor_draft_lengths_add_to_them(compiler, tmp_path):
    built = tmp_path / "built"
    few = count(compiler, built, "12b", "--layers", "6", "--lengths", "0", "2")
    assert count(compiler, built, "12b", "--lengths", "0", "8") == few
