"""Compare what a version of MLX has for attention and few rows on Metal with what our tables were read from.

    .venv/bin/python -m scripts.metal_wheel 0.32.4            # differences from scripts/metal_wheel.txt; exit code 1
    .venv/bin/python -m scripts.metal_wheel 0.33.0 --write    # after models/metal.py has been read anew

The macOS wheel is fetched into a folder that goes away; nothing of it runs. Names of kernels are those of its Metal
library, routing strings the environment variables and messages of its code about attention.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from difflib import unified_diff
from pathlib import Path

STORED = Path(__file__).with_suffix(".txt")
_PLATFORM = "macosx_14_0_arm64"
_KERNEL = re.compile(
    rb"((?:sdpa|steel_attention|affine|fp|mxfp|nvfp|gemv)[a-z0-9_]*?)_bfloat16(?:_t)?(_[A-Za-z0-9_]*)?"
)
_SHAPED = ("sdpa", "steel_attention")  # for these the rest of the name matters as well: head sizes, blocks
_ROUTING = re.compile(rb"(?:MLX_SDPA|MLX_MAX_(?:OPS|MB)|\[scaled_dot_product_attention\])[ -~]{0,120}")


def names_in(wheel: Path) -> list[str]:
    """Return kernels for 16 bits, those of products without their sizes, and routing strings of a wheel."""
    found: set[str] = set()
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.endswith(".metallib"):
                for kernel, rest in _KERNEL.findall(archive.read(name)):
                    sizes = rest.removesuffix(b"llvm") if kernel.startswith(tuple(map(str.encode, _SHAPED))) else b""
                    found.add((kernel + sizes).decode())
            elif name.endswith(".dylib"):
                found |= {one.decode().strip() for one in _ROUTING.findall(archive.read(name))}
    return sorted(found)


def difference(before: Iterable[str], after: Iterable[str]) -> list[str]:
    """Return lines that came with + and lines that went with -."""
    lines = unified_diff(list(before), list(after), n=0, lineterm="")
    return [line for line in lines if line[:1] in "+-" and not line.startswith(("+++", "---"))]


def fetched(version: str, folder: Path) -> Path:
    """Download the wheel with the Metal library of a version."""
    options = ["--only-binary=:all:", "--no-deps", "--platform", _PLATFORM, "--dest", str(folder), "--quiet"]
    if importlib.util.find_spec("pip") is None:  # an environment that uv has made
        subprocess.run([sys.executable, "-m", "ensurepip"], check=True)
    subprocess.run([sys.executable, "-m", "pip", "download", *options, f"mlx-metal=={version}"], check=True)
    return next(folder.glob("*.whl"))


def main() -> int:
    """Compare, or store; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("version", help="of MLX")
    parser.add_argument("--write", action="store_true", help="store what it has")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        names = names_in(fetched(chosen.version, Path(folder)))
    if chosen.write:
        STORED.write_text("\n".join(names) + "\n", encoding="utf-8")
        return 0
    lines = difference(STORED.read_text(encoding="utf-8").splitlines(), names)
    print("\n".join(lines) or f"MLX {chosen.version} has what models/metal.py was read from.")
    return bool(lines)


if __name__ == "__main__":
    sys.exit(main())
