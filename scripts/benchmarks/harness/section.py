"""Replacing what stands between two markers of a page."""

from __future__ import annotations

from pathlib import Path


def write_section(path: Path, name: str, text: str, *, script: str, heading: str | None = None) -> None:
    """Puts `text` between the markers of `name` in `path`, which say that `script` of this folder writes it.

    Where they are missing, they go to the end below `heading`; without a heading that ends the program.
    """
    begin, end = f"<!-- {name}: begin (scripts/benchmarks/{script} writes this) -->", f"<!-- {name}: end -->"
    whole = path.read_text(encoding="utf-8") if path.exists() else "# Benchmarks\n"
    block = f"{begin}\n{text}\n{end}"
    if begin in whole and end in whole:
        before, _, rest = whole.partition(begin)
        whole = before + block + rest.partition(end)[2]
    elif heading is not None:
        whole = f"{whole.rstrip()}\n\n## {heading}\n\n{block}\n"
    else:
        raise SystemExit(f"{path} has no section marked {name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(whole, encoding="utf-8")
