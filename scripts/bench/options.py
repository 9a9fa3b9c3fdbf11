"""The flags that the comparisons with other libraries share."""

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
