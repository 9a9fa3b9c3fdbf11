"""Numbers that more than one ring must agree on. Imports no other module: settings and predictions cost no MLX."""

import sys
from dataclasses import dataclass
from typing import Literal, SupportsIndex


@dataclass(frozen=True, slots=True)
class Range:
    """Numbers from `low` to `high`, or above `low`; `str()` completes the sentence "it must be"."""

    low: float
    high: float = sys.float_info.max
    above: bool = False
    whole: bool = False
    zero_is_off: bool = False

    def __contains__(self, value: float) -> bool:
        if self.whole and not isinstance(value, SupportsIndex):
            return False
        return (self.low < value if self.above else self.low <= value) and value <= self.high

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        start = f"above {self.low} and" if self.above else f"from {self.low}{' (off)' if self.zero_is_off else ''}"
        if self.high == sys.float_info.max:
            return f"{kind} {start} up"
        return f"{kind} {start} {'up to' if self.above else 'to'} {self.high}"


SAMPLING = {
    "temp": Range(0),
    "top_p": Range(0, 1, above=True),
    "top_k": Range(0, whole=True, zero_is_off=True),
    "min_p": Range(0, 1),
    "seed": Range(0, 2**64 - 1, whole=True),
}
PENALTIES = {
    "logit_bias": Range(-100, 100),
    "presence_penalty": Range(-2, 2),
    "frequency_penalty": Range(-2, 2),
    "repetition_penalty": Range(0, above=True),
}
TOP_LOGPROBS = Range(0, 20, whole=True)
Exact = Literal["on", "off", "auto"]  # text, see `decode/exact.py`
IMAGE_TOKENS = (70, 140, 280, 560, 1120)  # budgets of a picture that Gemma 4 was trained with
TOKEN_COUNT = Range(1, whole=True)
STREAMS = Range(1, 64, whole=True)  # answers at a time
PARALLEL = 4  # of them, unless asked

MAX_DRAFT = 8  # draft tokens of a round: longer ones are slower on every machine that was measured
DRAFTS = Range(0, MAX_DRAFT, whole=True)
EXACT_DRAFT = 4  # the most in exact text: more rows are products of another kind
COPIED = 15  # tokens that a round checks when they are copied from the text: 16 rows
SLACK = 64  # ring rows beyond the window: two rounds in flight write 2 * 16, and a small rewind may take some back
STEP = 256  # rows by which a KV cache grows at least: a new capacity costs a new trace of the round
GROWTH = 0.25  # by which it grows, for few capacities (scripts/benchmarks/capacity.py),
GROWN = 4096  # but no more rows than that: they are memory that a long text does not have
SNAPSHOTS, SNAPSHOT_BYTES = 8, 768 * 2**20  # at most, all together; the newest always stays

# Parameters from which a drafter is quantized by default. Those of 12B, 26B and 31B (0.42 to 0.47 billion) keep their
# acceptance at 4 bits, and a draft step reads their head most; the small ones with a centroid head keep 16 bits.
QUANTIZED_DRAFTER_FROM = 200_000_000
