"""Rounds by draft length: compiled as soon as their kernels are there, uncompiled until then."""

import atexit
import hashlib
import os
import queue
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import mlx.core as mx

from mlxmtp.decode.round import Parts, RoundFunction, State, make_parts, make_round
from mlxmtp.decode.sampling import Filters
from mlxmtp.limits import COPIED, MAX_DRAFT, STEP
from mlxmtp.models.device import on_cpu
from mlxmtp.models.drafter import DraftModel
from mlxmtp.models.kv_cache import KVCache
from mlxmtp.models.target import Target
from mlxmtp.version import installed_version

Compiled = Literal["background", "always", "never"]
Key = tuple[int, Filters]
_KINDS = 2  # rounds with 2 drafts and more have the same kernels; with none or one there are a few others


class Rounds:
    """Round functions by draft length and sampling filters; without a drafter they take the draft tokens.

    A compiled round is 1.3 to 2 times faster and costs twice before: its kernels are built once for each kind of round
    (by a thread, see `_build`), and it is traced for each length and capacity, which takes one to three rounds' time
    of the host. So another length is traced while the device works on a round of a length that is traced.

    A library of kernels is built for each of some forty fused graphs of a pair. On Linux the answer goes on meanwhile.
    On Metal it may wait: MLX holds one lock while it builds a library, and the next gather or scatter needs it (read in
    its source; seconds in all, once for each version of macOS and MLX, which keep what was built). On the CPU they are
    files; one of ours beside them says that those of a kind are there, and the thread, which would take the prompt's
    cores for 0.1 s to find that out, has nothing to do.
    """

    def __init__(self, target: Target, drafter: DraftModel | None, compiled: Compiled) -> None:
        self._target, self._drafter, self._mode = target, drafter, compiled
        self._parts: dict[tuple[Filters, bool], Parts] = {}
        self._traced: set[tuple[Key, int]] = set()
        self._asked: set[Key] = set()  # kinds of rounds whose kernels are wanted, and are there
        self._ready: set[Key] = set()
        self._wanted: queue.SimpleQueue[Key | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._over = False

    def close(self) -> None:
        """End the thread and let go of the networks."""
        self._end()
        atexit.unregister(self._finish)
        self._parts.clear()
        self._traced.clear()

    def get(self, k: int, filters: Filters, capacity: int = 0) -> tuple[RoundFunction, bool]:
        """Return the round with ``k`` draft tokens, and whether it is the compiled one."""
        compiled = self._mode == "always" or (self._mode == "background" and self.built(k, filters))
        if compiled:
            self._traced.add(((k, filters), capacity))
        if (filters, compiled) not in self._parts:
            self._parts[filters, compiled] = make_parts(self._target, self._drafter, filters, compiled=compiled)
        return make_round(self._parts[filters, compiled], k), compiled

    def traced(self, filters: Filters, capacity: int) -> set[int]:
        """Return the draft lengths whose rounds can run at once, in their final form."""
        if self._mode == "never":
            return {*range(MAX_DRAFT + 1), COPIED}
        return {key[0] for key, rows in self._traced if key[1] == filters and rows == capacity}

    def trace(self, k: int, filters: Filters, buffers: list[mx.array], capacity: int) -> None:
        """Trace the round with ``k`` draft tokens for buffers like these: a graph, which nobody evaluates."""
        function, _ = self.get(k, filters, capacity)
        function(*self._arguments(k, [mx.zeros(one.shape, one.dtype) for one in buffers]))

    def built(self, k: int, filters: Filters) -> bool:
        """Return True if the kernels of rounds with ``k`` draft tokens are there."""
        return (min(k, _KINDS), filters) in self._ready

    def build(self, k: int, filters: Filters) -> None:
        """Have the kernels of rounds with ``k`` draft tokens built behind the scenes, unless they are there."""
        key = (min(k, _KINDS), filters)
        if self._mode != "background" or key in self._asked:
            return
        self._asked.add(key)
        if (mark := self._mark(*key)) is not None and mark.exists():
            self._ready.add(key)
            return
        self._wanted.put(key)
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="mlxmtp-compile", daemon=True)
            self._thread.start()
            atexit.register(self._finish)

    def _end(self) -> None:
        self._over = True
        self._wanted.put(None)
        if self._thread is not None:
            self._thread.join()

    def _finish(self) -> None:
        """End the thread before the process, which would abort if it were inside MLX.

        MLX finds the compiler through PATH: without it the run under way is the last, half a second at most.
        """
        path = os.environ.pop("PATH", None)
        self._end()
        if path is not None:
            os.environ["PATH"] = path

    def _work(self) -> None:
        while (key := self._wanted.get()) is not None and not self._over:
            try:
                self._build(*key)
            except RuntimeError:  # no compiler after all, or its output is damaged: the rounds stay as they are
                return
            self._ready.add(key)
            with suppress(OSError):
                if (mark := self._mark(*key)) is not None and mark.parent.is_dir():
                    mark.touch()

    def _mark(self, k: int, filters: Filters) -> Path | None:
        """Return the file beside MLX's kernels that says that those of this kind are there; None if a GPU has them."""
        if not on_cpu():
            return None
        kind = (k, filters, self._target.config, getattr(self._drafter, "config", None), installed_version())
        folder = Path(tempfile.gettempdir(), "mlx", installed_version("mlx"), "cpu")
        return folder / f"mlxmtp-{hashlib.sha256(repr(kind).encode()).hexdigest()[:24]}"

    def _build(self, k: int, filters: Filters) -> None:
        """Evaluate a round of this thread's own on small buffers: kernels do not depend on sizes.

        MLX keeps traces per thread as long as their function lives. Those left when the thread ends are dropped after
        `join` has returned, by when Python may be gone: so the function is gone when this returns.
        """
        cache = KVCache(self._target.cache_spec, self._target.dtype)
        cache.reserve(STEP)
        compiled = make_round(make_parts(self._target, self._drafter, filters, compiled=True), k)
        mx.eval(compiled(*self._arguments(k, cache.buffers)))

    def _arguments(self, k: int, buffers: list[mx.array]) -> tuple[Any, ...]:
        """Arguments of a round with ``k`` draft tokens on ``buffers``, of the right shapes and types."""
        hidden = mx.zeros((1, self._target.config.hidden_size), self._target.dtype)
        state = State(mx.zeros((1,), mx.int32), hidden, mx.ones((1,), mx.int32))
        given = [mx.zeros((k,), mx.int32)] if k and self._drafter is None else []
        return state, buffers, mx.zeros((2,), mx.uint32), *given
