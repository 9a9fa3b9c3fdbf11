"""Measure conversions: time and peak memory of mlxmtp beside mlx-lm and mlx-vlm on one checkpoint of E2B's shapes.

Makes that checkpoint first (9.4 GB, one tensor of 4.7 GB; small whole numbers, which cost as much as any others), then
runs every converter in a process of its own and asks the system for its peak resident memory. Needs 25 GB of disk; what
was written is removed at the end. On a machine that does nothing else, with a Python that has mlxmtp and mlx-lm:

    .venv/bin/python -m scripts.benchmarks.convert --peers .venv-peers/bin/python --write docs/benchmarks.md

A converter that fails is reported with its last line. Memory of the GPU counts as resident memory only where both are
one, and there not on every system: compare peaks on Linux.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import struct
import sys
import tempfile
import time
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from mlxmtp.models.config import read_config
from mlxmtp.models.safetensors import Layout, lay_out
from mlxmtp.models.tensors import tensors
from scripts.benchmarks.harness.options import say
from scripts.benchmarks.harness.report import machine
from scripts.benchmarks.harness.section import write_section
from tests.full_size import PAIRS, write

ROOT = Path(__file__).resolve().parents[2]
PAGE = (1 << 20) + 7  # values; odd, so that rows differ
GB = 1e9

OURS = ["-m", "mlxmtp", "convert", "SRC/target", "DEST", "--draft-model", "SRC/drafter", "--no-compare"]
LM = "from mlx_lm import convert; convert('SRC/target', mlx_path='DEST', quantize=True"
VLM = "from mlx_vlm.convert import convert; convert('SRC/target', mlx_path='DEST', quantize=True"
ARMS: dict[str, tuple[str, bool, list[str]]] = {
    "ours": ("mlxmtp, 4 bit recipe, target and drafter", False, OURS),
    "ours-mxfp4": ("mlxmtp, mxfp4, target and drafter", False, [*OURS, "--q-mode", "mxfp4"]),
    "ours-bf16": ("mlxmtp, nothing packed, target and drafter", False, [*OURS, "--q-bits", "16"]),
    "mlx_lm": ("mlx-lm, 4 bit, target", False, ["-c", f"{LM}, q_bits=4)"]),
    "mlx_lm-mxfp4": ("mlx-lm, mxfp4, target", False, ["-c", f"{LM}, q_mode='mxfp4')"]),
    "mlx_vlm": ("mlx-vlm, 4 bit, target", True, ["-c", f"{VLM}, q_bits=4)"]),
}
"""Name, whether it runs in the peers' environment, arguments of Python."""


@dataclass(frozen=True, slots=True)
class Result:
    """One run: `peak` in bytes of resident memory, `size` in bytes of what it wrote, `problem` if it failed."""

    name: str
    seconds: float
    peak: int
    size: int
    problem: str = ""


def main() -> int:
    """Make the checkpoint, run the converters, report."""
    options = _arguments()
    folder = Path(tempfile.mkdtemp(prefix="conversion-", dir=options.folder))
    try:
        size, largest = make_checkpoint(folder, options.family)
        say(f"checkpoint: {size / GB:.1f} GB, largest tensor {largest / GB:.1f} GB")
        results = [run(folder, key, options) for key in options.arms]
    finally:
        shutil.rmtree(folder)
    text = report(results, size, largest, options.family)
    print(text)
    if options.write is not None:
        write_section(options.write, "conversion", text, script="convert.py", heading="Converting")
    return 0


def make_checkpoint(folder: Path, family: str) -> tuple[int, int]:
    """A pair in the published layout in folder/target and folder/drafter; bytes of it and of its largest tensor."""
    total = largest = 0
    for part in write(folder, family):
        config = read_config(part)
        layouts = []
        for tensor in tensors(config):
            name = tensor.name.replace("language_model.model.", "model.language_model.")
            layouts.append(Layout(name, "I64" if name.endswith("token_ordering") else "BF16", tensor.shape))
        file = part / "model.safetensors"
        header, places = lay_out(file, layouts, {"format": "pt"})
        pages = _pages()
        with file.open("wb") as stream:
            stream.write(header)
            for place in places:
                _write_values(stream.write, place.layout.nbytes, pages)
        total += file.stat().st_size
        largest = max(largest, *(layout.nbytes for layout in layouts))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):  # the stock converters want one
        shutil.copy(ROOT / "assets/pocket/target" / name, folder / "target")
    return total, largest


def _pages() -> Iterator[bytes]:
    """Whole numbers from -8 to 8 in bfloat16, without end."""
    codes = [struct.unpack(">H", struct.pack(">f", value)[:2])[0] for value in range(-8, 9)]
    page = array("H", random.Random(0).choices(codes, k=PAGE)).tobytes()
    while True:
        yield page


def _write_values(put: Callable[[bytes], object], count: int, pages: Iterator[bytes]) -> None:
    while count:
        piece = next(pages)[:count]
        put(piece)
        count -= len(piece)


def run(folder: Path, key: str, options: argparse.Namespace) -> Result:
    """One converter in a process of its own."""
    name, peer, arguments = ARMS[key]
    python = options.peers if peer else Path(sys.executable)
    if not python.exists():
        return Result(name, 0, 0, 0, f"{python} is not there")
    dest = folder / "made"
    filled = [word.replace("SRC", str(folder)).replace("DEST", str(dest)) for word in arguments]
    say(f"{name} ...")
    log = folder / "log"
    begin = time.monotonic()
    process = os.posix_spawn(
        python,
        [str(python), *filled],
        {**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
    )
    _, status, usage = os.wait4(process, 0)
    seconds = time.monotonic() - begin
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    size = sum(item.stat().st_size for item in dest.rglob("*") if item.is_file()) if dest.is_dir() else 0
    shutil.rmtree(dest, ignore_errors=True)
    problem = ""
    if status:
        lines = log.read_text(errors="replace").strip().splitlines()
        problem = lines[-1] if lines else f"status {status}"
    result = Result(name, seconds, peak, size, problem)
    say(f"{name}: {seconds:.0f} s, {peak / GB:.2f} GB at the peak, {size / GB:.2f} GB written {problem}")
    return result


def report(results: list[Result], size: int, largest: int, family: str) -> str:
    """The section for docs/benchmarks.md."""
    lines = [
        f"One run of `scripts/benchmarks/convert.py`, {datetime.now(UTC).date()}, on {machine()}. Source: a synthetic "
        f"bf16 checkpoint of {family.upper()}'s shapes, {size / GB:.1f} GB with its drafter, largest tensor "
        f"{largest / GB:.1f} GB. Each converter ran once in a process of its own; peak is the resident memory that the "
        "system counted for it.",
        "",
        "| converter | peak memory | time | written |",
        "|---|---:|---:|---:|",
    ]
    for one in results:
        row = f"{one.peak / GB:.2f} GB | {one.seconds:.0f} s | {one.size / GB:.2f} GB"
        lines.append(f"| {one.name} | {row} |" if not one.problem else f"| {one.name} | failed: {one.problem} | | |")
    return "\n".join(lines)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--peers", type=Path, default=ROOT / ".venv-peers/bin/python", help="Python with mlx-vlm")
    add("--family", default="e2b", choices=list(PAIRS), help="whose shapes (default: e2b)")
    add("--arms", nargs="+", default=list(ARMS), choices=list(ARMS), metavar="ARM", help=f"of {' '.join(ARMS)}")
    add("--folder", type=Path, help="where to write the checkpoint (default: the system's folder for such)")
    add("--write", type=Path, metavar="FILE.md", help="put the table between its markers in this file")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
