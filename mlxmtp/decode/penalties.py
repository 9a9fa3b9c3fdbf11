"""Logits changed by a caller's wish and by the text so far, before temperature and filters."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import mlx.core as mx

from mlxmtp.limits import PENALTIES


class Counts:
    """Counts tokens of a text, and of its answer, which begins at position ``begin``."""

    def __init__(self, begin: int) -> None:
        self.text, self.answer = Counter[int](), Counter[int]()
        self.begin = begin
        self._seen = 0

    def grow(self, text: Sequence[int]) -> None:
        """Take in what has come since the text was shorter."""
        new, self._seen = text[self._seen :], len(text)
        self.text.update(new)
        self.answer.update(new[max(0, self.begin - self._seen + len(new)) :])


@dataclass(frozen=True, slots=True)
class Penalties:
    """Say how tokens lose or gain; the defaults change nothing. Raises ValueError out of range.

    ``bias`` is added to the logit of a token. ``repetition`` divides the logits of tokens in prompt and answer if they
    are above 0, and multiplies the others (Keskar et al., "CTRL", 2019). ``presence`` is taken once from those in the
    answer, ``frequency`` for each time that they stand there (OpenAI's definition). They apply in this order. Of the
    prompt so many tokens at the end are the answer's as have ``begun`` it.
    """

    bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    presence: float = 0.0
    frequency: float = 0.0
    repetition: float = 1.0
    begun: int = 0

    def __post_init__(self) -> None:
        for name in ("presence", "frequency", "repetition"):
            value, allowed = getattr(self, name), PENALTIES[f"{name}_penalty"]
            if value not in allowed:
                raise ValueError(f"{name}_penalty must be {allowed}, not {value}")
        for value in self.bias.values():
            if value not in PENALTIES["logit_bias"]:
                raise ValueError(f"a logit_bias must be {PENALTIES['logit_bias']}, not {value}")

    def __bool__(self) -> bool:
        """Return false if nothing is changed."""
        return bool(self.bias or self.presence or self.frequency or self.repetition != 1)

    def apply(self, logits: mx.array, counts: Counts, drafts: Sequence[int] = ()) -> mx.array:
        """Return the changed ``logits`` [L, V], whose rows follow a text and each of the L - 1 ``drafts`` behind it."""
        met = {*self.bias, *(counts.answer if self.repetition == 1 else counts.text), *drafts}
        ids = sorted(token for token in met if token >= 0)  # pictures stand at negative ones
        if not ids:
            return logits
        columns = mx.array(ids, mx.int32)
        written = mx.array([*drafts], mx.int32)[:, None] == columns[None]  # [L - 1, C]
        new = mx.concatenate([mx.zeros((1, len(ids)), mx.int32), mx.cumsum(written.astype(mx.int32), axis=0)])
        values = logits[:, columns] + mx.array([self.bias.get(token, 0.0) for token in ids])
        if self.repetition != 1:
            stronger = mx.where(values > 0, values / self.repetition, values * self.repetition)
            values = mx.where(_column(counts.text, ids) + new > 0, stronger, values)
        said = _column(counts.answer, ids) + new
        values = values - self.presence * (said > 0) - self.frequency * said
        return mx.put_along_axis(logits, mx.broadcast_to(columns, values.shape), values, axis=-1)


def _column(counts: Mapping[int, int], ids: Sequence[int]) -> mx.array:
    return mx.array([counts.get(token, 0) for token in ids], mx.int32)
