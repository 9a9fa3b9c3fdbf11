"""The models that a router may ask: what stands in the way of each, what it costs to open one, and which are open."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mlxmtp.app.breaker import Breaker
from mlxmtp.app.open import ANSWER, Checkpoint, Opener, OpenModel
from mlxmtp.app.remote_model import RemoteOpener
from mlxmtp.app.router import SMALL, Facts, Rules
from mlxmtp.engine.media import Media, Medium, file_of
from mlxmtp.engine.tokenizer import declares_tools
from mlxmtp.errors import MlxmtpError, ModelNotFound, TooLarge
from mlxmtp.machine.memory import need
from mlxmtp.models.config import ModelConfig, read_config

FIRST_TOKEN = 30.0  # seconds that an endpoint has for it, unless its table says otherwise
_READING = 1.5e9  # bytes of weights a second, until a model has been read once: a guess


@dataclass(slots=True)
class Candidate:
    """A model that may answer. `problem`: why it never can, a phrase behind its name."""

    title: str
    opener: Opener
    target: Checkpoint | None = None  # None: an endpoint that was not asked yet, or a problem
    drafter: Checkpoint | None = None
    problem: str = ""
    breaker: Breaker | None = None  # of an endpoint
    opened: OpenModel | None = None
    loading: float | None = None  # seconds that it took, once it was read

    @property
    def bytes(self) -> int:
        """Bytes of a model here with a short text; 0 elsewhere."""
        if self.target is None or not self.opener.here:
            return 0
        drafter = None if self.drafter is None else read_config(self.drafter.folder)
        return need(read_config(self.target.folder), drafter, ANSWER, turns=True).total

    @property
    def seconds_to_load(self) -> float:
        """Seconds until it can answer, about; 0 for one that is in memory and for an endpoint."""
        if self.opened is not None or not self.opener.here:
            return 0.0
        return self.bytes / _READING if self.loading is None else self.loading

    def close(self) -> None:
        """Free its memory."""
        if self.opened is not None:
            self.opened.close()
            self.opened = None


class _Senses(Media):
    """Senses of several models: what is seen or heard is prepared by the first that can, or refused by the first."""

    def __init__(self, first: ModelConfig, models: Sequence[Media]) -> None:
        super().__init__(first)
        self._models = models

    @property
    def sees(self) -> bool:
        return any(one.sees for one in self._models)

    @property
    def hears(self) -> bool:
        return any(one.hears for one in self._models)

    def prepare(self, source: object, image_tokens: int | None = None) -> Medium:
        file = file_of(source) if isinstance(source, bytes | str | Path) else source
        hears = getattr(file, "kind", "image") == "audio"
        able = (one for one in self._models if (one.hears if hears else one.sees))
        return next(able, self._models[0]).prepare(file, image_tokens)


class Candidates:
    """The models of a router by `small` or their name in the config. None is open until it is wanted."""

    def __init__(self, rules: Rules, opener: Opener, clock: Callable[[], float]) -> None:
        """`opener`: of models here. Raises ModelNotFound, LoadError for the small one."""
        self._rules, self._opener, self._settings, self._clock = rules, opener, opener.loaded.settings, clock
        self._senses: dict[Path, Media] = {}
        small = opener.target(rules.router.small)
        drafter = opener.drafter(small, self._settings)
        self._all = {name: self._find(name) for name in rules.models if name != SMALL}
        self._all = {SMALL: Candidate(small.name, opener, small, drafter), **self._all}

    def __getitem__(self, name: str) -> Candidate:
        return self._all[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all)

    def named(self, title: str) -> str | None:
        """Return the name of the one with that title, None if there is none."""
        return next((name for name, one in self._all.items() if one.title == title), None)

    def _find(self, name: str) -> Candidate:
        loaded, endpoint = self._opener.loaded, self._rules.endpoints.get(name)
        try:
            if endpoint is not None:
                remote = RemoteOpener(loaded, self._opener.tell, endpoint=endpoint, timeout=FIRST_TOKEN)
                return Candidate(name, remote, breaker=Breaker(self._clock))
            found = Opener(loaded, self._opener.tell).target(name)  # nothing is downloaded on the way
            drafter = self._opener.drafter(found, replace(self._settings, draft_model=None))
        except ModelNotFound:
            return Candidate(name, self._opener, problem="is not on this machine")
        except MlxmtpError as error:
            return Candidate(name, self._opener, problem=f"cannot be used ({str(error).rstrip('.')})")
        return Candidate(found.name, self._opener, found, drafter)

    @property
    def media(self) -> Media:
        """The senses of all models here."""
        targets = [one.target for one in self._here() if one.target is not None]
        return _Senses(read_config(targets[0].folder), [self._media(one) for one in targets])

    def _media(self, target: Checkpoint) -> Media:
        """Return the senses of a model, always the same, which keep what they have prepared."""
        if target.folder not in self._senses:
            self._senses[target.folder] = self._opener.media(target)
        return self._senses[target.folder]

    @property
    def context(self) -> int:
        """The longest context of those that may answer."""
        here = [self._opener.context(one.target) for one in self._here() if one.target is not None]
        remote = [name for name, one in self._all.items() if one.breaker is not None and self._rules.remote != "never"]
        return max([*here, *(self._rules.endpoints[name].context or 0 for name in remote)])

    def _here(self) -> list[Candidate]:
        return [one for one in self._all.values() if one.opener.here]

    def obstacle(self, name: str, facts: Facts) -> str:
        """Return why one cannot answer this, a phrase behind its name; empty if it can."""
        one = self._all[name]
        if found := one.problem or self._rules.stays_here(name, facts):
            return found
        if one.breaker is not None:
            context, left = self._rules.endpoints[name].context, one.breaker.seconds_left
        else:
            assert one.target is not None
            context, left = self._opener.context(one.target), 0.0
        if context is not None and facts.prompt_tokens >= context:
            return f"holds {context:,} tokens"
        return f"is left alone for {left:.0f} s after failures" if left else self._unfit(name, one, facts)

    def _unfit(self, name: str, one: Candidate, facts: Facts) -> str:
        """Return why a model here is not for this question, this memory or the patience of a person."""
        if one.target is None or not one.opener.here:
            return ""
        senses = self._media(one.target)
        blind, deaf = facts.sees and not senses.sees, facts.hears and not senses.hears
        if blind or deaf:
            return "sees no images" if blind else "hears no audio"
        if (facts.tools or facts.results) and not declares_tools(one.target.folder):
            return "knows no tools"
        wait, seconds = self._rules.router.wait, one.seconds_to_load
        if name != SMALL and wait is not None and seconds > wait:
            return f"would take about {seconds:.0f} s to load"
        try:
            tokens = facts.prompt_tokens + ANSWER
            self._opener.require_memory(one.target, one.drafter, tokens, self._settings, turns=True)
        except TooLarge:
            return "does not fit the memory"
        return ""

    def opened(self, name: str) -> OpenModel:
        """Return a model, opened now if it is not; where the memory does not hold it beside others, they are freed.

        Raises EndpointFailed, LoadError and what else openers raise.
        """
        one = self._all[name]
        if one.opened is None:
            if one.target is None:
                one.target = one.opener.target(None)
            others = [other for other in self._here() if other.opened is not None]
            if one.bytes + sum(other.bytes for other in others) > self._opener.machine.usable:
                for other in others if one.opener.here else ():
                    other.close()
            began = self._clock()
            one.opened = one.opener.open(one.target, one.drafter, self._settings)
            one.loading = self._clock() - began
        return one.opened

    def save_learned(self) -> None:
        """Write what drafting has learned in every model here."""
        for one in self._all.values():
            if one.opened is not None:
                one.opened.save_learned()

    def close(self) -> None:
        """Free the memory of all."""
        for one in self._all.values():
            one.close()
