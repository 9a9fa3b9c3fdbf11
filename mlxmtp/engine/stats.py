"""Counting and timing one answer."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlxmtp.decode.decoder import Round


@dataclass(frozen=True, slots=True)
class Stats:
    """One answer in numbers. Tokens are counts, times seconds, speeds tokens per second, memory bytes.

    The first token comes from the prefill, so speeds and tokens per pass of the generation leave it out.
    `time_to_first_token` runs from the request to the first visible piece of the answer or the thought.
    `acceptance_by_position[i]` is the share of the draft tokens proposed at position i that were kept.
    """

    prompt_tokens: int = 0
    reused_tokens: int = 0
    prompt_seconds: float = 0.0
    prompt_tps: float = 0.0
    time_to_first_token: float = 0.0
    generation_tokens: int = 0
    generation_seconds: float = 0.0
    generation_tps: float = 0.0
    rounds: int = 0
    drafted: int = 0
    accepted: int = 0
    acceptance_by_position: tuple[float, ...] = ()
    tokens_per_pass: float = 0.0
    peak_memory: int = 0
    draft_reason: str = ""
    seed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The fields under their own names, ready for JSON."""
        return asdict(self)


@dataclass(slots=True)
class Meter:
    """Collects rounds while they come; `stats()` can be asked at any moment."""

    prompt_tokens: int
    seed: int
    clock: Callable[[], float] = time.perf_counter
    reused_tokens: int = 0
    _started: float = field(init=False)
    _first: float | None = field(default=None, init=False)
    _shown: float | None = field(default=None, init=False)
    _last: float = field(default=0.0, init=False)
    _tokens: int = field(default=0, init=False)
    _prefilled: int = field(default=0, init=False)
    _rounds: int = field(default=0, init=False)
    _proposed: list[int] = field(default_factory=list, init=False)
    _kept: list[int] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self._started = self.clock()

    @property
    def began(self) -> bool:
        """Whether a round has been counted: the prompt is read."""
        return self._first is not None

    def add(self, round_: Round) -> None:
        """Count one round; the first one is the prefill's."""
        self._last = self.clock()
        self._tokens += len(round_.tokens)
        if self._first is None:
            self._first = self._last
            self._prefilled = len(round_.tokens)
            return
        self._rounds += 1
        missing = len(round_.draft) - len(self._proposed)
        self._proposed += [0] * missing
        self._kept += [0] * missing
        for position in range(len(round_.draft)):
            self._proposed[position] += 1
            self._kept[position] += position < round_.accepted

    def show(self) -> None:
        """Something becomes visible now."""
        if self._shown is None:
            self._shown = self.clock()

    def stats(self, *, peak_memory: int = 0, draft_reason: str = "") -> Stats:
        """Everything so far."""
        read = self.prompt_tokens - self.reused_tokens
        now = self.clock()
        prompt_seconds = (now if self._first is None else self._first) - self._started
        decoded = self._tokens - self._prefilled
        seconds = self._last - self._first if self._first is not None else 0.0
        return Stats(
            prompt_tokens=self.prompt_tokens,
            reused_tokens=self.reused_tokens,
            prompt_seconds=prompt_seconds,
            prompt_tps=_ratio(read, prompt_seconds),
            time_to_first_token=(now if self._shown is None else self._shown) - self._started,
            generation_tokens=self._tokens,
            generation_seconds=seconds,
            generation_tps=_ratio(decoded, seconds),
            rounds=self._rounds,
            drafted=sum(self._proposed),
            accepted=sum(self._kept),
            acceptance_by_position=tuple(_ratio(kept, of) for kept, of in zip(self._kept, self._proposed, strict=True)),
            tokens_per_pass=_ratio(decoded, self._rounds),
            peak_memory=peak_memory,
            draft_reason=draft_reason,
            seed=self.seed,
        )


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0
