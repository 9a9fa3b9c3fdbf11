"""Where a round's time goes, seen from the host: Python between two rounds, handing work over, waiting for it.

    read round i | python: count, keep, give out, choose a length; replay | submit: async_eval | wait | read

`replay` is contained in `python`: MLX copies the traced graph of the round, operation by operation. With no round in
flight (the CPU) the device has nothing to do while `python` lasts. During `submit` it works already:
MLX hands operations over one by one and lets only a few wait, so `submit` lasts nearly as long as the work; `busy` is
the processor time that the submitting thread takes in it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import mlxmtp.decode.decoder as module
from mlxmtp.decode.decoder import Decoder
from mlxmtp.decode.draft_length import DraftLength


class Stopwatch:
    """Times the rounds of one decoder while it is entered, through the two calls that bound the host's part."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder, self._depth, self._mx = decoder, decoder.depth, vars(module)["mx"]
        self._read: float | None = None
        self._sent: float | None = None
        self._seconds = {"python": 0.0, "replay": 0.0, "submit": 0.0, "busy": 0.0, "wait": 0.0}
        self._rounds = 0

    def __enter__(self) -> Stopwatch:
        setattr(module, "mx", _Timed(self._mx, self))  # noqa: B010  (a module is not typed to take a stand-in)
        self._decoder.depth = _seen(self._depth, self)
        self._decoder._rounds.get = self._get  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        setattr(module, "mx", self._mx)  # noqa: B010
        self._decoder.depth = self._depth
        del self._decoder._rounds.get

    def figures(self) -> dict[str, float]:
        """Seconds by part (`replay` is contained in `python`, `busy` in `submit`), over `rounds` rounds."""
        return {**self._seconds, "rounds": self._rounds}

    def _get(self, *given: Any, **named: Any) -> tuple[Callable[..., Any], bool]:
        """`Rounds.get`, whose round is timed."""
        function, compiled = type(self._decoder._rounds).get(self._decoder._rounds, *given, **named)

        def timed(*arguments: Any) -> Any:
            begin = time.perf_counter()
            found = function(*arguments)
            if self._read is not None:
                self._seconds["replay"] += time.perf_counter() - begin
            return found

        return timed, compiled

    def has_read(self) -> None:
        """A round's result is on the host."""
        now = time.perf_counter()
        if self._sent is not None:
            self._seconds["wait"] += now - self._sent
            self._rounds += 1
        self._read = now

    def send(self, *arrays: Any) -> None:
        """`mx.async_eval`, timed."""
        begin, busy = time.perf_counter(), time.thread_time()
        self._mx.async_eval(*arrays)
        self._sent, busy = time.perf_counter(), time.thread_time() - busy
        if self._read is not None:
            self._seconds["python"] += begin - self._read
            self._seconds["submit"] += self._sent - begin
            self._seconds["busy"] += busy


class _Timed:
    """`mlx.core` with a timed `async_eval`."""

    def __init__(self, mx: Any, watch: Stopwatch) -> None:
        self._mx, self.async_eval = mx, watch.send

    def __getattr__(self, name: str) -> Any:
        return getattr(self._mx, name)


def _seen(depth: DraftLength, watch: Stopwatch) -> DraftLength:
    """`depth` with its `observe`, the first call after a result is read, announced to `watch`."""

    class Seen(DraftLength):
        def observe(self, *given: Any, **named: Any) -> None:
            watch.has_read()
            depth.observe(*given, **named)

        def choose(self, *given: Any) -> int:
            depth.fixed, depth.limit = self.fixed, self.limit
            return depth.choose(*given)

    return Seen(limit=depth.limit, fixed=depth.fixed)
