"""Before any test module imports mlx: OpenBLAS under it, on one thread (the networks here are small)."""

from __future__ import annotations

import signal
from typing import Any

import hypothesis
import pytest

from mlxmtp.models import blas

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
