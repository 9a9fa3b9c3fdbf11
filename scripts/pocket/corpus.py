"""The written part of the training data, strictly checked: intents from `corpus/*.toml`, what else people call the
same things from `corpus/wordings/*.toml` (intent id -> plain questions), and second turns that lead from one intent
to another from `corpus/links/*.toml`."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scripts.pocket.patterns import PatternError, Sequence_, parse

FOLDER = Path(__file__).parent / "corpus"
_MARKER = re.compile(r"<\|\S|\S\|>|<(pad|eos|bos|unk)>")
_KEYS = {"id", "topic", "think", "q", "a", "follow", "system"}
_KEYS_OF_SAME = {"id", "same_as", "q"}


class CorpusError(ValueError):
    """A mistake in a corpus file; the message names file and intent."""


@dataclass(frozen=True, slots=True)
class Link:
    """Plain second-turn questions after one intent that another one, `to`, answers."""

    to: str
    questions: tuple[str, ...]


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
    links: tuple[Link, ...] = ()
    same_as: str = ""
    """Another intent that nobody could tell from this one: it gets the questions, and answers them."""
    new: bool = False
    """It came with this version: a network that is trained on has never heard of it."""

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
            intents.append(replace(intent, new=path.stem.startswith("e-")))
    same = {intent.id: intent.same_as for intent in intents if intent.same_as}
    merged = _merged(_with_wordings(intents, folder / "wordings"), same)
    return _with_links(merged, folder / "links", same)


def _merged(intents: list[Intent], same: dict[str, str]) -> list[Intent]:
    """The intents that have answers, with the questions of those that are the same."""
    kept = {intent.id: intent for intent in intents if intent.id not in same}
    for intent in intents:
        if intent.id in same:
            if (to := kept.get(intent.same_as)) is None:
                raise CorpusError(f"intent {intent.id!r} is the same as {intent.same_as!r}, which does not exist")
            kept[to.id] = replace(to, questions=to.questions + intent.questions, plain=to.plain + intent.plain)
    return list(kept.values())


def _with_links(intents: list[Intent], folder: Path, same: dict[str, str]) -> list[Intent]:
    """The intents with the second turns that lead on from them."""
    links: dict[str, list[Link]] = {intent.id: [] for intent in intents}
    for path in sorted(folder.glob("*.toml")):
        for raw in tomllib.loads(path.read_text(encoding="utf-8"))["link"]:
            first, to = (same.get(raw.get(key), raw.get(key)) for key in ("from", "to"))
            if set(raw) != {"from", "to", "q"} or first not in links or to not in links:
                raise CorpusError(f"{path.name}: a link needs from, to (both known intents) and q, found {raw}")
            links[first].append(Link(to, tuple(text.strip() for text in _strings(raw, "q", path.name))))
    return [replace(intent, links=tuple(links[intent.id])) for intent in intents]


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
    questions = tuple(_pattern(p, where) for p in _strings(raw, "q", where))
    if "same_as" in raw:
        if set(raw) != _KEYS_OF_SAME:
            raise CorpusError(f"{where}: what is the same as another intent has id, same_as and q only")
        return Intent(name, "", "", questions, (), same_as=raw["same_as"])
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
        questions=questions,
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
