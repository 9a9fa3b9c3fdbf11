"""Checks of this machine, one line each, with advice where something is missing."""

import shutil
import sys
from collections.abc import Iterator
from contextlib import suppress

from mlxmtp.app.models import Catalog
from mlxmtp.engine.tokenizer import check_text_side
from mlxmtp.errors import LoadError
from mlxmtp.files import free_bytes
from mlxmtp.hub.inventory import installed, total_size, unfinished_downloads, unusable
from mlxmtp.hub.registry import BUILT_IN
from mlxmtp.hub.store import Store, best_fit
from mlxmtp.machine.checks import Check
from mlxmtp.machine.chip import Machine, this_machine
from mlxmtp.machine.pace import pace_here
from mlxmtp.machine.speed import predict
from mlxmtp.units import format_bytes
from mlxmtp.version import installed_version

_PACKAGES = ("mlx", "mlx-lm", "huggingface-hub", "tokenizers", "typer", "markdown-it-py", "prompt-toolkit")
_LITTLE_DISK = 20_000_000_000
_PATIENCE = 3.0  # seconds for the hub


def examine(catalog: Catalog, *, measure: bool = False) -> Iterator[Check]:
    """Yield every check, one after the other; the slow one (the hub) has a short limit.

    `measure`: compute on this machine as well, which takes up to a minute; models begin with what that finds.
    """
    store = catalog.store
    with suppress(ImportError):  # told below
        from mlxmtp.models.device import memory_limit

        this_machine().keep(store.places.data, memory_limit())
    machine = catalog.machine
    speed = "memory speed unknown" if machine.bandwidth is None else f"{machine.bandwidth / 1e9:.0f} GB/s"
    yield Check("chip", "ok", machine.chip + ("" if machine.generation is None else f", {speed}"))
    python = ".".join(map(str, sys.version_info[:3]))
    found, release = f"{machine.system}, Python {python}", machine.system.removeprefix("macOS ").partition(".")[0]
    old = sys.platform == "darwin" and not (release.isdecimal() and int(release) >= 14)
    yield Check(
        "system", "bad" if old else "ok", found, "MLX needs macOS 14 or newer: update the system." if old else None
    )
    limit = "" if machine.wired_limit is None else " (set by iogpu.wired_limit_mb)"
    memory = f"{format_bytes(machine.memory)}, of which a model may take {format_bytes(machine.usable)}{limit}"
    advice = "Too little for Gemma 4 E2B; the built-in pocket runs." if machine.usable < 4_000_000_000 else None
    yield _note("memory", memory, advice)
    yield from _libraries()
    if catalog.broken_config:
        yield Check("config", "bad", catalog.broken_config, "Correct it: mlxmtp config edit.")
    versions = [f"{name} {installed_version(name, 'missing')}" for name in _PACKAGES]
    yield Check("versions", "ok", ", ".join([f"mlxmtp {installed_version(missing='(source)')}", *versions]))
    free = free_bytes(store.places.hf_cache)
    advice = "Room for small models only: mlxmtp rm, or set HF_HOME to another disk." if free < _LITTLE_DISK else None
    yield _note("disk", f"{format_bytes(free)} free in {store.places.hf_cache}", advice)
    yield _hub()
    yield from _models(store, machine)
    if measure:
        from mlxmtp.bench import self_check

        checks = []
        for one in self_check.measure():
            checks.append(one)
            yield one
        if (known := self_check.measured(checks)) is not None:
            with suppress(OSError):  # the next model begins without it
                known.save(store.places.data)


def _note(what: str, found: str, advice: str | None) -> Check:
    return Check(what, "ok" if advice is None else "note", found, advice)


def _libraries() -> Iterator[Check]:
    try:
        from mlxmtp.models.device import backend
    except ImportError as error:
        yield Check("mlx", "bad", f"cannot be imported ({error})", "Install mlxmtp again for this machine.")
        return
    name = backend()
    slow = name == "CPU" and sys.platform == "darwin"
    yield Check("mlx", "bad" if slow else "ok", f"computes on {name}", "Metal is missing: use a native Python." * slow)
    if sys.platform == "linux" and name == "CPU":
        from mlxmtp.models import blas

        status = blas.load()
        yield Check("BLAS", "ok", "OpenBLAS") if status.active else Check("BLAS", "bad", "reference BLAS", status.hint)
        missing = Check("compiler", "bad", "no g++, so kernels are not fused", "On Debian and Ubuntu: apt install g++")
        yield Check("compiler", "ok", "g++") if shutil.which("g++") else missing


def _hub() -> Check:
    from mlxmtp.hub import client

    if client.offline():
        return Check("hub", "note", "HF_HUB_OFFLINE is set", "Unset it before mlxmtp pull.")
    if (problem := client.reach(_PATIENCE)) is not None:
        found = f"{client.endpoint()}: {problem}"
        return Check("hub", "note", found, "Only mlxmtp pull needs it: check network and proxy.")
    login = "with a token" if client.has_token() else "without a token (only gated models need one)"
    return Check("hub", "ok", f"{client.endpoint()} answers, {login}")


def _models(store: Store, machine: Machine) -> Iterator[Check]:
    models, best, pace = installed(store), best_fit(machine.usable), pace_here(store.places.data)
    if all(model.name != BUILT_IN for model in models):
        yield Check(f"model {BUILT_IN}", "bad", "its files are missing", "Install mlxmtp again.")
    for model in models:
        try:
            check_text_side(model.config.folder)
        except LoadError as error:
            yield _note(f"model {model.name}", "cannot answer", str(error))
            continue
        needed = model.needs().total
        found = f"{format_bytes(model.size or 0)}, needs {format_bytes(needed)}"
        if pace is not None:
            found += f", predicted {predict(model.config, model.drafter_config, pace)}"
        advice = None
        if needed > machine.usable:
            advice = "Does not fit" + ("." if best is None else f": mlxmtp pull {best.name} does.")
        elif model.drafter is None:
            advice = f"No drafter: mlxmtp pull {model.repo}" if model.repo else "No drafter beside it."
        yield _note(f"model {model.name}", found, advice)
    for name, sentence in unusable(store):
        yield _note(f"model {name}", "cannot answer", sentence)
    for repo, size in unfinished_downloads(store):
        yield _note(f"part of {repo}", format_bytes(size), f"Go on with mlxmtp pull {repo}, or mlxmtp rm {repo}.")
    if len(models) <= 1 and best is not None:
        advice = f"mlxmtp pull {best.name} gets {best.title}, the largest that fits."
        yield Check("models", "note", "only the built-in demonstration", advice)
    else:
        yield Check("models", "ok", f"{len(models)}, {format_bytes(total_size(models))} on disk")
