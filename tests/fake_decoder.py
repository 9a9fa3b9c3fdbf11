"""A decoder without a network: it says what was queued, in rounds of a few tokens."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from mlxmtp.decode.decoder import Decoder
from mlxmtp.decode.draft_length import DraftLength
from mlxmtp.decode.logprobs import Logprob
from mlxmtp.decode.round import Round
from mlxmtp.decode.snapshots import CacheState


def fake_round(tokens: Sequence[int], draft: Sequence[int] = (), accepted: int = 0) -> Round:
    return Round(tuple(tokens), tuple(draft), accepted)


def fake_logprob(token: int, top: int) -> Logprob:
    """The token itself is the likeliest, those with the ids behind it follow."""
    return Logprob(token, -0.5, tuple((token + place, -0.5 - place) for place in range(top)))


class FakeDecoder(Decoder):
    """Keeps the contract of the real one: the stop token is yielded last, `max_tokens` obeyed, closing noticed."""

    def __init__(self) -> None:
        self.answers: deque[list[int]] = deque()
        self.requests: list[SimpleNamespace] = []
        self.closed = 0
        self.let_go = False
        self.reused = 0
        self._near_ties = self.passes = None
        self.depth = DraftLength(limit=0)
        self.before_round: Callable[[int], None] = lambda _: None

    def enqueue(self, tokens: Sequence[int]) -> None:
        self.answers.append(list(tokens))

    def rounds(
        self,
        prompt_ids: Sequence[int],
        *,
        max_tokens: int,
        num_draft_tokens: Any = "auto",
        draft_from: Collection[str] = ("mtp",),
        sampling: Any = None,
        stop: Collection[int] = (),
        on_prefill: Callable[[int, int], None] | None = None,
        snapshot_at: Collection[int] = (),
        constraint: Any = None,
        top_logprobs: int | None = None,
        media: Any = (),
        said: int = 0,
    ) -> Generator[Round, None, None]:
        self.requests.append(
            SimpleNamespace(
                prompt=list(prompt_ids),
                max_tokens=max_tokens,
                draft=num_draft_tokens,
                draft_from=draft_from,
                sampling=sampling,
                stop=stop,
                snapshot_at=snapshot_at,
                constraint=constraint,
            )
        )
        tokens = self.answers.popleft()[:max_tokens]
        try:
            if on_prefill is not None:
                on_prefill(len(prompt_ids), len(prompt_ids))
            for number, round_ in enumerate(self._cut(tokens, stop)):
                self.before_round(number)
                told = () if top_logprobs is None else tuple(fake_logprob(one, top_logprobs) for one in round_.tokens)
                yield replace(round_, logprobs=told)
        finally:
            self.closed += 1

    def export_state(self, length: int | None = None) -> CacheState:
        raise NotImplementedError("no network, no keys and values")

    def import_state(self, held: CacheState) -> None:
        raise NotImplementedError("no network, no keys and values")

    def close(self) -> None:
        self.let_go = True

    @staticmethod
    def _cut(tokens: list[int], stop: Collection[int]) -> Iterator[Round]:
        """One token from the prefill, then rounds of three: two drafts kept, one bonus."""
        start = 0
        while start < len(tokens):
            width = 1 if start == 0 else 3
            part = tokens[start : start + width]
            ends = [index for index, token in enumerate(part) if token in stop]
            if ends:
                part = part[: ends[0] + 1]
            draft = () if start == 0 else (*part[:2], 7)[:3]
            yield Round(tuple(part), tuple(draft), max(0, min(len(part) - 1, 2)))
            if ends:
                return
            start += width
