"""Before any test module imports mlx: an environment that is nobody's, and OpenBLAS under it on one thread.

The networks here are small.
"""

from __future__ import annotations

import atexit
import os
import re
import shutil
import signal
import tempfile
from pathlib import Path
from typing import Any

import hypothesis
import pytest

_SOMEBODYS = re.compile(r"MLXMTP_|HF_|HUGGINGFACE_|XDG_|GIT_|(http|https|all)_proxy$", re.IGNORECASE)
_SOMEBODYS_TOO = ("TMUX", "TMUX_PANE", "STY", "SSH_CONNECTION", "SSH_TTY")
_ASKED_FOR = ("MLXMTP_SCHEDULES", "MLXMTP_TOOL_SERVERS")  # by whom the tests are run
_OF_INSTALLERS = {
    "XDG_CONFIG_HOME": (".config", ("pip", "uv")),
    "XDG_CACHE_HOME": (".cache", ("pip", "uv", "matplotlib")),
    "": ("", (".pip", ".matplotlib", "Library/Application Support/pip", "Library/Caches/pip", "Library/Caches/uv")),
}
"""What stays of a home folder: where packages come from, and what would take time to be made again."""

_COMPILER = """\
#!/bin/sh
for last do :; done
case $last in
*.so) "{0}" "$@" -o "$last.$$" && mv -f "$last.$$" "$last" ;;
*) exec "{0}" "$@" ;;
esac
"""
"""What MLX finds as g++: a library of kernels appears whole, for several processes of these tests share a folder."""


def _leave_home() -> None:
    """Let settings, tokens, sessions, proxies and git's configuration of who runs the tests play no part."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        return  # the process that started this one has done so
    home, new = Path.home(), Path(tempfile.mkdtemp(prefix="mlxmtp-home-"))
    atexit.register(_remove, new, os.getpid())
    for variable, (usual, names) in _OF_INSTALLERS.items():
        there = Path(os.environ.get(variable) or home / usual)
        for name in names:
            if (there / name).exists():
                link = new / usual / name
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(there / name)
    for name in [*os.environ]:
        if (_SOMEBODYS.match(name) or name in _SOMEBODYS_TOO) and name not in _ASKED_FOR:
            del os.environ[name]
    os.environ |= {
        "HOME": str(new),
        "NO_PROXY": "*",
        "no_proxy": "*",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
    }
    if compiler := shutil.which("g++"):
        wrapper = new / "compiler" / "g++"
        wrapper.parent.mkdir()
        wrapper.write_text(_COMPILER.format(compiler))
        wrapper.chmod(0o755)
        os.environ["PATH"] = f"{wrapper.parent}:{os.environ['PATH']}"


def _remove(folder: Path, owner: int) -> None:
    if os.getpid() == owner:  # a fork has nothing to remove
        shutil.rmtree(folder, ignore_errors=True)


_leave_home()

from mlxmtp.models import blas  # noqa: E402  (nothing of the program is imported before)

blas.load()
blas.set_threads(1)
hypothesis.settings.register_profile("loaded", deadline=None)  # a machine that is busy is no failure
hypothesis.settings.load_profile("loaded")

# What `nohup` or a script's `&` ignores the programs under test would ignore, too: children inherit it, but no handler.
_HEEDED: dict[int, Any] = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGHUP: lambda *_: None,
    signal.SIGQUIT: signal.SIG_DFL,
    signal.SIGTERM: signal.SIG_DFL,
}
for _number, _handler in _HEEDED.items():
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--as-gpu", action="store_true", help="run what a GPU runs: MLX's attention, views, rounds ahead")
    parser.addoption("--thorough", action="store_true", help="run every variant of every test")


def pytest_configure(config: pytest.Config) -> None:
    """Choose the device: numbers are compared with those of a CPU, so tests run there on a Mac, too, unless asked.

    ``--as-gpu`` without a GPU takes the ways of one on the CPU backend. Numbers stay in float32, so that they can be
    compared with the reference's; `decode/test_sixteen_bits.py` is about the others.
    """
    import mlx.core as mx

    from mlxmtp.models import device

    if not config.getoption("--as-gpu"):
        mx.set_default_device(mx.Device(mx.cpu))
        return
    widened = {mx.bfloat16: mx.float32, mx.float16: mx.float32}
    device.compute_dtype = lambda stored: widened.get(stored, stored)
    if device.on_cpu():
        device.on_cpu = lambda: False


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--thorough"):
        left = _without_most(items)
        config.hook.pytest_deselected(items=[item for item in items if item not in left])
        items[:] = [item for item in items if item in left]
    for item in items:
        if config.getoption("--as-gpu") and item.get_closest_marker("cpu"):
            item.add_marker(pytest.mark.skip(reason="about the CPU backend"))


def _without_most(items: list[pytest.Item]) -> set[pytest.Item]:
    """Return the items of a usual run: none that is marked thorough, of a test marked ``few(n)`` n variants.

    Each is the one that shows most values of the parameters that those before it do not.
    """
    variants: dict[tuple[Any, str], list[Any]] = {}
    for item in items:
        if not item.get_closest_marker("thorough"):
            variants.setdefault((item.parent, getattr(item, "originalname", item.name)), []).append(item)
    left: set[pytest.Item] = set()
    for group in variants.values():
        mark = group[0].get_closest_marker("few")
        seen: set[tuple[str, str]] = set()
        for _ in range(min(mark.args[0], len(group)) if mark else 0):
            if all(_values(item) <= seen for item in group):
                seen.clear()
            best = max(group, key=lambda item: len(_values(item) - seen))  # the first of equals
            group.remove(best)
            left.add(best)
            seen |= _values(best)
        if mark is None:
            left.update(group)
    return left


def _values(item: Any) -> set[tuple[str, str]]:
    return {(name, repr(value)) for name, value in item.callspec.params.items()}
