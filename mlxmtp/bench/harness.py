"""Harness that measures a target with its drafter: token ids in, tokens and times out. Knows nothing of reports."""

import gc
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import closing
from copy import deepcopy
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, NamedTuple, Self, cast

import mlx.core as mx

from mlxmtp.bench.samples import DraftSetting, Round
from mlxmtp.decode.constraint import Constraint
from mlxmtp.decode.decoder import AHEAD, Decoder
from mlxmtp.decode.draft_length import LENGTHS, DraftLength
from mlxmtp.decode.exact import Passes, find_passes, room_for
from mlxmtp.decode.prefill import drained, read_in_chunks
from mlxmtp.decode.sampling import Sampling, gumbel
from mlxmtp.engine.constraint import Matcher, TokenTable
from mlxmtp.engine.media import Media, Medium
from mlxmtp.engine.params import Params
from mlxmtp.engine.tokenizer import Tokenizer, stop_ids
from mlxmtp.limits import Exact
from mlxmtp.models.device import backend
from mlxmtp.models.drafter import Scores
from mlxmtp.models.kv_cache import KVCache
from mlxmtp.models.load import load_drafter, load_target
from mlxmtp.models.target import NEVER, Target

_TRACED = 2  # rounds of each length that are thrown away: the first use of a shape is traced
_QUANTIZED = 8  # an entry of a KV cache of 8 bits that is rounded to the other side moved logits by 7e-5 of the top one
_BLOCK = 6  # rounds between two changes of drafter in `Harness.time_drafter`


class Run(NamedTuple):
    """One answer. Seconds count from the request; `peak_memory` is the most bytes MLX held, weights included."""

    tokens: tuple[int, ...]
    rounds: tuple[Round, ...]
    prefill_seconds: float
    first_token_seconds: float
    total_seconds: float
    peak_memory: int
    near_ties: int | None = None  # tokens that the last bits of 16-bit numbers may decide; wider ones have none


