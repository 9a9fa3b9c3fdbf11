"""The decoder of one answer among several: it asks for rounds and waits until others have made them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Generator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from mlxmtp.decode.decoder import AHEAD
from mlxmtp.decode.prefill import checked_prompt
from mlxmtp.decode.request import fixed_length
from mlxmtp.decode.round import Round

if TYPE_CHECKING:
    from mlxmtp.decode.constraint import Constraint
    from mlxmtp.decode.decoder import Decoder
    from mlxmtp.decode.draft_length import DraftLength
    from mlxmtp.decode.exact import Passes
    from mlxmtp.decode.lane import Lane, Stream
    from mlxmtp.decode.prefill import SoftTokens
    from mlxmtp.decode.sampling import Sampling
    from mlxmtp.decode.snapshots import Snapshot
    from mlxmtp.decode.texts import HeldText

_NOTHING = Round((), (), 0)  # says: nothing yet, let the others go on


@dataclass(slots=True)
class Wanted:
    """Rounds that a seat asked for: what `Decoder.rounds` takes. `came`: what it has had alone; `reused`: how many
    of the prompt were in a cache, None before somebody looked."""

    prompt: list[int]
    max_tokens: int
    on_prefill: Callable[[int, int], None] | None
    options: dict[str, Any]
    came: list[int] = field(default_factory=list)
    reused: int | None = None


class Seat:
    """The decoder of one answer among several, as far as `Answer` needs one."""

    def __init__(
        self, decoder: Decoder, wait: Callable[[Seat], None], free: Callable[[Seat], None], *, never_shared: bool
    ) -> None:
        """`wait` is told when rounds are wanted, `free` when no more are; `decoder` is the one of answers alone."""
        self.never_shared = never_shared  # no answer shares rounds: others wait for the end of this one
        self._wait, self._free = wait, free
        self.decoder = decoder  # that its rounds alone are of, or were
        self.wanted: Wanted | None = None
        self.stream: Stream | None = None
        self.lane: Lane | None = None  # that it shares rounds in, or did
        self.in_pieces = False  # a prompt was read beside others, in pieces as long as they suit these
        self.snapshot: Snapshot | None = None  # the last one in its prompt
        self.text: HeldText | None = None  # of rounds in a lane, if others go on with it
        self.error: Exception | None = None
        self._came: deque[Round] = deque()
        self._over = False

    @property
    def depth(self) -> DraftLength:
        """The choice of draft lengths where this answer is now."""
        return self.decoder.depth if self.lane is None else self.lane.depth

    @property
    def passes(self) -> Passes | None:
        """The limits of exact text, which only an answer has that was alone all the time."""
        return None if self.in_pieces else self.decoder.passes

    def count_near_ties(self) -> int | None:
        return self.decoder.count_near_ties() if self.lane is None else None

    @property
    def reused(self) -> int:
        """Tokens of the prompt that were in a cache."""
        return 0 if self.wanted is None else self.wanted.reused or 0

    @property
    def alone(self) -> bool:
        """True if this answer cannot share rounds: with a constraint, penalties, logprobs or copied drafts, or none
        may."""
        options = self.asked.options
        told = self.never_shared or options["constraint"] is not None or options["top_logprobs"] is not None
        return told or bool(options["sampling"].penalties) or "copy" in options["draft_from"]

    @property
    def asked(self) -> Wanted:
        """The rounds that are wanted, of a seat that has asked for some."""
        assert self.wanted is not None
        return self.wanted

    @property
    def rows(self) -> int:
        """The rows that this answer needs, as far as one can know now."""
        asked = self.asked
        return len(asked.prompt) + len(asked.came) + min(asked.max_tokens - len(asked.came), AHEAD)

    @property
    def ready(self) -> bool:
        """True if the answer can go on: with a round, with its end or an error; or it has not begun."""
        return bool(self._came) or self._over or self.error is not None or self.wanted is None

    def found(self, rows: int) -> None:
        """Take in that so much of the prompt was in a cache; reading that goes on later finds its own rows there."""
        if self.asked.reused is None:
            self.asked.reused = rows

    def take(self, round_: Round) -> None:
        """Take in a round of this answer."""
        self._came.append(round_)

    def end(self, error: Exception | None = None) -> None:
        """Take in that no more rounds will come."""
        self._over, self.error = error is None, error

    def rounds(
        self,
        prompt_ids: Sequence[int],
        *,
        max_tokens: int,
        num_draft_tokens: int | Literal["auto"] = "auto",
        draft_from: Collection[str] = ("mtp",),
        sampling: Sampling,
        stop: Collection[int] = (),
        on_prefill: Callable[[int, int], None] | None = None,
        snapshot_at: Collection[int] = (),
        constraint: Constraint | None = None,
        media: Sequence[SoftTokens] = (),
        top_logprobs: int | None = None,
        said: int = 0,
    ) -> Generator[Round, None, None]:
        """Yield rounds as `Decoder.rounds` does, and an empty one whenever there is none yet."""
        prompt, max_tokens = checked_prompt(self.decoder.target.config, prompt_ids, max_tokens, media)
        fixed_length(num_draft_tokens, draft_from)  # raises here, as for one answer
        options: dict[str, Any] = {"num_draft_tokens": num_draft_tokens, "draft_from": draft_from}
        options |= {"sampling": sampling, "stop": stop, "snapshot_at": snapshot_at}
        options |= {"constraint": constraint, "media": media, "top_logprobs": top_logprobs, "said": said}
        self.wanted = Wanted(prompt, max_tokens, on_prefill, options)
        self._over = False
        self._wait(self)
        try:
            while self._came or not self._over:
                if self._came:
                    yield self._came.popleft()
                elif self.error is not None:
                    raise self.error
                else:
                    yield _NOTHING
        finally:
            self._free(self)
