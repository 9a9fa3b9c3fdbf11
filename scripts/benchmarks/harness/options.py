"""Flags and progress of the programs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def comparison(description: str | None, root: Path) -> argparse.ArgumentParser:
    """A parser that knows the environments beside the checkout at `root`, and the pair to measure."""
    own = root / ".venv/bin/python"
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--ours", type=Path, default=own if own.exists() else Path(sys.executable), help="Python with mlxmtp")
    add("--peers", type=Path, default=root / ".venv-peers/bin/python", help="Python with mlx-lm and mlx-vlm")
    add("--pair", type=Path, default=root / "assets/pocket", help="folder with target/ and drafter/ (default: pocket)")
    return parser


def repeated(description: str | None, repetitions: int) -> argparse.ArgumentParser:
    """A parser of how often to measure, and where to write."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=repetitions)
    parser.add_argument("--write", type=Path, help="page to write the table into")
    parser.add_argument("--json", type=Path, help="file for every figure")
    return parser


def say(text: str) -> None:
    """Print a line of progress of the running program."""
    print(f"{Path(sys.argv[0]).stem}: {text}", file=sys.stderr, flush=True)