class Harness:
    """A target with its drafter, measured in runs that can be compared.

    Each prefills its whole prompt, rounds are compiled and traced before the first run, buffers do not grow between
    runs, and a fixed draft length teaches the automatic one nothing.
    """

    def __init__(
        self,
        target: Target,
        drafter: Any = None,
        sampling: Sampling | None = None,
        *,
        constraint: Callable[[], Constraint | None] = lambda: None,
        stop: Collection[int] = (),
        passes: Passes | None = None,
    ) -> None:
        """`constraint` makes that of a run, and with one the tokens in `stop` end it; `passes` are for exact text."""
        self.sampling = sampling or Sampling()
        self._constraint, self._stop = constraint, stop
        self._target, self._drafter = target, drafter
        self._media = Media(target.config)
        self._free = _FreeDrafter()  # one for all timings: rounds are traced once for each drafter
        # Compiled in this thread: a thread of its own would keep the weights for as long as the process lives.
        self._decoder = Decoder(target, drafter, compiled="always", passes=passes)
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
        tokenizer: Tokenizer | None = None,
        draft_bits: int | None = None,
        kv_bits: int | None = None,
        exact: Exact = "off",
    ) -> Self:
        """Read the weights; what `params` leave open is sampled as the checkpoint recommends. Raises LoadError.

        With the `tokenizer`, runs are held to the constraint of `params`. `exact`: see `decode/exact.py`.
        """
        target = load_target(folder, kv_bits=kv_bits)
        params = params or Params()
        sampling = params.sampling(target.config.generation, params.seed or 0)
        network = None if drafter is None else load_drafter(drafter, target, bits=draft_bits)
        passes = find_passes(target, exact)
        if (wanted := params.constraint) is None or tokenizer is None:
            return cls(target, network, sampling, passes=passes)
        stop = stop_ids(target.config, tokenizer)
        table = TokenTable(tokenizer, target.config.vocab_size, stop)
        return cls(target, network, sampling, constraint=lambda: Matcher(wanted, table), stop=stop, passes=passes)

    @property
    def exact(self) -> bool:
        return self._decoder.passes is not None

    @property
    def device(self) -> str:
        """`Metal`, `CUDA` or `CPU`."""
        return backend()

    @property
    def dtype(self) -> str:
        return str(self._target.dtype).removeprefix("mlx.core.")

    def to_prepare(self, lengths: Iterable[int]) -> list[int]:
        """Return those `lengths` of prompts to call `prepare` with: the longest for each capacity of the KV cache.

        There is one capacity for all, but exact text has that of its length.
        """
        window = self._target.cache_spec.window
        longest: dict[int, int] = {}
        for length in sorted(lengths):
            longest[room_for(window, length + AHEAD, 0).capacity if self.exact else 0] = length
        return list(longest.values())

    def prepare(
        self, prompt: Sequence[int], tokens: int, lengths: Iterable[DraftSetting], media: Sequence[Medium] = ()
    ) -> None:
        """Build and trace every round that runs of `prompt` (see `to_prepare`) and `tokens` can need.

        Where rounds cannot be compiled (no compiler on Linux) they are measured as they are.
        """
        wanted = set(lengths)
        fixed = sorted({k for k in wanted if k != "auto"} | (set(LENGTHS) if "auto" in wanted else set()))
        soft = self._media.soft(prompt, media)
        try:
            self._decoder.reserve(len(prompt) + tokens)
            for k in fixed:
                self._decoder.depth = deepcopy(self._fresh)
                limit = 1 + _TRACED * (k + 1)
                for _ in self._decoder.rounds(
                    prompt, max_tokens=limit, num_draft_tokens=k, sampling=self.sampling, media=soft
                ):
                    pass
        except RuntimeError:
            if not self.compiled:
                raise
            self.compiled = False
            self._decoder = Decoder(self._target, self._drafter, compiled="never", passes=self._decoder.passes)
            self.prepare(prompt, tokens, wanted, media)

    def run(self, prompt: Sequence[int], tokens: int, length: DraftSetting, media: Sequence[Medium] = ()) -> Run:
        """Decode exactly `tokens` tokens after a prefill of the whole prompt; its `media` are encoded in every run.

        Stop tokens are ignored, except where a constraint lets them end the answer.
        """
        decoder = self._decoder
        decoder.forget()
        # The automatic length goes on learning from run to run, as in a conversation.
        decoder.depth = self._auto if length == "auto" else deepcopy(self._fresh)
        prefilled_at: list[float] = []

        def on_prefill(done: int, total: int) -> None:
            if done == total:
                prefilled_at.append(time.perf_counter())

        self._media.forget()
        soft = self._media.soft(prompt, media)
        mx.synchronize()  # rounds that the run before has sent ahead
        mx.reset_peak_memory()
        found: list[int] = []
        rounds: list[Round] = []
        start = first = last = time.perf_counter()
        for step in decoder.rounds(
            prompt,
            max_tokens=tokens,
            num_draft_tokens=length,
            sampling=self.sampling,
            stop=self._stop,
            on_prefill=on_prefill,
            constraint=self._constraint(),
            media=soft,
        ):
            now = time.perf_counter()
            if found:
                rounds.append(Round(len(step.draft), step.accepted, len(step.tokens), now - last))
            else:
                first = now
            found += step.tokens
            last = now
        seconds = prefilled_at[-1] - start, first - start, last - start
        return Run(tuple(found), tuple(rounds), *seconds, int(mx.get_peak_memory()), decoder.count_near_ties())

    def margin(
        self, prefix: Sequence[int], token: int, other: int, media: Sequence[Medium] = ()
    ) -> tuple[float, float]:
        """Return margin and resolution of two tokens after `prefix`, in a pass of its own over it: see `Divergence`."""
        target = self._target
        cache = KVCache(target.cache_spec, target.dtype)
        cache.reserve(len(prefix))
        hidden = drained(read_in_chunks(target, cache, prefix, 0, media=self._media.soft(prefix, media)))
        sampling, logits = self.sampling, target.logits(hidden)[0]
        pair = logits[mx.array([token, other])]
        if not sampling.greedy:
            position = mx.array([len(prefix)], mx.int32)
            pair = pair / sampling.temp + gumbel(sampling.key(), position, mx.array([[token, other]]))[0]
        margin = cast("float", (pair[0] - pair[1]).item())
        scale = 1.0 if sampling.greedy else sampling.temp
        top = cast("float", mx.where(logits > NEVER / 2, mx.abs(logits), 0).max().item())
        packing = target.cache_spec.quantization
        beside = 0.0 if packing is None else 2.0 ** -(packing.bits + _QUANTIZED)
        return margin, top * max(mx.finfo(target.dtype).eps, beside) / scale

    def time_drafter(self, prompt: Sequence[int], k: int, rounds: int) -> tuple[list[float], list[float]]:
        """Return seconds of about `rounds` rounds of `k` draft tokens with the drafter and as many without its cost.

        They take turns on one text and one KV cache; none where the model's context is too short. Pictures in the
        prompt are as many padding tokens here: a round takes as long after them.
        """
        decoder, blocks = self._decoder, -(-rounds // _BLOCK)
        block_tokens = 1 + (_TRACED + _BLOCK) * (k + 1)
        needed = 2 * blocks * block_tokens
        text = [max(token, 0) for token in prompt[: max(0, self._target.config.max_positions - needed)]]
        if not text:
            return [], []
        decoder.forget()
        decoder.reserve(len(text) + needed)
        decoder.depth = deepcopy(self._fresh)
        seconds: tuple[list[float], list[float]] = ([], [])
        for _ in range(blocks):
            for found, drafter in zip(seconds, (self._drafter, self._free), strict=True):
                decoder.draft_with(drafter)
                found.extend(self._block(text, block_tokens, k))
                text = list(decoder.tokens)
        decoder.draft_with(self._drafter)
        return seconds

    def _block(self, text: Sequence[int], tokens: int, k: int) -> list[float]:
        """Return the seconds of a block of rounds. The first ones are traced, or out of step, and do not count."""
        with closing(
            self._decoder.rounds(text, max_tokens=tokens, num_draft_tokens=k, sampling=self.sampling)
        ) as steps:
            ends = [time.perf_counter() for _ in islice(steps, 1 + _TRACED + _BLOCK)]
        return [end - start for start, end in pairwise(ends[_TRACED:])]


class _FreeDrafter:
    """Proposes token 0 without computing anything: the rest of a round's time is the target's."""

    def context(self, buffers: list[mx.array], offset: mx.array) -> list[mx.array]:
        del buffers, offset
        return []

    def step(self, embedding: mx.array, hidden: mx.array, *_: Any) -> tuple[Scores, mx.array]:
        del embedding
        return Scores(mx.zeros((1, 1), mx.float32), mx.zeros((1,), mx.int32)), hidden


def release() -> None:
    """Hand the memory of harnesses that are gone back to the system."""
    gc.collect()
    mx.clear_cache()
