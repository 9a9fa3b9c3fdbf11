"""A pair under measurement: token ids in, what was said and when out. Knows nothing of suites, arms and reports.

What makes a measurement fair is here: every take reads its whole prompt, rounds are compiled and traced before the
first take, buffers do not grow between takes, and a fixed draft length teaches the automatic one nothing.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import mlx.core as mx

from mlxmtp.decode.decoder import Decoder
from mlxmtp.decode.draft_length import LENGTHS, DraftLength
from mlxmtp.decode.prefill import read_prompt
from mlxmtp.decode.sampling import Sampling, gumbel
from mlxmtp.engine.params import Params
from mlxmtp.models.device import backend
from mlxmtp.models.drafter import Scores
from mlxmtp.models.kv_cache import KVCache
from mlxmtp.models.load import load_drafter, load_target
from mlxmtp.models.target import Target

Draft = int | Literal["auto"]
"""Draft tokens per round: 0 is plain decoding."""

_TRACED = 2  # rounds of each length that are thrown away: the first use of a shape is traced
_BESIDE = 8  # packed: an entry that is rounded to the other side moved logits by 7e-5 of the top one at 8 bits
_BLOCK = 6  # rounds between two changes of side in `Rig.split`


@dataclass(frozen=True, slots=True)
class Step:
    """One round after the first token: counts of tokens, and seconds since the moment the round before it was read.

    `kept` is `accepted + 1` unless the token limit cut the round.
    """

    drafted: int
    accepted: int
    kept: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Take:
    """One run. Seconds count from the request: `prefill` to the prompt read, `first` to the first token, `total` to
    the last. `peak_memory` is the most bytes MLX held meanwhile, weights included.
    """

    tokens: tuple[int, ...]
    steps: tuple[Step, ...]
    prefill: float
    first: float
    total: float
    peak_memory: int


@dataclass(frozen=True, slots=True)
class Tie:
    """How near two tokens are at a position.

    `margin` is the lead of the first token in the scores that decide (logits over temperature, noise included);
    `resolution` is the distance of two neighbouring numbers of the network's dtype at the size of the top logit, or
    what one step of packed keys and values makes of it.
    """

    margin: float
    resolution: float


@dataclass(frozen=True, slots=True)
class Split:
    """Seconds of rounds with `k` draft tokens by the drafter, and by one that proposes at no cost."""

    k: int
    drafted: tuple[float, ...]
    free: tuple[float, ...]


class Rig:
    """A target with its drafter, ready to be measured."""

    def __init__(self, target: Target, drafter: Any = None, sampling: Sampling | None = None) -> None:
        self.sampling = sampling or Sampling()
        self._target, self._drafter = target, drafter
        self._free = _Free()  # one for all splits: rounds are traced once for each drafter
        # Compiled in this thread: a thread of its own would keep the weights for as long as the process lives.
        self._decoder = Decoder(target, drafter, compiled="always")
        self.compiled = True
        """Whether rounds are compiled; known after `prepare`."""
        self._fresh = deepcopy(self._decoder.depth)
        self._auto: DraftLength = deepcopy(self._fresh)

    @classmethod
    def load(
        cls,
        folder: Path,
        drafter: Path | None = None,
        params: Params | None = None,
        *,
        draft_bits: int | None = None,
        kv_bits: int | None = None,
    ) -> Rig:
        """Read the weights; what `params` leave open is sampled as the checkpoint recommends. Raises LoadError."""
        target = load_target(folder, kv_bits=kv_bits)
        params = params or Params()
        sampling = params.sampling(target.config.generation, params.seed or 0)
        network = None if drafter is None else load_drafter(drafter, target, bits=draft_bits)
        return cls(target, network, sampling)

    @property
    def device(self) -> str:
        """`Metal`, `CUDA` or `CPU`."""
        return backend()

    @property
    def dtype(self) -> str:
        """The dtype that the target computes in."""
        return str(self._target.dtype).removeprefix("mlx.core.")

    def prepare(self, prompt: Sequence[int], tokens: int, drafts: Iterable[Draft]) -> None:
        """Build and trace every round that takes of `prompt` (the longest one) and `tokens` can need.

        Where rounds cannot be compiled (no compiler on Linux) they are measured as they are.
        """
        wanted = set(drafts)
        lengths = {k for k in wanted if isinstance(k, int)} | (set(LENGTHS) if "auto" in wanted else set())
        try:
            self._trace(prompt, tokens, sorted(lengths))
        except RuntimeError:
            if not self.compiled:
                raise
            self.compiled = False
            self._decoder = Decoder(self._target, self._drafter, compiled="never")
            self._trace(prompt, tokens, sorted(lengths))

    def _trace(self, prompt: Sequence[int], tokens: int, lengths: Sequence[int]) -> None:
        self._decoder.reserve(len(prompt) + tokens)
        for k in lengths:
            self._decoder.depth = deepcopy(self._fresh)
            room = 1 + _TRACED * (k + 1)
            for _ in self._decoder.rounds(prompt, max_tokens=room, num_draft_tokens=k, sampling=self.sampling):
                pass

    def take(self, prompt: Sequence[int], tokens: int, draft: Draft) -> Take:
        """Decode exactly `tokens` tokens (stop tokens are ignored), all of the prompt read anew."""
        decoder = self._decoder
        decoder.forget()
        # The automatic length goes on learning from take to take, as in a conversation.
        decoder.depth = self._auto if draft == "auto" else deepcopy(self._fresh)
        read_at: list[float] = []

        def on_prefill(done: int, total: int) -> None:
            if done == total:
                read_at.append(time.perf_counter())

        mx.synchronize()  # rounds that the take before has sent ahead
        mx.reset_peak_memory()
        said: list[int] = []
        steps: list[Step] = []
        start = time.perf_counter()
        first = last = start
        for round_ in decoder.rounds(
            prompt, max_tokens=tokens, num_draft_tokens=draft, sampling=self.sampling, on_prefill=on_prefill
        ):
            now = time.perf_counter()
            if said:
                steps.append(Step(len(round_.draft), round_.accepted, len(round_.tokens), now - last))
            else:
                first = now
            said += round_.tokens
            last = now
        return Take(
            tuple(said), tuple(steps), read_at[-1] - start, first - start, last - start, int(mx.get_peak_memory())
        )

    def tie(self, read: Sequence[int], token: int, other: int) -> Tie:
        """How near `other` is to `token` after the tokens `read`, in a pass of its own over all of them."""
        target = self._target
        cache = KVCache(target.cache_spec, target.dtype)
        cache.reserve(len(read))
        hidden = read_prompt(target, cache, read, 0)
        sampling, logits = self.sampling, target.logits(hidden)[0]
        pair = logits[mx.array([token, other])]
        if not sampling.greedy:
            position = mx.array([len(read)], mx.int32)
            pair = pair / sampling.temp + gumbel(sampling.key(), position, mx.array([[token, other]]))[0]
        margin = cast("float", (pair[0] - pair[1]).item())
        scale = 1.0 if sampling.greedy else sampling.temp
        top = cast("float", mx.abs(logits).max().item())
        packing = target.cache_spec.quantization
        beside = 0.0 if packing is None else 2.0 ** -(packing.bits + _BESIDE)
        return Tie(margin, top * max(mx.finfo(target.dtype).eps, beside) / scale)

    def split(self, prompt: Sequence[int], k: int, rounds: int) -> Split:
        """Time about `rounds` rounds of `k` draft tokens with the drafter and as many without its cost, in turns.

        Both go on with the same text in the same buffers, so that no second context has to be held. Empty where the
        model's context is too short for it.
        """
        decoder, blocks = self._decoder, -(-rounds // _BLOCK)
        needed = 2 * blocks * _block_room(k)
        text = list(prompt[: max(0, self._target.config.max_positions - needed)])
        if not text:
            return Split(k, (), ())
        decoder.forget()
        decoder.reserve(len(text) + needed)
        decoder.depth = deepcopy(self._fresh)
        sides = (self._drafter, self._free)
        seconds: tuple[list[float], list[float]] = ([], [])
        for _ in range(blocks):
            for side, drafter in enumerate(sides):
                decoder.draft_with(drafter)
                seconds[side].extend(_rounds_of(decoder, text, k, self.sampling))
                text = list(decoder.tokens)
        decoder.draft_with(self._drafter)
        return Split(k, tuple(seconds[0]), tuple(seconds[1]))


class _Free:
    """Proposes token 0 without looking at anything: what is left of a round's time is the target's."""

    def context(self, buffers: list[mx.array], offset: mx.array) -> None:
        """Nothing to share."""
        del buffers, offset

    def step(self, embedding: mx.array, hidden: mx.array, context: None) -> tuple[Scores, mx.array]:
        """A score for token 0 alone."""
        del embedding, context
        return Scores(mx.zeros((1, 1), mx.float32), mx.zeros((1,), mx.int32)), hidden


def _block_room(k: int) -> int:
    """Tokens that a block of rounds can keep."""
    return 1 + (_TRACED + _BLOCK) * (k + 1)


def _rounds_of(decoder: Decoder, text: Sequence[int], k: int, sampling: Sampling) -> list[float]:
    """Seconds of a block of rounds after `text`. The first ones are traced, or out of step, and do not count."""
    found: list[float] = []
    last = time.perf_counter()
    steps = decoder.rounds(text, max_tokens=_block_room(k), num_draft_tokens=k, sampling=sampling)
    for number, _ in enumerate(steps):
        now = time.perf_counter()
        if number > _TRACED:
            found.append(now - last)
        last = now
        if len(found) == _BLOCK:
            break
    steps.close()
    return found


def release() -> None:
    """Hand the memory of rigs that are gone back to the system."""
    gc.collect()
    mx.clear_cache()
