"""The length of the pieces in which a prompt is read between two rounds of others."""

from dataclasses import dataclass

_PIECE = 1.25  # rounds that a piece of a prompt may take between two rounds
_SHORTEST, _FIRST, _LONGEST = 4, 32, 512  # rows of such a piece
_FORGETS = 0.3  # weight of the last measurement


@dataclass(slots=True)
class Pace:
    """Rows of a prompt to read between two rounds: those that take the time of _PIECE rounds, as of late.

    Rows are nearly free where reading the weights costs most, and each has its price where computing does. So no price
    of a row is assumed: a piece that was cheap is followed by a longer one, up to twice.
    """

    rows: int = _FIRST
    _fitting: float = _FIRST

    def observe(self, seconds: float, rows: int, rounds: float) -> None:
        """Take in that reading so many rows and rounds that take ``rounds`` seconds (0: not known yet) took so long."""
        if rounds and rows >= self.rows:  # not the rest of a prompt
            fitting = rows * _PIECE * rounds / max(seconds - rounds, 1e-6)
            fitting = min(max(fitting, 0.5 * self.rows), 2.0 * self.rows)
            self._fitting += (min(max(fitting, _SHORTEST), _LONGEST) - self._fitting) * _FORGETS
            self.rows = round(self._fitting / _SHORTEST) * _SHORTEST  # rounded down, it would stay where it is
