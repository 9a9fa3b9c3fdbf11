"""Do mlx-lm and mlx-vlm load what `mlxmtp convert` writes, and compute the same? Target and drafter, all five families.

Converts the miniatures in tests/goldens (text only: their towers are placeholders) by several recipes, loads every
result with each library in its own environment, and compares logits with ours. mlx-lm is in the test suite as well;
mlx-vlm is not a dependency of this project. About a minute:

    .venv/bin/python -m scripts.benchmarks.check_loaders --peers .venv-peers/bin/python
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlxmtp.models  # noqa: F401  (OpenBLAS goes under mlx before mlx is imported)

import mlx.core as mx  # isort: skip

from mlxmtp.convert.compare import text_logits
from mlxmtp.convert.plan import plan_conversion
from mlxmtp.convert.recipe import make_recipe
from mlxmtp.convert.run import convert

ROOT = Path(__file__).resolve().parents[2]
FAMILIES = ("e2b", "e4b", "12b", "26b", "31b")
RECIPES: tuple[dict[str, Any], ...] = (
    {"bits": 16},
    {"bits": 4, "draft_bits": 4},
    {"bits": 6, "group_size": 32, "draft_bits": 8},
    {"mode": "mxfp4"},
    {"mode": "mxfp8"},
    {"mode": "nvfp4"},
)
IDS = [2, *(3 + at * 37 % 120 for at in range(40))]
MOST = 1e-3
"""Largest difference of a logit, relative to the largest logit."""

LOADERS = {
    "mlx-lm": """
import json, sys
from pathlib import Path
import mlx.core as mx
from mlx_lm.utils import load_model
for folder in map(Path, sys.argv[2:]):
    model, _ = load_model(folder)
    print(json.dumps(model(mx.array([json.loads(sys.argv[1])]))[0].astype(mx.float32).tolist()))
""",
    "mlx-vlm": """
import json, sys
from pathlib import Path
import mlx.core as mx
from mlx_vlm.speculative.drafters import load_drafter
from mlx_vlm.utils import load_model
for folder in map(Path, sys.argv[2:]):
    model = load_model(folder)
    load_drafter(str(folder / "drafter"), kind="mtp")
    out = model.language_model(mx.array([json.loads(sys.argv[1])]))
    print(json.dumps(out.logits[0].astype(mx.float32).tolist()))
""",
}


def main() -> int:
    """Convert, load, compare; the exit code says whether all agree."""
    options = _arguments()
    with TemporaryDirectory() as name:
        folders = [_made(Path(name), family, number) for family in FAMILIES for number in range(len(RECIPES))]
        ours = [text_logits(folder, IDS, drafter=folder / "drafter") for folder in folders]
        failed = 0
        for library, python in (("mlx-lm", options.lm), ("mlx-vlm", options.peers)):
            failed += _compare(library, python, folders, ours)
    return 1 if failed else 0


def _made(place: Path, family: str, number: int) -> Path:
    source, dest = ROOT / "tests/goldens" / family, place / f"{family}-{number}"
    recipe = make_recipe({**RECIPES[number], "text_only": True, "dtype": "float32"})
    convert(plan_conversion(source / "target", source / "drafter", dest, recipe, origin=family))
    return dest


def _compare(library: str, python: Path, folders: list[Path], ours: list[mx.array]) -> int:
    """Number of conversions that a library cannot load or computes otherwise."""
    if not python.exists():
        print(f"{library}: {python} is not there, left out")
        return 0
    command = [str(python), "-c", LOADERS[library], json.dumps(IDS), *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    wrong = 0
    for folder, wanted, line in zip(folders, ours, lines, strict=False):
        difference = float(mx.abs(mx.array(json.loads(line)) - wanted).max() / mx.abs(wanted).max())
        if difference > MOST:
            wrong += 1
            print(f"{library}: {folder.name} differs by {difference:.1e}")
    if done.returncode:
        print(f"{library}: {folders[len(lines)].name} cannot be loaded: {done.stderr.strip().splitlines()[-1]}")
    print(f"{library}: {len(lines) - wrong} of {len(folders)} conversions load and compute the same")
    return len(folders) - len(lines) + wrong


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--lm", type=Path, default=Path(sys.executable), help="Python with mlx-lm (default: this one)")
    add("--peers", type=Path, default=ROOT / ".venv-peers/bin/python", help="Python with mlx-vlm")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
