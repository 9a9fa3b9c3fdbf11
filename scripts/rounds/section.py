"""Replacing what stands between two markers of a page."""

from __future__ import annotations

from pathlib import Path


def write_section(path: Path, name: str, text: str) -> None:
    """Puts `text` between `<!-- name: begin … -->` and `<!-- name: end -->`. Exits where they are missing."""
    before, begin, rest = path.read_text(encoding="utf-8").partition(f"<!-- {name}: begin")
    note, closing, rest = rest.partition("-->\n")
    _, end, after = rest.partition(f"<!-- {name}: end -->")
    if not (begin and closing and end):
        raise SystemExit(f"{path} has no section marked {name}")
    path.write_text(f"{before}{begin}{note}{closing}\n{text}\n\n{end}{after}", encoding="utf-8")
