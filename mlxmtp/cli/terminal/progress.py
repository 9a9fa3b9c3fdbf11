"""Progress of a download, a conversion, a prompt or a benchmark: share, speed and time left."""

import time
from collections import deque
from collections.abc import Callable

from mlxmtp.cli.terminal.output import Output
from mlxmtp.units import format_bytes, format_duration

_EVERY = 0.1  # seconds between two looks of the line on a terminal
_EVERY_LOGGED = 30.0  # and elsewhere, where each look is a line that stays
_WINDOW = 10.0  # seconds over which speed is measured
_SOON = 0.5  # seconds after which somebody who waits hears what for


def _show(out: Output, text: str) -> None:
    if out.error_terminal:
        out.progress(text)
    elif not out.look.quiet:
        out.line(text)


class DownloadProgress:
    """Counts bytes; on a terminal a line that changes, elsewhere a line now and then. `doing` stands before it."""

    def __init__(
        self, out: Output, total: int, clock: Callable[[], float] = time.monotonic, *, doing: str | None = None
    ) -> None:
        self._out, self._total, self._clock, self._doing = out, total, clock, doing
        self._have = 0
        self._arrived: deque[tuple[float, int]] = deque()
        self._shown_at = clock()

    def count(self, size: int, over_network: bool) -> None:
        """Add `size` bytes that are here and right; only those over the network count as speed."""
        now = self._clock()
        self._have = max(0, self._have + size)
        if over_network:
            self._arrived.append((now, size))
            while now - self._arrived[0][0] > _WINDOW:
                self._arrived.popleft()
        if now - self._shown_at >= (_EVERY if self._out.error_terminal else _EVERY_LOGGED):
            self._shown_at = now
            _show(self._out, self.text())

    def waiting(self, reason: str, seconds: float) -> None:
        _show(self._out, f"{reason}; trying again" + (f" in {seconds:.0f} s" if seconds >= 1 else ""))

    def text(self) -> str:
        """`1.2 GB of 3.6 GB, 34 %, 52 MB/s, 0:46 left`."""
        parts = [self.share()] if self._doing is None else [f"{self._doing} {self.share()}"]
        spent = self._clock() - self._arrived[0][0] if len(self._arrived) > 1 else 0.0
        speed = sum(size for _, size in self._arrived) / spent if spent > 0 else 0.0
        if speed:
            parts += [f"{format_bytes(int(speed))}/s", f"{format_duration((self._total - self._have) / speed)} left"]
        elif not self._arrived:
            parts.append("checking what is here")
        return ", ".join(parts)

    def share(self) -> str:
        """`1.2 GB of 3.6 GB, 34 %`."""
        share = 100 * self._have // self._total if self._total else 100
        return f"{format_bytes(self._have)} of {format_bytes(self._total)}, {share} %"


class PrefillProgress:
    """Shows how much of a prompt has been read; a line on a terminal, gone when everything has been read."""

    def __init__(self, out: Output, clock: Callable[[], float] = time.monotonic) -> None:
        self._out, self._clock = out, clock
        self._before = 0.0, 0  # when the last report came, and what it said
        self._pace: _Pace | None = None  # what was reused is no speed: the first report only starts the clock

    def count(self, done: int, total: int) -> None:
        """Show that `done` of `total` tokens have been read; 0 of 0: nothing is known of it."""
        if not total:
            return
        if done >= total:
            self._pace = None
            self._out.clear_progress()
            return
        now, (then, before) = self._clock(), self._before
        if self._pace is None or done < before:
            self._pace, self._before = _Pace(total), (now, done)
            return
        if done > before:
            self._pace.observe(before, done, now - then)
            self._before = now, done
        elif now - then < _SOON:  # another layer of the same chunk; most prompts have been read by then
            return
        text = f"reading the prompt, {done:,} of {total:,} tokens"
        if self._pace.tokens and self._pace.seconds > 0:
            speed = self._pace.tokens / self._pace.seconds
            text += f", {speed:,.0f} tok/s, {format_duration(self._pace.left(done))} left"
        self._out.progress(text)


class _Pace:
    """Seconds for a token of a prompt, a + b position by least squares: every token attends to all before it.

    Half of b is believed after a tenth of ``total`` tokens, nine tenths after a third.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self.tokens, self.seconds = 0, 0.0
        self._x = self._xx = self._xy = 0.0  # sums over tokens, of positions and seconds

    def observe(self, begin: int, end: int, seconds: float) -> None:
        """Learn that the tokens ``begin .. end - 1`` took ``seconds``."""
        n, x = end - begin, (begin + end) / 2
        self.tokens += n
        self._x += n * x
        self.seconds += seconds
        self._xx += n * x * x
        self._xy += seconds * x

    def left(self, done: int) -> float:
        """Return seconds for the tokens from ``done`` on."""
        x, y = self._x / self.tokens, self.seconds / self.tokens
        spread, doubt = self._xx / self.tokens - x * x, (0.03 * self._total) ** 2
        slope = max(0.0, (self._xy / self.tokens - x * y) / (spread + doubt))
        return (self._total - done) * (y + slope * ((done + self._total) / 2 - x))


class RunProgress:
    """Counts the measured runs of a benchmark; a line that changes on a terminal, one line now and then elsewhere."""

    def __init__(self, out: Output, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._out, self._total, self._clock = out, total, clock
        self._shown_at = clock()

    def starting(self, before: int) -> Callable[[str, int], None]:
        """Return what the next model reports to, `before` runs having been done by others."""
        begun: float | None = None

        def say(what: str, done: int) -> None:
            nonlocal begun
            now = self._clock()
            if done and begun is None:
                begun = now  # the first run is over: from here on there is a pace
            left = ""
            if begun is not None and done > 1:
                seconds = (now - begun) / (done - 1) * (self._total - before - done)
                left = f", {format_duration(seconds)} left"
            if self._out.error_terminal or now - self._shown_at >= _EVERY_LOGGED:
                self._shown_at = now
                _show(self._out, f"run {before + done} of {self._total}{left}: {what}")

        return say
