"""The written part of the training data, strictly checked: intents from `corpus/*.toml`, and what else people call the
same things from `corpus/wordings/*.toml` (intent id -> plain questions)."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pocket.patterns import PatternError, Sequence_, parse

FOLDER = Path(__file__).parent / "corpus"
_MARKER = re.compile(r"<\|\S|\S\|>|<(pad|eos|bos|unk)>")
_KEYS = {"id", "topic", "think", "q", "a", "follow", "system"}


class CorpusError(ValueError):
    """A mistake in a corpus file; the message names file and intent."""


@dataclass(frozen=True, slots=True)
class Intent:
    """One thing a person may want to know: question patterns, thought and answers."""

    id: str
    topic: str
    think: str
    questions: tuple[Sequence_, ...]
    answers: tuple[str, ...]
    follow: tuple[Intent, ...] = ()
    system: tuple[str, ...] = ()
    plain: tuple[Sequence_, ...] = ()
    """Questions in other people's words: a list, not patterns."""

    @property
    def refuses(self) -> bool:
        """Whether this intent answers questions outside the field."""
        return self.id.startswith("refuse-")

    @property
    def thought(self) -> str:
        """What stands in the thinking channel before the answer."""
        return f"The user asks about {self.topic}. {self.think}"


def load(folder: Path = FOLDER) -> list[Intent]:
    """All intents of a folder, in file order; raises CorpusError."""
    intents: list[Intent] = []
    seen: dict[str, str] = {}
    paths = sorted(folder.glob("*.toml"))
    if not paths:
        raise CorpusError(f"{folder}: no .toml files")
    for path in paths:
        for intent in _read(path):
            if intent.id in seen:
                raise CorpusError(f"{path.name}: intent {intent.id!r} stands in {seen[intent.id]}, too")
            seen[intent.id] = path.name
            intents.append(intent)
    return _with_wordings(intents, folder / "wordings")


def _with_wordings(intents: list[Intent], folder: Path) -> list[Intent]:
    """The intents with the plain questions of the wordings added; those of `id/n` go to its n-th follow-up."""
    more: dict[str, tuple[Sequence_, ...]] = {}
    for path in sorted(folder.glob("*.toml")):
        for name, texts in tomllib.loads(path.read_text(encoding="utf-8")).items():
            where = f"{path.name} ({name})"
            more[name] = more.get(name, ()) + tuple((text.strip(),) for text in _strings({"q": texts}, "q", where))
    known = {intent.id for intent in intents} | {follow.id for intent in intents for follow in intent.follow}
    if unknown := sorted(more.keys() - known):
        raise CorpusError(f"{folder}: there is no intent {unknown[0]!r}")

    def enriched(intent: Intent) -> Intent:
        follow = tuple(enriched(one) for one in intent.follow)
        return replace(intent, plain=more.get(intent.id, ()), follow=follow)

    return [enriched(intent) for intent in intents]


def _read(path: Path) -> list[Intent]:
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CorpusError(f"{path.name}: {error}") from error
    if set(data) != {"intent"}:
        raise CorpusError(f"{path.name}: only [[intent]] tables may stand here, found {sorted(data)}")
    return [_intent(raw, f"{path.name}: intent {i + 1}", "") for i, raw in enumerate(data["intent"])]


def _intent(raw: dict[str, Any], where: str, parent: str) -> Intent:
    name = raw.get("id", parent)
    if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9][a-z0-9./-]*", name):
        raise CorpusError(f"{where}: id {name!r} is not made of lower-case letters, digits and '-'")
    where = f"{where} ({name})"
    unknown = set(raw) - _KEYS
    if unknown or (parent and "follow" in raw):
        raise CorpusError(f"{where}: unknown keys {sorted(unknown or {'follow'})}")
    for key in ("topic", "think"):
        if not isinstance(raw.get(key), str) or not raw[key].strip():
            raise CorpusError(f"{where}: {key} is missing")
    for text in (raw["topic"], raw["think"], *raw.get("a", [])):
        if isinstance(text, str) and _MARKER.search(text):
            raise CorpusError(f"{where}: a special token stands in {text!r}; the model would write it, and stop there")
    follow = raw.get("follow", [])
    return Intent(
        id=name,
        topic=raw["topic"].strip().rstrip("."),
        think=raw["think"].strip(),
        questions=tuple(_pattern(p, where) for p in _strings(raw, "q", where)),
        answers=tuple(a.strip() for a in _strings(raw, "a", where)),
        follow=tuple(_intent(f, where, f"{name}/{i + 1}") for i, f in enumerate(follow)),
        system=tuple(_strings(raw, "system", where)) if "system" in raw else (),
    )


def _strings(raw: dict[str, Any], key: str, where: str) -> list[str]:
    value = raw.get(key)
    good = isinstance(value, list) and value and all(isinstance(v, str) and v.strip() for v in value)
    if not good:
        raise CorpusError(f"{where}: {key} must be a list of texts")
    assert isinstance(value, list)
    return value


def _pattern(text: str, where: str) -> Sequence_:
    try:
        return parse(text.strip())
    except PatternError as error:
        raise CorpusError(f"{where}: {error}") from error
