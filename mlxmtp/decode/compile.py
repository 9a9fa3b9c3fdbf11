"""Rounds by draft length: compiled as soon as their kernels are there, uncompiled until then."""

import atexit
import hashlib
import os
import queue
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, cast

import mlx.core as mx

from mlxmtp.decode.batch_round import Slots, make_batch_parts, make_batch_round
from mlxmtp.decode.exact import Passes
from mlxmtp.decode.mixed_sampling import choices
from mlxmtp.decode.round import Parts, State, make_parts, make_round
from mlxmtp.decode.sampling import Filters, Sampling
from mlxmtp.limits import COPIED, MAX_DRAFT, STEP
from mlxmtp.models.config import FULL
from mlxmtp.models.device import on_cpu
from mlxmtp.models.drafter import DraftModel
from mlxmtp.models.kv_cache import KVCache
from mlxmtp.models.slots import SlotCache
from mlxmtp.models.target import Target
from mlxmtp.version import installed_version

Compiled = Literal["background", "always", "never"]
Kind = tuple[Any, ...]
"""What shapes a round beside its draft length: filters of sampling, or for several texts see `BatchRounds`."""
Key = tuple[int, Kind]
COPIED_FROM = 2**27
"""Bytes of rows that layers share from which a check waits: to copy them takes 2.7 ms at 100 GB/s, 0.7 at 400."""
_TRIES = 3  # at building kernels: Ctrl-C in a terminal ends the compiler, too, and a conversation goes on after it
_KEPT = 16  # kinds of rounds whose traces stay: a client may send another temperature with every request
_CAPACITIES = 24  # of a kind, likewise: a trace takes some 2 MB of the host
_KINDS = 2  # rounds with 2 drafts and more have the same kernels; with none or one there are a few others


