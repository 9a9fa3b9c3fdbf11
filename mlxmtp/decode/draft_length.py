"""The draft length that earns the most tokens per second, here and now."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mlxmtp.decode.acceptance import Acceptance, Kind
from mlxmtp.decode.copying import Copying
from mlxmtp.decode.round_times import TOKEN, RoundTimes
from mlxmtp.limits import COPIED, MAX_DRAFT

LENGTHS = (0, 1, 2, 3, 4, 5, 7, 8)
"""Candidates, few because the check of each is traced once per buffer capacity. On Metal the products for few rows read
the weights once for up to 5 rows (4 drafts), and attention for few rows ends at 8 (7 drafts; read in MLX's source); 8
drafts earn several percent more where rows are nearly free and all is accepted."""
PROBING = 0.01  # share of the plain rounds' time that probes may lose while drafting is parked
WORTHWHILE = 0.02  # a gain over plain decoding smaller than this is noise
GAP = 0.2  # share of a round's time that others may have: beyond, it is no measure of the round
_DARING = 0.8  # widths of an uncertain time that are hoped for
_SURELY = 2.0  # the same for plain rounds that were never timed: drafting blindly has to pay beyond doubt
_MOST = 5.0  # logarithm of a cost that can be true
_KNOWN = 0.15  # a narrower logarithm of a cost can be talked about
_ROUNDS_TO_KNOW = 12  # before that, what was seen is mostly the luck of the first rounds
GIVEN = (1, 3, MAX_DRAFT, COPIED)
"""Lengths of drafts that are given, copied or forced, unless traced: few for the same reason."""
_CHECKING = 0.5  # share of what drafts cost that is left where they are given, before it was timed
_PRICE, _DEAREST = 1.5, 20.0  # of a trace, in plain rounds, and the most that can be true
_SHORT = 96  # tokens of an answer before any length may be worth its trace
_EASIER = 2  # kinds of text whose best lengths are traced before: of the others none may be drafted
_EARLY = 7  # drafts at most then: rarely wrong, within 3 % of the best of 0, 3 and 8 on all first answers recorded
_FEW = 3  # lengths that may all be traced
_TO_COME = 48  # tokens of an answer, at least, as long as there is room for them
_ENDLESS = 1_000_000

Costs = Mapping[int, tuple[float, float]]
"""By draft length: logarithm of the time of a round in plain rounds, and the width of that."""


@dataclass(slots=True)
class DraftLength:
    """Chooses the draft length of each round and learns from its result.

    tokens(K) = 1 + a_1 + a_1 a_2 + ... + a_1 ... a_K     speed(K) = tokens(K) / t(K)     the best K, 0 included, wins

    with a_i the probability that draft i is accepted after those before it (``acceptance.py``), t(K) the time of a
    round (``round_times.py``). Three things are not known by themselves:

    * a length whose time is uncertain is judged by the time it may well have, exp(x(K) - width): tried while that could
      win, left alone as soon as it cannot. Plain decoding is measured by the same rule;
    * parked at 0 nothing is learned about the text. Each plain round puts PROBING of itself aside, and a probe with one
      draft is made when that pays for what it is expected to lose, again at once if it was accepted;
    * a length is traced before it runs, at a price. So what counts is the time of the tokens to come, R / speed(K) +
      price of K. R is as many as there have been, as far as there is room. Early in an answer only lengths are traced
      that are the best for the easier kinds of text, or longer ones that are for all, once kinds have been learned;
    * a text may be of several kinds, and a round with drafts tells of which. So the time is the mean over the kinds,
      and the first length of all is chosen as if another could follow, at its price, where that is better for the kind.

    ``fixed`` is a length the user asked for (None: adapt). ``limit`` is 0 without a drafter. ``lengths`` are all
    candidates, ``token`` is what a draft token costs in plain rounds, as far as one can guess, ``worthwhile`` the least
    gain over plain decoding that is one.
    """

    limit: int = MAX_DRAFT
    fixed: int | None = None
    copying: Copying | None = None
    lengths: Sequence[int] = LENGTHS
    token: float = TOKEN
    worthwhile: float = WORTHWHILE
    _accepted: Acceptance = field(default_factory=lambda: Acceptance(MAX_DRAFT))
    _times: RoundTimes = field(init=False)
    _tried: int = 1
    _probe: int = 1
    _price: float = _PRICE
    _checking: float = _CHECKING
    _said: int = 0  # tokens of this answer
    _saved: float = 0.0  # plain rounds put aside for probes
    _rounds: int = 0
    _rows: int = 0  # that rounds attend to, as far as known
    _costs_by_class: dict[int, Costs] = field(default_factory=dict)  # of rows attended to, when last seen

    def __post_init__(self) -> None:
        self._times = RoundTimes(self.lengths, self.token)

    def configure(self, fixed: int | None, limit: int, copying: Copying | None) -> None:
        """Take in what the next rounds may draft."""
        self.fixed, self.limit, self.copying = fixed, limit, copying

    def choose(self, room: int = _ENDLESS, traced: Collection[int] | None = None) -> int:
        """The draft length of the next round of an answer with ``room`` for so many tokens; ``traced`` are free (None:
        all).

        COPIED where what can be copied promises more than any drafts.
        """
        if self.fixed is not None:
            return min(self.fixed, self.limit)
        if self.limit == 0 and self.copying is None:
            return 0
        left = min(room, max(self._said, _TO_COME))
        traced = (*self.lengths, COPIED) if traced is None else traced
        times = self._times_to_come(left, traced)
        best = self._least(times)
        if self.copying is not None and (tokens := self.copying.tokens()):
            cost = self._given_cost(COPIED)
            price = self._price if traced and COPIED not in traced else 0.0
            if (1 + WORTHWHILE) * (left * cost / min(tokens, left) + price) < times[best]:
                return COPIED
        self._probe = min((k for k in self.lengths[1:] if k in traced), default=1)
        price = self._price if traced and self._probe not in traced else 0.0
        if best == 0 and self.limit and self._saved >= self._stake() + price:
            self._saved = 0.0
            return self._probe
        return best

    def _times_to_come(self, left: int, traced: Collection[int]) -> dict[int, float]:
        """Return the time of ``left`` tokens, in plain rounds, by the length of the next round."""
        lengths = [k for k in self.lengths if k <= self.limit]
        costs, kinds = {k: self._times.cost(k) for k in lengths}, self._accepted.by_kind(self.limit)
        if self._accepted.known and self._said < _SHORT and len(self.lengths) > _FEW:
            early = [k for k in lengths if k <= _EARLY]
            suit = {max(early, key=lambda k: of_kind[k] / costs[k]) for _, of_kind in kinds[-_EASIER:]}
            mean = self._accepted.tokens(self.limit)
            if (middle := max(early, key=lambda k: mean[k] / costs[k])) > max(traced, default=0):
                suit.add(middle)  # and it tells more of the kind than those traced
            lengths = [k for k in lengths if k in suit or k in traced or k == 0]
        tokens = self._accepted.tokens(self.limit)
        hopes = self._hopes({k: tokens[k] / costs[k] for k in lengths}, traced)
        prices = {k: 0.0 if k in traced else self._price for k in lengths}
        times = dict.fromkeys(lengths, 0.0)
        for odds, of_kind in kinds:
            for k in lengths:
                time = left * costs[k] / min(of_kind[k], left)
                if k and not traced:  # of plain rounds nothing is learned
                    rest = left - min(of_kind[k], left)
                    others = (rest * costs[j] / of_kind[j] + prices[j] * (j != k) for j in lengths)
                    time = min(time, costs[k] + min(others))
                times[k] += odds * time
        # The first length of all is traced in any case.
        return {k: time * hopes.get(k, 1.0) + (prices[k] if traced else 0.0) for k, time in times.items()}

    def beside_forced(
        self, forced: list[int], k: int, room: int, most: int, traced: Collection[int], checked: Collection[int]
    ) -> tuple[int, list[int]]:
        """Return the draft length of a round that begins with ``forced`` tokens, and its first drafts, or all of them:
        these tokens, filled up or cut.

        ``k`` would be the length without them, ``most`` may be drafted. Those ``traced`` are free, without the drafter
        all that are ``checked``.
        """
        left = min(room, max(self._said, _TO_COME))
        tokens, times = self._accepted.tokens(), {(0, False): float(left)}
        for length in {one for one in (*GIVEN, *checked) if 0 < one <= most}:
            cost = self._given_cost(length)
            price = self._price if checked and length not in checked else 0.0
            times[length, False] = left * cost / min(min(length, len(forced)) + 1, left) + price
        for length in {k} if self.fixed is not None or not traced else set(self.lengths).intersection(traced):
            if len(forced) < length <= min(self.limit, most):
                gained = len(forced) + tokens[length - len(forced)]
                times[length, True] = left * self._drafted_cost(length) / min(gained, left)
        length, drafting = min(times, key=times.__getitem__)
        return length, forced if drafting else (forced + forced[-1:] * length)[:length]

    def among(self, traced: Collection[int]) -> int:
        """The best of the lengths that are ``traced``, for a round beside which another is traced."""
        speeds = self._speeds()
        return max((k for k in traced if k in speeds), key=speeds.__getitem__, default=min(traced))

    def likely(self) -> tuple[int, ...]:
        """Lengths of which one is probably the next."""
        if self.fixed is not None or not self.limit:
            return (min(self.fixed or 0, self.limit),)
        return (MAX_DRAFT, 0)

    def best(self) -> int:
        """The length with the highest expected speed; 0 unless another is worth the change."""
        return self._least({k: 1 / speed for k, speed in self._speeds().items()})

    def observe(
        self,
        k: int,
        accepted: int,
        seconds: float | None,
        followed: Sequence[int] = (),
        *,
        timed: bool = True,
        traced: int | None = None,
        given: int = 0,
        copied: bool = False,
        outside: float = 0.0,
    ) -> None:
        """Take in a round: ``k`` drafted, ``accepted`` of them accepted; ``seconds`` that say what others will take if
        it is ``timed``, or what a trace costs if a length was ``traced`` in it. ``given``: first drafts that were not
        the drafter's; ``copied``: they were copies; ``outside``: so much of the time others had, and a round was in
        flight: beyond GAP of it, it says nothing.

        ``followed``: the tokens it gave, by which copies are judged even where none was made.
        """
        if seconds is not None and outside > GAP * seconds:
            seconds = None
        if traced not in (None, k) and seconds is not None:  # the first of all is traced before it runs: no choice
            self._pay(k, seconds)
        seconds = seconds if timed else None
        if self.copying is not None:
            self.copying.judge(followed, copied=copied)
        self._rounds += 1
        self._said += accepted + 1
        if given and given == k:
            self._check(k, seconds)
            return
        self._tried = max(self._tried, k)
        if accepted >= given:
            self._accepted.observe(k - given, accepted - given)
        if seconds is not None and k in self.lengths:
            self._times.observe(k, seconds)
        if k == 0 and self.fixed is None:
            self._saved += PROBING
        elif accepted > given:  # it begins to pay: look again at once
            self._saved = self._stake()

    def _check(self, k: int, seconds: float | None) -> None:
        """Take in the time of a round whose ``k`` drafts were given."""
        plain, drafted = self._times.plain(), self._drafted_cost(k)
        if seconds is not None and plain is not None and drafted > 1:
            share = (seconds / plain - 1) / (drafted - 1)
            self._checking += 0.3 * (min(max(share, 0.0), 2 * self._checking + 0.1) - self._checking)

    def _pay(self, k: int, seconds: float) -> None:
        """Take in how long a round with ``k`` drafts took beside which another length was traced."""
        plain = self._times.plain()
        if plain is not None:
            price = seconds / plain - self._drafted_cost(k)
            self._price += 0.5 * (min(max(price, 0.0), _DEAREST) - self._price)

    def _drafted_cost(self, k: int) -> float:
        """Time of a round with ``k`` drafts in plain rounds, also of lengths that are no candidates."""
        return (
            self._times.cost(k)
            if k in self.lengths
            else 1 + (self._times.cost(self.lengths[-1]) - 1) * k / self.lengths[-1]
        )

    def _given_cost(self, k: int) -> float:
        """Time of a round whose ``k`` drafts are given, in plain rounds."""
        return 1 + self._checking * (self._drafted_cost(k) - 1)

    def gain(self) -> float | None:
        """Expected speed of the best length above 0 in units of the plain speed; None until that is known."""
        if self._rounds < _ROUNDS_TO_KNOW:
            return None
        return max((speed for k, speed in self._speeds().items() if self._knows(k)), default=None)

    def accepted(self) -> float | None:
        """Expected share of first draft tokens that are accepted; None before anything was drafted."""
        return self._accepted.tokens(1)[1] - 1 if self._accepted.knows() else None

    def acceptance(self) -> list[Kind]:
        """Kinds of texts so far, by the share of drafts accepted."""
        return self._accepted.learned()

    def price(self) -> float | None:
        """Time of one more draft token in units of a plain round; None until that is known."""
        longest = max(filter(self._knows, self.lengths), default=None)
        return None if longest is None else (self._times.cost(longest) - 1) / longest

    def learned(self) -> dict[str, Any]:
        """Return what another process can begin with, as JSON takes it: kinds of texts (how many, shares accepted by
        position); costs (logarithm of the time in plain rounds and its width) by length, the price of a trace, rows
        attended to; the same costs elsewhere, by class of rows. Empty until there is something to know."""
        if not self._accepted.knows() or not any(self._times.measured):
            return {}
        costs = _written(self._costs())
        by_class = dict(self._costs_by_class)  # asked from another thread, too
        elsewhere = {str(at): _written(of) for at, of in by_class.items() if at != _class(self._rows)}
        kinds = [[kind.texts, list(kind.shares)] for kind in self.acceptance()]
        return {"kinds": kinds, "costs": costs, "price": self._price, "rows": self._rows, "elsewhere": elsewhere}

    def expect(self, costs: Mapping[int, float]) -> None:
        """Take these for the times of rounds by length, in plain rounds, as long as nothing is learned or measured."""
        self._times.expect(costs)

    def start_from(self, learned: Mapping[str, Any]) -> None:
        """Begin with what `learned` gave. Raises ValueError for anything else; nothing is changed then."""
        try:
            kinds = [Kind(float(texts), tuple(map(float, shares))) for texts, shares in learned["kinds"]]
            costs = _read(learned["costs"])
            elsewhere = {int(at): _read(of) for at, of in learned.get("elsewhere", {}).items()}
            price, rows = float(learned["price"]), int(learned["rows"])
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise ValueError(f"this is not what a controller has learned: {error}") from error
        fits = bool(kinds) and all(kind.fits(MAX_DRAFT) for kind in kinds) and 0 <= price <= _DEAREST and rows >= 0
        pairs = [pair for of in (costs, *elsewhere.values()) for pair in of.values()]
        if not fits or not all(0 <= mean < _MOST and 0 <= width < _MOST for mean, width in pairs):
            raise ValueError("what was learned lies out of range")
        self._accepted.start_from(kinds)
        self._times.start_from(costs)
        self._price = price
        self._tried = max([self._tried, *(k for k in costs if k <= MAX_DRAFT)])
        self._rows, self._costs_by_class = rows, elsewhere | {_class(rows): costs}

    def begin(self, prompt: Sequence[int] = ()) -> None:
        """Begin an answer: how easy the one before was says only so much about it."""
        self._accepted.begin()
        self._said = 0
        if self.copying is not None:
            self.copying.begin(prompt)

    def follow(self, text: Sequence[int]) -> None:
        """Look for what may be copied after ``text``."""
        if self.copying is not None:
            self.copying.find(text)

    def attend_to(self, rows: int) -> None:
        """Take in the number of rows that the next round attends to: costs and proportions change with it.

        Rows of another class were perhaps attended to before: what drafts cost then is taken in.
        """
        if self._rows and rows != self._rows:
            before, now = _class(self._rows), _class(rows)
            if now != before and self._times.measured:
                self._costs_by_class[before] = self._costs()
            self._times.stretch(rows / self._rows)
            if now != before:
                self._times.start_from(self._costs_by_class.get(now, {}))
        self._rows = rows

    def forget_times(self) -> None:
        """Begin with other round times, as when the compiled form takes over."""
        self._times.become_others()

    def _costs(self) -> Costs:
        """Return what drafts cost here, as far as they were tried."""
        return {k: pair for k, pair in self._times.learned().items() if k <= self._tried}

    def _knows(self, k: int) -> bool:
        """Return True if the cost of ``k`` drafts in plain rounds is known, from here or an earlier start."""
        return 0 < k <= self._tried and self._times.width(k, 0) < _KNOWN

    def _speeds(self) -> dict[int, float]:
        """Expected tokens in the time of a plain round, by length."""
        tokens = self._accepted.tokens(self.limit)
        return {k: tokens[k] / self._times.cost(k) for k in self.lengths if k <= self.limit}

    def _hopes(self, speeds: dict[int, float], traced: Collection[int]) -> dict[int, float]:
        """Return how short each time may turn out, as a share of what is expected, beside the best length measured.
        A length that is not traced is tried only if what is known speaks for it."""
        base = max((k for k in speeds if k in self._times.measured), key=speeds.__getitem__, default=None)
        if base is None:
            return {}
        widths = {k: _DARING * self._times.width(k, base) for k in speeds if k in traced}
        if 0 in widths and 0 not in self._times.measured:
            widths[0] = _SURELY * self._times.width(0, base)
        return {k: math.exp(-width) for k, width in widths.items()}

    def _stake(self) -> float:
        """Return the expected loss of a probe, in plain rounds."""
        return max(self._times.cost(self._probe) - self._accepted.tokens(self._probe)[self._probe], self.worthwhile)

    def _least(self, times: dict[int, float]) -> int:
        """The length with the least time; 0 unless it is beaten clearly."""
        best = min(times, key=times.__getitem__)
        return best if (1 + self.worthwhile) * times[best] < times[0] else 0


def _class(rows: int) -> int:
    """Return the class of rows attended to in which drafts cost about the same: 512 to 2,047, 2,048 to 8,191, ..."""
    return rows.bit_length() // 2


def _written(costs: Costs) -> dict[str, list[float]]:
    """Return costs as JSON takes them."""
    return {str(k): list(pair) for k, pair in costs.items()}


def _read(costs: Any) -> Costs:
    """Return costs from JSON. Raises what a wrong shape raises."""
    return {int(k): (float(mean), float(width)) for k, (mean, width) in costs.items()}
