#!/usr/bin/env python3
"""Install the wheel as people do, into empty environments, and ask what was installed something.

    python scripts/try_installs.py [--ways pip,uv,pipx] [--wheel FILE]

pip in a new venv, `uv tool install` and `pipx install`, each without extras and with all of them, each with a home
folder of its own. uv and pipx come from the PATH, or into a temporary environment. Needs an index, and the dev extras.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = {"heic": "pillow_heif", "media": "av", "pdf": "pypdfium2", "mcp": "mcp", "plot": "PIL"}
"""The module that each extra brings; Pillow is there without one, too."""


def call(*command: str | Path, env: dict[str, str] | None = None) -> str:
    """Run a program to its end and return its stdout. Raises SystemExit with what it said if it failed."""
    done = subprocess.run(
        [*map(str, command)], env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def with_pip(wheel: str, folder: Path, env: dict[str, str]) -> Path:
    """Install into a new venv; return its Python."""
    call(sys.executable, "-m", "venv", folder / "venv", env=env)
    python = folder / "venv/bin/python"
    call(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wheel, env=env)
    return python


def with_uv(wheel: str, folder: Path, env: dict[str, str]) -> Path:
    """Install as a tool of uv; return its Python."""
    own = {"UV_TOOL_DIR": str(folder / "tools"), "UV_TOOL_BIN_DIR": str(folder / "bin")}
    call(program("uv", folder), "tool", "install", "--quiet", "--python", sys.executable, wheel, env={**env, **own})
    return folder / "tools/mlxmtp/bin/python"


def with_pipx(wheel: str, folder: Path, env: dict[str, str]) -> Path:
    """Install with pipx; return its Python."""
    own = {"PIPX_HOME": str(folder / "pipx"), "PIPX_BIN_DIR": str(folder / "bin")}
    call(program("pipx", folder), "install", "--quiet", "--python", sys.executable, wheel, env={**env, **own})
    return folder / "pipx/venvs/mlxmtp/bin/python"


WAYS: dict[str, Callable[[str, Path, dict[str, str]], Path]] = {"pip": with_pip, "uv": with_uv, "pipx": with_pipx}


def program(name: str, folder: Path) -> Path:
    """Return uv or pipx, installed beside the environments if there is none."""
    if found := shutil.which(name):
        return Path(found)
    tools = folder.parent / "installers"
    if not (tools / "bin" / name).exists():
        call(sys.executable, "-m", "venv", tools)
        call(tools / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "uv", "pipx")
    return tools / "bin" / name


def check(python: Path, folder: Path, *, extras: bool) -> str:
    """Ask what was installed; return what is wrong, or nothing."""
    env = {"PATH": "/usr/bin:/bin", "HOME": str(folder), "OPENBLAS_NUM_THREADS": "1"}
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    mlxmtp = python.parent / "mlxmtp"
    if version not in (said := call(mlxmtp, "--version", env=env)):
        return f"--version says {said.strip()}"
    answer = call(mlxmtp, "ask", "-m", "pocket", "--temp", "0", "What is mlxmtp?", env=env)
    if "mlxmtp" not in answer:
        return f"answered {answer.strip()!r}"
    call(mlxmtp, "ls", env=env)
    found = f"import importlib.util as u; print(*[n for n in {list(EXTRAS.values())} if u.find_spec(n)])"
    there = set(call(python, "-c", found, env=env).split())
    wanted = set(EXTRAS.values()) if extras else {"PIL"}
    return "" if there == wanted else f"has the modules {sorted(there)} of extras, not {sorted(wanted)}"


def main() -> None:
    """Print a line for each installation; exit 1 when one is not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", default=",".join(WAYS), help="of pip, uv and pipx (default: all)")
    parser.add_argument("--wheel", type=Path, help="install this one instead of building it")
    options = parser.parse_args()
    with TemporaryDirectory() as scratch:
        wheel = options.wheel or build(Path(scratch))
        asked = [(way, extras) for way in options.ways.split(",") for extras in (False, True)]
        wrong = [install(way, wheel.resolve(), Path(scratch), extras=extras) for way, extras in asked]
    raise SystemExit(any(wrong))


def build(folder: Path) -> Path:
    """Return the wheel of this checkout."""
    call(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT)
    (wheel,) = folder.glob("*.whl")
    return wheel


def install(way: str, wheel: Path, scratch: Path, *, extras: bool) -> str:
    """Install in one way, check, and print a line; return what is wrong."""
    start, folder = time.monotonic(), scratch / f"{way}{'-extras' * extras}"
    folder.mkdir()
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"HOME": str(folder)}
    named = f"[{','.join(EXTRAS)}]" if extras else ""
    wrong = check(WAYS[way](f"{wheel}{named}", folder, env), folder, extras=extras)
    print(f"{way} {named or 'without extras'}: {wrong or 'works'}, {time.monotonic() - start:.0f} s", flush=True)
    shutil.rmtree(folder)
    return wrong


if __name__ == "__main__":
    main()
