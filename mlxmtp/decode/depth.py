"""How many tokens to draft: the length that earns the most tokens per second, here and now.

With a_i the probability that draft token i is accepted when those before it were, and t(K) the time of a round,

    tokens(K) = 1 + a_1 + a_1 a_2 + ... + a_1 ... a_K          speed(K) = tokens(K) / t(K)

and the best K maximizes speed(K). Both are moving averages. K = 0 is always a candidate, so drafting stops where it
loses; parked there, single probes with a growing gap look whether the text has become easier.

Only a few lengths are candidates, because each is traced once per buffer capacity and its kernels are built once per
machine, and neighbours differ by a percent or two.
"""

from dataclasses import dataclass, field

MAX_DRAFT = 8
LENGTHS = (0, 1, 2, 3, 5, 7)
"""What `choose` chooses from: 1 to 8 rows to check; 8 is the most that Metal's attention kernel for few rows takes."""
_ACCEPTANCE_RATE = 0.12  # weight of one observation: half of the memory is about six observations old
_TIME_RATE = 0.2
_WORTHWHILE = 0.02  # a gain over plain decoding smaller than this is noise
_PRIOR_ACCEPTANCE = 0.7
_PRIOR_COST = 0.25  # time of one more draft token in units of a plain round, before anything is measured
_SURELY_LESS = 0.5  # more than this, in units of a plain round, one draft token costs nowhere
_ROUNDS_TO_KNOW = 12  # before that, averages are mostly the luck of the first rounds
_PROBE_GAP = (12, 96)  # plain rounds between two probes, first and most


@dataclass(slots=True)
class Depth:
    """Chooses the draft length of each round and learns from its result.

    ``fixed`` is a length the user asked for (None: adapt). ``limit`` is 0 without a drafter.
    """

    limit: int = MAX_DRAFT
    fixed: int | None = None
    acceptance: list[float] = field(default_factory=list)
    """a_i by position, as far as observed."""
    seconds: dict[int, float] = field(default_factory=dict)
    """Time of a round by draft length, as far as measured."""
    _gap: int = _PROBE_GAP[0]
    _since_probe: int = 0
    _rounds: int = 0

    def choose(self) -> int:
        """The draft length of the next round."""
        if self.fixed is not None:
            return min(self.fixed, self.limit)
        if self.limit == 0:
            return 0
        best = self.best()
        if self.seconds and 0 not in self.seconds and self.tokens(best) < 1 + _SURELY_LESS * best:
            return 0  # plain has to be measured, unless so much is accepted that it cannot be faster
        if best == 0 and self._since_probe >= self._gap:
            return 1
        return best

    def best(self) -> int:
        """The length with the highest expected speed among those measured and the one after them."""
        tried = max(self.seconds, default=1)
        after = next((k for k in LENGTHS if k > tried), tried)
        best = max((k for k in LENGTHS if k <= min(after, self.limit)), key=self.speed)
        return best if self.speed(best) > (1 + _WORTHWHILE) * self.speed(0) else 0

    def speed(self, k: int) -> float:
        """Expected tokens per second with ``k`` draft tokens."""
        return self.tokens(k) / self.time(k)

    def tokens(self, k: int) -> float:
        """Expected tokens kept per round with ``k`` draft tokens."""
        total = product = 1.0
        for i in range(k):
            product *= self._accept(i)
            total += product
        return total

    def time(self, k: int) -> float:
        """Seconds of a round with ``k`` draft tokens: measured, else along the line through the two nearest lengths.

        Never less than a plain round: more work does not take less time, but a noisy clock says so.
        """
        return max(self._line(k), self.seconds.get(0, 0.0))

    def _line(self, k: int) -> float:
        known = self.seconds
        if k in known:
            return known[k]
        if len(known) < 2 or k < min(known):  # by the usual cost of a draft token
            base, second = min(known.items(), default=(0, 1.0))
            return second * (1 + _PRIOR_COST * k) / (1 + _PRIOR_COST * base)
        near, far = sorted(known, key=lambda j: abs(j - k))[:2]
        slope = max((known[far] - known[near]) / (far - near), 0.0)
        return known[near] + slope * (k - near)

    def observe(self, k: int, accepted: int, seconds: float | None) -> None:
        """Takes in a round: ``k`` drafted, ``accepted`` of them kept; ``seconds`` None if its time means nothing."""
        self._rounds += 1
        for i in range(min(accepted + 1, k)):
            hit = float(i < accepted)
            if i == len(self.acceptance):
                self.acceptance.append(self._accept(i))
            self.acceptance[i] += _ACCEPTANCE_RATE * (hit - self.acceptance[i])
        if seconds is not None:
            old = self.seconds.get(k, seconds)
            self.seconds[k] = old + _TIME_RATE * (min(seconds, 2 * old) - old)  # a pause of the machine is not a trend
        self._count_probe(k, accepted)

    def gain(self) -> float | None:
        """Expected speed of the best length above 0 in units of the plain speed; None until that is known."""
        drafted = [k for k in self.seconds if k]
        if 0 not in self.seconds or not drafted or self._rounds < _ROUNDS_TO_KNOW:
            return None
        return max(self.speed(k) for k in drafted) / self.speed(0)

    def forget_times(self) -> None:
        """To be called when the cost of a round changes at once, as when its compiled form takes over."""
        self.seconds.clear()

    def _accept(self, i: int) -> float:
        if i < len(self.acceptance):
            return self.acceptance[i]
        return self.acceptance[-1] if self.acceptance else _PRIOR_ACCEPTANCE

    def _count_probe(self, k: int, accepted: int) -> None:
        if k == 0:
            self._since_probe += 1
        elif accepted:  # it begins to pay: look again at once
            self._gap, self._since_probe = _PROBE_GAP[0], _PROBE_GAP[0]
        else:
            self._gap, self._since_probe = min(2 * self._gap, _PROBE_GAP[1]), 0
