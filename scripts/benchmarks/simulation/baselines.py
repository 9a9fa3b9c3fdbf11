"""Other ways of choosing draft lengths, to be compared with."""

from __future__ import annotations

from dataclasses import dataclass, field

LENGTHS = (0, 1, 2, 3, 5, 7)
LONGEST = 8


@dataclass(slots=True)
class SixtyFive:
    """As mlx-vlm is described: one more draft while more than 65 % are accepted, one less otherwise, never none."""

    length: int = 3
    _share: float = 0.65

    def choose(self, *_: object) -> int:
        return self.length

    def observe(self, k: int, accepted: int, seconds: float | None) -> None:
        self._share += 0.2 * (accepted / k - self._share)
        self.length = min(max(self.length + (1 if self._share > 0.65 else -1), 1), LONGEST)


@dataclass(slots=True)
class MovingAverages:
    """What mlxmtp did before: a moving average for each position and each length, probes after 12 to 96 rounds."""

    acceptance: list[float] = field(default_factory=list)
    seconds: dict[int, float] = field(default_factory=dict)
    _gap: int = 12
    _since: int = 0

    def choose(self, *_: object) -> int:
        best = self._best()
        if self.seconds and 0 not in self.seconds and self._tokens(best) < 1 + 0.5 * best:
            return 0
        return 1 if best == 0 and self._since >= self._gap else best

    def observe(self, k: int, accepted: int, seconds: float | None) -> None:
        for i in range(min(accepted + 1, k)):
            if i == len(self.acceptance):
                self.acceptance.append(self._accept(i))
            self.acceptance[i] += 0.12 * ((i < accepted) - self.acceptance[i])
        if seconds is not None:
            old = self.seconds.get(k, seconds)
            self.seconds[k] = old + 0.2 * (min(seconds, 2 * old) - old)
        if k == 0:
            self._since += 1
        elif accepted:
            self._gap, self._since = 12, 12
        else:
            self._gap, self._since = min(2 * self._gap, 96), 0

    def _best(self) -> int:
        tried = max(self.seconds, default=1)
        after = next((k for k in LENGTHS if k > tried), tried)
        best = max((k for k in LENGTHS if k <= after), key=self._speed)
        return best if self._speed(best) > 1.02 * self._speed(0) else 0

    def _speed(self, k: int) -> float:
        return self._tokens(k) / max(self._line(k), self.seconds.get(0, 0.0))

    def _tokens(self, k: int) -> float:
        total = product = 1.0
        for i in range(k):
            product *= self._accept(i)
            total += product
        return total

    def _line(self, k: int) -> float:
        known = self.seconds
        if k in known:
            return known[k]
        if len(known) < 2 or k < min(known):
            base, second = min(known.items(), default=(0, 1.0))
            return second * (1 + 0.25 * k) / (1 + 0.25 * base)
        near, far = sorted(known, key=lambda j: abs(j - k))[:2]
        return known[near] + max((known[far] - known[near]) / (far - near), 0.0) * (k - near)

    def _accept(self, i: int) -> float:
        if i < len(self.acceptance):
            return self.acceptance[i]
        return self.acceptance[-1] if self.acceptance else 0.7
