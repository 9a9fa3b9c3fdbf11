"""A circuit breaker for one endpoint: after failures it is left alone for a while, then tried with a single request."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from threading import Lock
from typing import Literal

FAILURES, WITHIN = 3, 60.0
"""So many failures in so many seconds open the circuit."""
_REST, _LONGEST_REST = 30.0, 600.0  # seconds; doubled by every trial that fails

State = Literal["closed", "open", "trying"]


class Breaker:
    """Counts what happens to requests: `begin` before one, then `succeed` at its first token or `fail`, at any time.

    closed   requests go through; FAILURES within WITHIN seconds open it
    open     none goes through until the rest is over, or until the time that the server named has come
    trying   one request goes through: its first token closes the circuit, its failure opens it for twice as long
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, Lock()
        self._failures: deque[float] = deque()  # when they happened, none longer ago than WITHIN
        self._rest = _REST
        self._until: float | None = None  # None: closed
        self._trial_since: float | None = None

    @property
    def seconds_left(self) -> float:
        """Seconds until a request may go through; 0 unless the circuit is open."""
        with self._lock:
            return max(0.0, (self._until or 0.0) - self._clock()) if self._state == "open" else 0.0

    def begin(self) -> bool:
        """Return whether a request may go through; of those after a rest only the first may."""
        with self._lock:
            state = self._state
            if state == "trying":
                if self._trial_since is not None and self._clock() - self._trial_since < _LONGEST_REST:
                    return False  # a trial that never ended is forgotten after a while
                self._trial_since = self._clock()
            return state != "open"

    def succeed(self) -> None:
        """Note the first token of an answer, which closes the circuit."""
        with self._lock:
            if self._trial_since is not None or self._until is None:
                self._rest, self._until, self._trial_since = _REST, None, None
                self._failures.clear()

    def fail(self, retry_after: float | None = None) -> None:
        """Note a failure; `retry_after`: seconds for which the server asks to be left alone, which count at once."""
        with self._lock:
            now, asked = self._clock(), min(retry_after or 0.0, _LONGEST_REST)
            self._failures.append(now)
            while now - self._failures[0] > WITHIN:
                self._failures.popleft()
            if self._trial_since is not None:
                self._rest = min(2 * self._rest, _LONGEST_REST)
                self._open(now + max(self._rest, asked))
            elif asked:
                self._open(max(self._until or 0.0, now + asked))
            elif len(self._failures) >= FAILURES and self._until is None:
                self._open(now + self._rest)

    def give_up(self) -> None:
        """Note that a request ended without telling anything, by Ctrl-C or for a fault of its own: a trial is free."""
        with self._lock:
            self._trial_since = None

    def _open(self, until: float) -> None:
        self._until, self._trial_since = until, None
        self._failures.clear()

    @property
    def _state(self) -> State:
        if self._until is None:
            return "closed"
        return "open" if self._clock() < self._until else "trying"