class Rounds:
    """Round functions by draft length and sampling filters; all drafts, or the first ones, may be given to them.

    A compiled round is 1.3 to 2 times faster and costs twice before: its kernels are built once for each kind of round
    (by a thread, see `_build`), and it is traced for each length and capacity, which takes one to three rounds' time
    of the host. So another length is traced while the device works on a round of a length that is traced.

    A library of kernels is built for each of some forty fused graphs of a pair. On Linux the answer goes on meanwhile.
    On Metal it may wait: MLX holds one lock while it builds a library, and the next gather or scatter needs it (read in
    its source; seconds in all, once for each version of macOS and MLX, which keep what was built). On the CPU they are
    files; one of ours beside them says that those of a kind are there, and the thread, which would take the prompt's
    cores for 0.1 s to find that out, has nothing to do.
    """

    def __init__(
        self, target: Target, drafter: DraftModel | None, compiled: Compiled, passes: Passes | None = None
    ) -> None:
        self._target, self._drafter, self._mode, self._passes = target, drafter, compiled, passes
        self._parts: dict[tuple[Kind, bool], Parts] = {}
        self._checks: dict[tuple[Kind, int], set[int]] = {}  # draft lengths traced, by kind and capacity
        self._steps: set[tuple[Kind, int]] = set()  # kinds whose draft steps are traced
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
        self._checks.clear()
        self._steps.clear()

    def get(
        self, k: int, filters: Kind, capacity: int = 0, *, drafting: bool = True
    ) -> tuple[Callable[..., Any], bool]:
        """Return the round with ``k`` draft tokens, and whether it is the compiled one; not ``drafting``: all given."""
        compiled = self._mode == "always" or (self._mode == "background" and self.built(k, filters))
        if compiled:
            if (filters, capacity) not in self._checks and self._capacities(filters) >= _CAPACITIES:
                self._drop(filters)
            self._checks.setdefault((filters, capacity), set()).add(k)
            if k and drafting:
                self._steps.add((filters, capacity))
        return self._make_round(self._of(filters, compiled), k, waits=self._waits(filters, capacity)), compiled

    def _of(self, filters: Kind, compiled: bool) -> Parts:
        """Return the parts of rounds with these filters, with the traces that they keep; of the kinds used last."""
        parts = self._parts.pop((filters, compiled), None) or self._make_parts(filters, compiled)
        self._parts[filters, compiled] = parts  # the last one
        if (other := self._parts.pop((filters, not compiled), None)) is not None:
            self._parts[filters, not compiled] = other  # of the same kind
        while len({kind for kind, _ in self._parts}) > _KEPT:
            self._drop(next(kind for kind, _ in self._parts if kind != filters))
        return parts

    def _capacities(self, kind: Kind) -> int:
        return sum(of == kind for of, _ in self._checks)

    def _drop(self, old: Kind) -> None:
        """Let go of the traces of a kind."""
        self._parts = {of: parts for of, parts in self._parts.items() if of[0] != old}
        self._checks = {of: lengths for of, lengths in self._checks.items() if of[0] != old}
        self._steps = {(kind, rows) for kind, rows in self._steps if kind != old}

    def _waits(self, kind: Kind, capacity: int) -> bool:
        """Return True if a check has to wait until nothing on the device reads the rows that layers share any more.

        Metal keeps what an operation reads until its batch of some 50 is done, and the host is up to ten of these
        ahead. A buffer that is still read is copied before it is written. Only E2B and E4B come so close: the layer
        whose keys others and the drafter read is a few hundred operations behind these. From some size on, a copy takes
        longer than the device idles here, until the host has dispatched the check's first operations.
        """
        target = self._target
        if on_cpu() or len(target.layers) == len(target.cache_spec.kinds):
            return False
        buffers, places = target.cache_spec.buffers(target.dtype), target.cache_spec.places(target.stores[FULL])
        row = sum(buffers[place].heads * buffers[place].width * buffers[place].dtype.size for place in places)
        return row * capacity * self._texts(kind) >= COPIED_FROM

    def traced(self, filters: Kind, capacity: int, *, drafting: bool = True) -> set[int]:
        """Return the draft lengths whose rounds can run at once, in their final form; not ``drafting``: all given."""
        if self._mode == "never":
            return {*range(MAX_DRAFT + 1), COPIED}
        lengths = self._checks.get((filters, capacity), set())
        return lengths & {0} if drafting and (filters, capacity) not in self._steps else {*lengths}

    def trace(self, k: int, filters: Kind, buffers: list[mx.array], capacity: int) -> None:
        """Trace the round with ``k`` draft tokens for buffers like these: a graph, which nobody evaluates."""
        _, compiled = self.get(k, filters, capacity)
        function = self._make_round(self._of(filters, compiled), k)  # waits for nothing
        function(*self._arguments(k, filters, [mx.zeros(one.shape, one.dtype) for one in buffers]))

    def built(self, k: int, filters: Kind) -> bool:
        """Return True if the kernels of rounds with ``k`` draft tokens are there."""
        return (min(k, _KINDS), filters) in self._ready

    def build(self, k: int, filters: Kind) -> None:
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

        MLX finds the compiler through PATH: without it the run under way is the last, half a second at most. Metal's
        compiler is a service of the system: there the round under way is waited for.
        """
        path = os.environ.pop("PATH", None)
        self._end()
        if path is not None:
            os.environ["PATH"] = path

    def _work(self) -> None:
        while (key := self._wanted.get()) is not None and not self._over:
            if not self._builds(key):
                return  # no compiler after all, or its output is damaged: the rounds stay as they are
            self._ready.add(key)
            with suppress(OSError):
                if (mark := self._mark(*key)) is not None and mark.parent.is_dir():
                    mark.touch()

    def _mark(self, k: int, filters: Kind) -> Path | None:
        """Return the file beside MLX's kernels that says that those of this kind are there; None if a GPU has them."""
        if not on_cpu():
            return None
        kind = (
            k,
            filters,
            self._passes,
            self._target.config,
            getattr(self._drafter, "config", None),
            installed_version(),
        )
        folder = Path(tempfile.gettempdir(), "mlx", installed_version("mlx"), "cpu")
        return folder / f"mlxmtp-{hashlib.sha256(repr(kind).encode()).hexdigest()[:24]}"

    def _builds(self, key: Key) -> bool:
        """Return whether the kernels of such rounds could be built."""
        for _ in range(_TRIES):
            with suppress(RuntimeError):
                self._build(*key)
                return True
            if self._over:
                break
        return False

    def _build(self, k: int, filters: Kind) -> None:
        """Evaluate a round of this thread's own on small buffers: kernels do not depend on sizes.

        (On Metal a few do: attention and sums over 1,024 or 4,096 keys and more build one more, in milliseconds.)
        MLX keeps traces per thread as long as their function lives. Those left when the thread ends are dropped after
        `join` has returned, by when Python may be gone: so the function is gone when this returns.
        """
        compiled = self._make_round(self._make_parts(filters, True), k)
        mx.eval(compiled(*self._arguments(k, filters, self._buffers(filters))))

    def _buffers(self, filters: Kind) -> list[mx.array]:
        """Return the buffers of a text of no length, whose rings are no longer than that: nobody rewinds it."""
        cache = self._cache(filters)
        KVCache.reserve(cache, STEP)
        return cache.buffers

    def _make_parts(self, filters: Kind, compiled: bool) -> Parts:
        about = self._target, self._drafter, cast("Filters", filters)
        return make_parts(*about, compiled=compiled, passes=self._passes)

    def _make_round(self, parts: Parts, k: int, *, waits: bool = False) -> Callable[..., Any]:
        return make_round(parts, k, waits=waits)

    def _texts(self, kind: Kind) -> int:
        del kind
        return 1

    def _cache(self, filters: Kind) -> KVCache:
        del filters
        return KVCache(self._target.cache_spec, self._target.dtype)

    def _arguments(self, k: int, filters: Kind, buffers: list[mx.array]) -> tuple[Any, ...]:
        """Arguments of a round with ``k`` draft tokens on ``buffers``, of the right shapes and types."""
        del filters
        given = [0] * k if self._drafter is None else []
        return self.state(1), buffers, mx.zeros((2,), mx.uint32), given

    def state(self, texts: int) -> State:
        """Return the state of so many texts that have not begun."""
        hidden = mx.zeros((texts, self._target.config.hidden_size), self._target.dtype)
        return State(mx.zeros((texts,), mx.int32), hidden, mx.ones((texts,), mx.int32))


class BatchRounds(Rounds):
    """Rounds of several texts; their kind is the number of slots, then the kinds of sampling settings."""

    def _make_parts(self, filters: Kind, compiled: bool) -> Parts:
        return make_batch_parts(self._target, self._drafter, filters[1:], compiled=compiled)

    def _make_round(self, parts: Parts, k: int, *, waits: bool = False) -> Callable[..., Any]:
        return make_batch_round(parts, k, waits=waits)

    def _texts(self, kind: Kind) -> int:
        texts: int = kind[0]
        return texts

    @property
    def drafts(self) -> bool:
        """True if there is a drafter."""
        return self._drafter is not None

    def cache(self, slots: int) -> SlotCache:
        """Return empty buffers for so many texts."""
        return SlotCache(self._target.cache_spec, self._target.dtype, slots)

    def _cache(self, filters: Kind) -> KVCache:
        return self.cache(filters[0])

    def _arguments(self, k: int, filters: Kind, buffers: list[mx.array]) -> tuple[Any, ...]:
        del k
        texts: int = filters[0]
        slots = Slots(mx.zeros((texts,), mx.int32), choices([Sampling()] * texts))
        return self.state(texts), buffers, slots
