"""The models behind one port: the one that was started, and others on this machine by their names."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Lock

from mlxmtp.app.open import Checkpoint, Opener, OpenModel
from mlxmtp.app.prompt_cache import PromptCache
from mlxmtp.engine.media import LARGEST, Media
from mlxmtp.engine.tokenizer import Tokenizer
from mlxmtp.errors import MlxmtpError, TooLarge
from mlxmtp.media.source import Kind
from mlxmtp.serve.fields import Refused
from mlxmtp.settings import Settings

_CONVERSATION = 8192  # tokens whose memory is asked for before the weights are read


class Served:
    """A model that can be asked: its name, others that mean it, the tokens of a conversation that it and the memory
    hold, and how it is read."""

    def __init__(
        self,
        name: str,
        names: frozenset[str],
        context: int,
        *,
        has_drafter: bool,
        media: Media,
        refused: Mapping[Kind, str] | None = None,
        read: Callable[[Tokenizer], OpenModel],
        read_tokenizer: Callable[[], Tokenizer],
    ) -> None:
        self.name, self.names, self.context, self.has_drafter = name, names, context, has_drafter
        self.media = media  # makes prompts; the model's own reads its towers
        self.refused = refused or {}  # why no pictures or sounds can be read, for a model that could
        self.created = int(time.time())
        self._read, self._read_tokenizer = read, read_tokenizer
        self._lock = Lock()
        self._tokenizer: Future[Tokenizer] | None = None

    @property
    def tokenizer(self) -> Future[Tokenizer]:
        """The text side, read when it is first asked for, from whatever thread."""
        with self._lock:
            if self._tokenizer is None:
                self._tokenizer = ThreadPoolExecutor(1, "mlxmtp-tokenizer").submit(self._read_tokenizer)
            return self._tokenizer

    def read(self) -> OpenModel:
        """Read the weights. Raises LoadError."""
        return self._read(self.tokenizer.result())


class Models:
    """Finds models by name; `others` are looked at when they are first asked for, and read when they have to answer."""

    def __init__(self, first: Served, others: Mapping[str, Callable[[], Served]] | None = None) -> None:
        self.first = first
        self._others = dict(others or {})
        self._lock = Lock()  # of two that stand for one model each would be read
        self._known: dict[str, Served] = {}

    def known(self, name: str) -> Served | None:
        """Return the model of that name if it was looked at before; none at all, and default, mean the first."""
        plain = name.removesuffix(":latest")
        return self.first if not plain or plain in self.first.names else self._known.get(plain)

    def find(self, name: str) -> Served:
        """Return the model of that name, as `known` does, and look at it if need be. Raises Refused."""
        if (known := self.known(name)) is not None:
            return known
        plain = name.removesuffix(":latest")
        if plain not in self._others:
            there = ", ".join(f"'{one}'" for one in self.names())
            raise Refused(
                f"Model '{name}' is not served here: there {'are' if self._others else 'is'} {there}.",
                "model",
                status=404,
                code="model_not_found",
            )
        with self._lock:
            try:
                if plain not in self._known:
                    served = self._others[plain]()
                    self._known |= dict.fromkeys({plain} | served.names & self._others.keys(), served)
            except MlxmtpError as error:
                status = 400 if isinstance(error, TooLarge) else 503  # which clients take for a state that passes
                raise Refused(str(error), "model", status=status) from error
            return self._known[plain]

    def names(self) -> list[str]:
        return [self.first.name, *self._others]

    def listed(self) -> Sequence[Served]:
        """Return those that can answer on this machine, the first one first."""
        found = [self.first]
        for name in self._others:
            try:
                served = self.find(name)
            except Refused:  # it does not fit the memory, or its files are damaged
                continue
            if served not in found:
                found.append(served)
        return found


def models_of(opener: Opener, settings: Settings) -> Models:
    """Return the model that the settings mean, and the others here. Raises ModelNotFound, LoadError, TooLarge."""
    target = opener.target(settings.model)
    named: dict[Path, dict[str, Checkpoint]] = {}
    for name in filter(opener.has, opener.names()):
        one = opener.target(name)
        named.setdefault(one.folder, {})[name] = one
    own, short = {*named.pop(target.folder, {})}, target.name.rpartition("/")[2]
    if not any(short in names for names in named.values()):  # else it means that model
        own.add(short)
    first = _served(opener, target, own, settings)
    others: dict[str, Callable[[], Served]] = {}
    for names in named.values():  # the first one's drafter is none for them
        look = partial(_served, opener, next(iter(names.values())), [*names], replace(settings, draft_model=None))
        others |= dict.fromkeys(names, look)
    return Models(first, others)


def _served(opener: Opener, target: Checkpoint, names: Iterable[str], settings: Settings) -> Served:
    """Look at a model that may go by other `names`, too. Raises LoadError, TooLarge."""
    drafter = opener.drafter(target, settings)
    opener.require_memory(target, drafter, _CONVERSATION, settings, turns=True)
    refused: dict[Kind, str] = {}
    for kind, media in LARGEST.items():
        try:
            opener.require_memory(target, drafter, _CONVERSATION, settings, turns=True, media=media)
        except TooLarge as error:
            refused[kind] = str(error)

    def read(tokenizer: Tokenizer) -> OpenModel:
        opened = opener.open(target, drafter, settings, tokenizer)
        opened.model.prepare_constraints()  # any request may have one
        opened.model.hold_texts()
        return replace(opened, cache=PromptCache.of(opener.loaded)) if settings.cache else opened

    return Served(
        target.name,
        frozenset({target.name, "default", *names}),
        opener.longest_conversation(target, drafter, settings, _CONVERSATION, holds_texts=True),
        has_drafter=drafter is not None,
        media=opener.media(target),
        refused=refused,
        read=read,
        read_tokenizer=lambda: opener.tokenizer(target),
    )
