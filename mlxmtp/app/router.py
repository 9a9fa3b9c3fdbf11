"""Rules that choose the model of an answer (`-m auto`): read from the config, decided from facts alone, in order.

Nothing here opens a model or asks a server: what stands in the way of each is given. docs/router.md has examples.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from mlxmtp.app.endpoints import ATTACHMENTS, AUTO, RESULTS, Endpoint, endpoint_of, endpoints_of
from mlxmtp.errors import ConfigError
from mlxmtp.limits import TOKEN_COUNT, Range
from mlxmtp.settings import SWITCH, TEXT, TEXTS, Loaded, choice, name_of, number, read_table, setting

SMALL, BIG = "small", "big"
_EXAMPLE = '[router] needs big = "26b", the model for what its skills send there, in'
_SEARCHED = 100_000  # characters of a question that a pattern sees


# fmt: off
@dataclass(frozen=True, slots=True)
class Router:
    """The `[router]` of the config."""

    small: str | None = setting(
        "", name_of("a model"), "Model that answers when no skill says otherwise.", "an installed model, else pocket")
    big: tuple[str, ...] | None = setting(
        "", TEXTS, "Model for harder questions; of several, endpoints among them, the first that can.", "must be there")
    remote: Literal["never", "ask", "fallback"] | None = setting(
        "", choice("never", "ask", "fallback"),
        "Text may leave this machine: never, after a question, or where a skill or `big` leads to an endpoint.",
        "never")
    wait: float | None = setting(
        "", number(Range(0)), "Longest time to load a big model, in seconds, as estimated.", "no limit")
    cascade: Literal["off", "tool", "logprob"] | None = setting(
        "", choice("off", "tool", "logprob"),
        "The small one hands over: by a tool, or when the log-probability of its first words is low.", "off")
    certainty: float | None = setting(
        "", number(Range(-100, 0)), "Mean log-probability below which it hands over.",
        'must be there for "logprob"')


@dataclass(frozen=True, slots=True)
class Skill:
    """A `[[skill]]` of the config: all of its conditions must hold; one without conditions always does."""

    name: str | None = setting("", name_of("a skill"), "Shown as the reason.", "must be there")
    model: str | None = setting("", name_of("small, big or an endpoint"), "Model that answers.", "must be there")
    tools: bool | None = setting("", SWITCH, "Tools may be called.", "either")
    schema: bool | None = setting("", SWITCH, "The answer is held to a form.", "either")
    think: bool | None = setting("", SWITCH, "The model reasons first.", "either")
    images: bool | None = setting("", SWITCH, "Images or audio are in the prompt.", "either")
    attachments: bool | None = setting("", SWITCH, "Files are in the prompt.", "either")
    prompt_tokens: int | None = setting("", number(TOKEN_COUNT), "The prompt has so many tokens, or more.", "any")
    pattern: str | None = setting("", TEXT, "An expression (Python's) that the question matches somewhere.", "any text")

    def holds(self, facts: Facts) -> bool:
        """Return whether all conditions hold."""
        flags = ("tools", "schema", "think", "images", "attachments")
        if any(getattr(self, one) not in (None, getattr(facts, one)) for one in flags):
            return False
        if self.prompt_tokens is not None and facts.prompt_tokens < self.prompt_tokens:
            return False
        return self.pattern is None or re.search(self.pattern, facts.question[:_SEARCHED]) is not None
# fmt: on


@dataclass(frozen=True, slots=True)
class Facts:
    """A question as skills see it. `attachments` and `results`: anywhere in the prompt; `results`: of tools.

    `images`: images or audio; `sees` and `hears` say which senses they take.
    """

    question: str
    prompt_tokens: int
    tools: bool = False
    schema: bool = False
    think: bool = False
    images: bool = False
    attachments: bool = False
    results: bool = False
    sees: bool = False
    hears: bool = False


@dataclass(frozen=True, slots=True)
class Rules:
    """The router of a config: the names of models, the skills in order, and the endpoints that it may ask."""

    router: Router
    skills: tuple[Skill, ...]
    endpoints: Mapping[str, Endpoint]
    big: tuple[str, ...]

    @property
    def remote(self) -> str:
        return self.router.remote or "never"

    @property
    def models(self) -> tuple[str, ...]:
        """All that may answer: `small`, then names."""
        return tuple(
            dict.fromkeys([SMALL, *self.big, *(one.model or SMALL for one in self.skills if one.model != BIG)])
        )

    def stays_here(self, name: str, facts: Facts) -> str:
        """Return why what is asked may not be sent to an endpoint; empty if it may, or if `name` is no endpoint."""
        if name not in self.endpoints:
            return ""
        sends = self.endpoints[name].sends or ()
        if self.remote == "never":
            return "gets no text from here"
        if (facts.attachments or facts.images) and ATTACHMENTS not in sends:
            return "gets no attachments"
        if (facts.results or facts.tools) and RESULTS not in sends:
            return "gets no tool results"
        return ""


def rules_of(loaded: Loaded, endpoints: Mapping[str, Endpoint]) -> Rules:
    """Return the router of a config. Raises ConfigError for one that is incomplete or names what there is not."""
    file = loaded.places.config
    router = read_table(Router, loaded.router, f"[router] in {file}")
    if not router.big:
        raise ConfigError(f"{_EXAMPLE} {file} (docs/router.md).")
    if router.cascade == "logprob" and router.certainty is None:
        raise ConfigError(
            f'cascade = "logprob" in {file} needs certainty, the mean log-probability below which the small model '
            "hands over. It differs from model to model: with certainty = -100 --stats shows that of each answer."
        )
    skills = []
    for place, said in enumerate(loaded.skills, 1):
        where = f"[[skill]] {place} in {file}"
        skill = read_table(Skill, said, where)
        if skill.name is None or skill.model is None:
            raise ConfigError(f'{where} needs a name and a model: name = "long", model = "big".')
        if skill.model not in (SMALL, BIG, *endpoints):
            there = ", ".join([SMALL, BIG, *endpoints])
            raise ConfigError(f"{where} leads to '{skill.model}': it may lead to {there}.")
        try:
            re.compile(skill.pattern or "")
        except re.error as error:
            raise ConfigError(f"pattern in {where} is no expression: {error}.") from None
        skills.append(skill)
    return Rules(router, tuple(skills), endpoints, router.big)


def small_of(loaded: Loaded) -> Loaded:
    """Return settings in which the small model stands in place of the router. Raises ConfigError."""
    settings = loaded.settings
    if settings.model != AUTO or endpoint_of(loaded) is not None:
        return loaded
    small = rules_of(loaded, endpoints_of(loaded)).router.small
    return replace(loaded, settings=replace(settings, model=small))


@dataclass(frozen=True, slots=True)
class Route:
    """The models to try in order, the skill that decided, and those left out, each with its obstacle."""

    order: tuple[str, ...]
    why: str
    passed: tuple[tuple[str, str], ...] = ()


def route(rules: Rules, facts: Facts, obstacles: Mapping[str, str], current: str | None = None) -> Route:
    """Choose by the first skill that holds; else `current`, which answered the turn before, goes on, or the small one.

    Behind the chosen model come the big ones and the small one, should it fail. `obstacles`: names that cannot answer
    this, with a phrase that follows the name. The order is empty if nobody can.
    """
    skill = next((one for one in rules.skills if one.holds(facts)), None)
    if skill is not None:
        wanted, why = skill.model or SMALL, skill.name or ""
    elif current is not None:
        wanted, why = current, "as before" if current != SMALL else "no skill"
    else:
        wanted, why = SMALL, "no skill"
    order = dict.fromkeys([*(rules.big if wanted == BIG else [wanted]), *rules.big, SMALL])
    able = [one for one in order if not obstacles.get(one)]
    before = order if not able else [*order][: [*order].index(able[0])]
    return Route(tuple(able), why, tuple((one, obstacles[one]) for one in before))


def reason(answered: str, why: str, passed: Sequence[tuple[str, str]]) -> str:
    """Return who answered and why, in a line: `e2b: code, but team did not answer (429)`."""
    others = " and ".join(f"{name} {obstacle}" for name, obstacle in passed)
    return f"{answered}: {why}, but {others}" if others else f"{answered}: {why}"
