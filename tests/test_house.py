"""The house stays tidy: ceilings for files, functions, headers and docstrings."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "mlxmtp").rglob("*.py"))
SOURCES = {path: path.read_text(encoding="utf-8") for path in MODULES}
TREES = {path: ast.parse(text) for path, text in SOURCES.items()}
NODES = {path: list(ast.walk(tree)) for path, tree in TREES.items()}

LONGEST_FILE, LONGEST_FUNCTION = 450, 80
HEADERS = 0.10
"""Share of all lines that may stand before the first statement of a module, docstring and imports."""
CALLED_ONCE = 0.45
"""Share of private functions that may have a single caller: each is one more name to remember."""
OPENINGS = re.compile(r"(What|Which|Whether|Where|How|When|Why|Who|Everything)\b")


def functions(path: Path) -> Iterator[ast.FunctionDef]:
    return (node for node in NODES[path] if isinstance(node, ast.FunctionDef))


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def header_lines(path: Path) -> int:
    """Lines before the first node that is neither docstring nor import."""
    for node in TREES[path].body:
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        types_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if not docstring and not types_only and not isinstance(node, ast.Import | ast.ImportFrom):
            return min([node.lineno, *(one.lineno for one in getattr(node, "decorator_list", []))]) - 1
    return len(SOURCES[path].splitlines())


def test_files_and_functions_end_somewhere() -> None:
    long = [named(path) for path, text in SOURCES.items() if len(text.splitlines()) > LONGEST_FILE]
    long += [
        f"{named(path)}:{one.name}"
        for path in MODULES
        for one in functions(path)
        if one.end_lineno is not None and one.end_lineno - one.lineno >= LONGEST_FUNCTION
    ]
    assert not long


def test_files_are_more_than_their_headers() -> None:
    lines = sum(len(text.splitlines()) for text in SOURCES.values())
    assert sum(header_lines(path) for path in MODULES) <= HEADERS * lines


def test_most_private_functions_have_more_than_one_caller() -> None:
    private = [
        (path, one.name)
        for path in MODULES
        for one in functions(path)
        if one.name.startswith("_") and not one.name.startswith("__")
    ]
    once = [name for path, name in private if len(re.findall(rf"\b{name}\b", SOURCES[path])) == 2]
    assert len(once) < CALLED_ONCE * len(private)


def test_docstrings_say_what_is_done() -> None:
    """A docstring begins with a verb phrase or a noun, never with a question word. Those of commands are help texts."""
    asking = [
        f"{named(path)}:{getattr(node, 'lineno', 1)}"
        for path in MODULES
        if path.parent.name != "commands"
        for node in NODES[path]
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and OPENINGS.match(ast.get_docstring(node) or "")
    ]
    assert not asking
