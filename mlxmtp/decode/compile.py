"""Rounds by draft length, compiled behind the scenes: until then the same function serves uncompiled."""

import atexit
import os
import queue
import threading
from typing import Literal

import mlx.core as mx

from mlxmtp.decode.round import RoundFunction, State, make_round
from mlxmtp.decode.sampling import Filters
from mlxmtp.limits import STEP
from mlxmtp.models.drafter import DraftModel
from mlxmtp.models.kv_cache import KVCache
from mlxmtp.models.target import Target

Compiled = Literal["background", "always", "never"]
Key = tuple[int, Filters]


class Rounds:
    """Round functions by draft length and sampling filters; without a drafter they take the draft tokens.

    A library of kernels is built for each of some forty fused graphs of a pair. On Linux the answer goes on meanwhile.
    On Metal it may wait: MLX holds one lock while it builds a library, and the next gather or scatter needs it (read in
    its source; seconds in all, once for each version of macOS and MLX, which keep what was built).
    """

    def __init__(self, target: Target, drafter: DraftModel | None, compiled: Compiled) -> None:
        self._target, self._drafter, self._mode = target, drafter, compiled
        self._plain: dict[Key, RoundFunction] = {}
        self._compiled: dict[Key, RoundFunction] = {}
        self._ready: set[Key] = set()
        self._wanted: queue.SimpleQueue[Key | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._over = False

    def close(self) -> None:
        """End the thread and let go of the networks."""
        self._end()
        atexit.unregister(self._finish)
        self._plain.clear()
        self._compiled.clear()

    def get(self, k: int, filters: Filters) -> tuple[RoundFunction, bool]:
        """Return the round with ``k`` draft tokens, and whether it is the compiled one."""
        key = (k, filters)
        if key not in self._plain:
            self._plain[key] = make_round(self._target, self._drafter, k, filters)
            self._compiled[key] = mx.compile(self._plain[key])
            if self._mode == "background":
                self._ask(key)
        ready = self._mode == "always" or key in self._ready
        return (self._compiled if ready else self._plain)[key], ready

    def _ask(self, key: Key) -> None:
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

    def _build(self, k: int, filters: Filters) -> None:
        """Evaluate a round of this thread's own on small buffers: kernels do not depend on sizes.

        MLX keeps traces per thread as long as their function lives. Those left when the thread ends are dropped after
        `join` has returned, by when Python may be gone: so the function is gone when this returns.
        """
        target = self._target
        cache = KVCache(target.cache_spec, target.dtype)
        cache.reserve(STEP)
        hidden = mx.zeros((1, target.config.hidden_size), target.dtype)
        state = State(mx.zeros((1,), mx.int32), hidden, mx.ones((1,), mx.int32))
        compiled = mx.compile(make_round(target, self._drafter, k, filters))
        given = [mx.zeros((k,), mx.int32)] if self._drafter is None and k else []
        mx.eval(compiled(state, cache.buffers, mx.zeros((2,), mx.uint32), *given))
