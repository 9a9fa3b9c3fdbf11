"""The rings: imports point inwards only, every library stays in its ring, and starting imports nothing heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "mlxmtp").rglob("*.py"))

# What a ring may import of this package, besides itself and what all may; files at the top are rings of their own.
EVERYBODY = {"errors", "files", "limits", "units", "version"}
INWARDS = {
    "errors": set(),
    "files": set(),
    "limits": set(),
    "units": set(),
    "version": set(),
    "models": set(),
    "decode": {"models"},
    "machine": {"models"},
    "media": set(),
    "engine": {"decode", "machine", "media", "models"},
    "environment": set(),
    "settings": {"environment"},
    "hub": {"machine", "models", "settings"},
    "convert": {"engine", "hub", "machine", "models", "settings"},
    "chat": {"engine", "environment", "hub", "media", "settings"},
    "bench": {"engine", "hub", "machine", "models", "decode", "settings"},
    "app": {
        "bench", "chat", "convert", "engine", "environment", "hub", "machine", "media", "models", "settings",
        "__init__",
    },
    "__init__": {"app", "engine", "decode", "models"},  # models for OpenBLAS alone
    "serve": {"app", "engine", "environment", "media", "settings"},
    "cli": {
        "app", "serve", "bench", "chat", "convert", "engine", "environment", "machine", "media", "settings",
        "__init__",
    },
    "__main__": {"cli"},
}  # fmt: skip

# Libraries that only these rings may import.
KEPT_IN = {
    "mlx_lm": set(),  # the oracle of the tests
    "mlx": {"models", "decode", "engine", "machine", "convert", "bench"},
    "tokenizers": {"engine"},
    "jinja2": {"engine"},
    "llguidance": {"engine"},
    "huggingface_hub": {"hub"},
    "httpx2": {"hub", "app"},
    "mcp": {"app"},  # tool servers
    "anyio": {"app"},
    "typer": {"cli"},
    "markdown_it": {"cli"},
    "rich": set(),
    "prompt_toolkit": {"cli"},
    "pygments": {"cli"},
    "PIL": {"bench", "engine", "media"},  # plots as PNG; types; pictures
    "transformers": set(),
    "torch": set(),
    "numpy": {"media"},
    "soundfile": {"media"},
    "soxr": {"media"},
    "av": {"media"},
    "starlette": {"serve"},
    "uvicorn": {"serve"},
    "h11": {"serve"},
    "click": set(),  # typer carries its own
}

HEAVY = {
    "mlx.core",
    "mlx_lm",
    "transformers",
    "tokenizers",
    "jinja2",
    "llguidance",
    "huggingface_hub",
    "prompt_toolkit",
    "markdown_it",
    "pygments",
    "starlette",
    "uvicorn",
    "mcp",
}


def ring(path: Path) -> str:
    first = path.relative_to(ROOT / "mlxmtp").parts[0]
    return first.removesuffix(".py")


@cache
def nodes(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def imported(path: Path) -> set[str]:
    """Every module named by an import anywhere in the file, also inside functions."""
    names: set[str] = set()
    for node in nodes(path):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            # `from mlxmtp import models` names a ring in what it takes
            names |= {f"mlxmtp.{alias.name}" for alias in node.names} if node.module == "mlxmtp" else {node.module}
    return names


def reads_environment(path: Path) -> bool:
    names = {node.attr for node in nodes(path) if isinstance(node, ast.Attribute)}
    names |= {alias.name for node in nodes(path) if isinstance(node, ast.ImportFrom) for alias in node.names}
    return bool(names & {"environ", "getenv", "environb"})


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_point_inwards_and_libraries_stay_in_their_ring(path: Path) -> None:
    here = ring(path)
    breaks = []
    for name in imported(path):
        top, _, rest = name.partition(".")
        if top == "mlxmtp":
            other = rest.partition(".")[0]
            other = other if other in INWARDS else "__init__"
            if other not in INWARDS[here] | {here, *EVERYBODY}:
                breaks.append(name)
        elif here not in KEPT_IN.get(top, {here}):
            breaks.append(name)
    assert not breaks


def test_only_settings_reads_the_environment() -> None:
    """The others take no setting from it: PATH is hidden from MLX's compiler, a shell says what to complete."""
    readers = {path.relative_to(ROOT / "mlxmtp").as_posix() for path in MODULES if reads_environment(path)}
    assert readers == {"settings.py", "environment.py", "decode/compile.py", "cli/app.py"}


@pytest.mark.parametrize("module", ["mlxmtp", "mlxmtp.cli.app"])
def test_starting_imports_nothing_heavy(module: str) -> None:
    command = f"import sys, {module}; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert not HEAVY & set(done.stdout.split())


def test_the_commands_are_listed_without_importing_what_they_do() -> None:
    """Every command pays for what this imports, `--help` as well as `ask`."""
    command = "import sys, mlxmtp.cli.program; print(*(name for name in sys.modules if name.startswith('mlxmtp.')))"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    rings = {name.split(".")[1] for name in done.stdout.split() if name != "mlxmtp.bench"}  # its names of formats
    assert rings == {"cli", "environment", "errors", "limits", "settings", "units"}


def test_no_module_imports_itself_by_a_detour() -> None:
    """No circle, counting imports for types and those inside functions as well."""
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in MODULES}
    arrows = {name: {n for n in _modules(path) if n in names and n != name} for name, path in names.items()}
    while leaves := {name for name, to in arrows.items() if not to}:
        arrows = {name: to - leaves for name, to in arrows.items() if name not in leaves}
    assert not arrows


def _modules(path: Path) -> set[str]:
    """Modules a file imports, with those named in `from package import module`."""
    found: set[str] = set()
    for node in nodes(path):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= inner if any(_is_module(one) for one in inner) else {node.module}
    return found


def _is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or path.is_dir()
