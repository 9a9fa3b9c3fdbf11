"""Counting and timing one answer."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlxmtp.decode.draft_length import DraftLength
    from mlxmtp.decode.round import Round


@dataclass(frozen=True, slots=True)
class Stats:
    """One answer in numbers. Tokens are counts, times seconds, speeds tokens per second, memory bytes.

    The first token comes from the prefill, so speeds and tokens per pass of the generation leave it out.
    `time_to_first_token` runs from the request to the first visible piece of the answer or the thought.
    In `copy_rounds` drafts were copies of the text, of which `copied` tokens were accepted; `drafted`, `accepted` and
    `acceptance_by_position` count the drafter's, not what a constraint forced. `near_ties`: tokens with another one so
    near that the last bits of 16-bit numbers may decide; None where numbers are wider, or an answer shares rounds with
    others.
    `answered_by`, `route`: the model that answered, and that with the reason in words, where a router has chosen it;
    `sent_to`: the host to which the text went, empty if it stayed here.
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
    copy_rounds: int = 0
    copied: int = 0
    peak_memory: int = 0
    draft_reason: str = ""
    seed: int = 0
    near_ties: int | None = None
    answered_by: str = ""
    route: str = ""
    sent_to: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields under their own names, ready for JSON."""
        return asdict(self)


class Meter:
    """Collects rounds while they come; `stats()` can be asked at any moment."""

    def __init__(self, prompt_tokens: int, seed: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self.prompt_tokens, self.seed = prompt_tokens, seed
        self.reused_tokens = 0
        self._clock = clock
        self._started = self._last = clock()
        self._first: float | None = None  # when the prompt had been read
        self._shown: float | None = None
        self._tokens = self._prefilled = self._rounds = self._copy_rounds = self._copied = 0
        self._proposed: Counter[int] = Counter()  # draft tokens by position, and those of them that were accepted
        self._accepted: Counter[int] = Counter()

    @property
    def began(self) -> bool:
        """True once the prompt is read."""
        return self._first is not None

    def add(self, round_: Round) -> None:
        """Count one round; the first one is the prefill's."""
        self._last = self._clock()
        self._tokens += len(round_.tokens)
        if self._first is None:
            self._first = self._last
            self._prefilled = len(round_.tokens)
            return
        self._rounds += 1
        if round_.copied:
            self._copy_rounds += 1
            self._copied += round_.accepted
            return
        self._proposed.update(range(len(round_.draft) - round_.given))
        self._accepted.update(range(round_.accepted - round_.given))

    def show(self) -> None:
        """Note that something becomes visible now."""
        if self._shown is None:
            self._shown = self._clock()

    def stats(self, *, peak_memory: int = 0, draft_reason: str = "", near_ties: int | None = None) -> Stats:
        """Return the numbers so far."""
        now = self._clock()
        prompt_seconds = (now if self._first is None else self._first) - self._started
        decoded = self._tokens - self._prefilled
        seconds = self._last - self._first if self._first is not None else 0.0
        return Stats(
            prompt_tokens=self.prompt_tokens,
            reused_tokens=self.reused_tokens,
            prompt_seconds=prompt_seconds,
            prompt_tps=_ratio(self.prompt_tokens - self.reused_tokens, prompt_seconds),
            time_to_first_token=(now if self._shown is None else self._shown) - self._started,
            generation_tokens=self._tokens,
            generation_seconds=seconds,
            generation_tps=_ratio(decoded, seconds),
            rounds=self._rounds,
            drafted=self._proposed.total(),
            accepted=self._accepted.total(),
            acceptance_by_position=tuple(_ratio(self._accepted[i], n) for i, n in sorted(self._proposed.items())),
            tokens_per_pass=_ratio(decoded, self._rounds),
            copy_rounds=self._copy_rounds,
            copied=self._copied,
            peak_memory=peak_memory,
            draft_reason=draft_reason,
            seed=self.seed,
            near_ties=near_ties,
        )


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0


def explain(depth: DraftLength) -> str:
    """Return one phrase for the statistics: the draft length, what it gains, and the two numbers that decide."""
    if depth.limit == 0:
        return "no drafter" if depth.copying is None else "copies of the text alone"
    if depth.fixed is not None:
        if depth.fixed > depth.limit:
            where = "shared rounds" if depth.limit == max(depth.lengths) else "exact text"
            return f"drafting {depth.limit}, the most in {where}"
        return f"drafting {depth.fixed}, as asked" if depth.fixed else "not drafting, as asked"
    best, gain, accepted, price = depth.best(), depth.gain(), depth.accepted(), depth.price()
    if gain is None:
        said = f"drafting {best} so far"
    elif best == 0:
        said = f"drafting is off, at best it would give {gain:.2f} times the plain speed"
    else:
        said = f"drafting {best} gives {gain:.2f} times the plain speed"
    why = [] if accepted is None else [f"{100 * accepted:.0f} % of first drafts accepted"]
    if price is not None:
        why.append(f"a draft token costs {price:.2f} of a plain pass")
    return f"{said} ({', '.join(why)})" if why else said
