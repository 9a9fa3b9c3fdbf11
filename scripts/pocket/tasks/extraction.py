# ruff: noqa: E501  (a row of a table is read best as one line)
"""Sentences with data in them, and the data as flat JSON under a schema.

Every field has several names and clauses; the last clause of each is kept for measuring.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from scripts.pocket.tasks import values
from scripts.pocket.tasks.task import Ask, Say, Task

_ASKED = (
    "Extract {keys} as JSON", "Give me {keys} as JSON", "{keys} as JSON", "Extract {keys}", "What are {keys}?",
    "Return {keys}", "Fill in {keys}", "I need {keys} in JSON", "Write {keys} as a JSON object",
)  # fmt: skip
_UNNAMED = (
    "", "", "Extract the data", "What does it say?", "As JSON", "Extract this as JSON", "Give me the data as JSON",
    "Fill in the form", "Put this into the form", "Read out the fields", "Structured, please",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Field:
    """Names of a value, its JSON type, clauses with {v}, and a way to draw it."""

    names: tuple[str, ...]
    type: str
    clauses: tuple[str, ...]
    draw: Callable[[Random], Any]


_PERSON = (
    _Field(("age", "years", "age_years"), "integer", ("is {v} years old", "is {v}", "has the age of {v}", "turned {v} this year"), lambda rng: rng.randint(1, 99)),
    _Field(("city", "town", "home", "place"), "string", ("lives in {v}", "comes from {v}", "has a flat in {v}", "is at home in {v}"), values.place),
    _Field(("job", "profession", "work", "occupation"), "string", ("works as a {v}", "is a {v}", "has a job as a {v}", "earns a living as a {v}"), values.job),
    _Field(("email", "mail", "address", "contact"), "string", ("can be reached at {v}", "has the address {v}", "writes from {v}", "answers mail to {v}"), values.address),
    _Field(("children", "kids", "number_of_children"), "integer", ("has {v} children", "is a parent of {v}", "brought up {v} kids"), lambda rng: rng.randint(1, 9)),
    _Field(("height", "height_cm", "size"), "integer", ("is {v} cm tall", "measures {v} cm", "stands {v} cm high"), lambda rng: rng.randint(90, 215)),
    _Field(("pet", "animal"), "string", ("has a {v}", "keeps a {v}", "owns a {v}"), lambda rng: rng.choice(("cat", "dog", "horse", "parrot", "rabbit", "snake", "tortoise", "fish"))),
)  # fmt: skip
_ORDER = (
    _Field(("item", "product", "article", "what"), "string", ("ordered a {v}", "bought a {v}", "wants a {v}", "asked for a {v}"), values.thing),
    _Field(("price", "cost", "amount", "total"), "number", ("for {v} euros", "at a price of {v} euros", "paid {v} euros", "which cost {v} euros"), values.amount),
    _Field(("date", "day", "when", "ordered_on"), "string", ("on {v}", "dated {v}", "the day being {v}"), values.day),
    _Field(("order", "number", "id", "reference"), "string", ("under number {v}", "with order {v}", "as reference {v}"), values.number),
    _Field(("quantity", "count", "pieces"), "integer", ("{v} pieces", "{v} of them", "{v} in all"), lambda rng: rng.randint(2, 400)),
    _Field(("colour", "color"), "string", ("in {v}", "the {v} one", "coloured {v}"), values.colour),
    _Field(("city", "to", "destination"), "string", ("to be sent to {v}", "delivered to {v}", "shipped to {v}"), values.place),
    _Field(("time", "hour"), "string", ("at {v}", "around {v}", "by {v}"), values.clock),
)  # fmt: skip
_NAMES = ("name", "person", "who", "customer", "user")
_STARTS = ("{n}", "{n}", "Our customer {n}", "Mr {n}", "My friend {n}", "{n} from the team")
_FLAGS = (
    (("paid", "is_paid"), "it is paid", "it is not paid yet"), (("urgent", "express"), "it is urgent", "it is not urgent"),
    (("member", "is_member"), "a member", "not a member"), (("gift", "is_gift"), "it is a gift", "it is no gift"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Extraction:
    """A text, the data in it, and a schema for that."""

    text: str
    asked: str
    data: dict[str, Any]
    types: dict[str, str]

    @property
    def schema(self) -> dict[str, Any]:
        """A closed flat schema, in the order of the data."""
        properties = {key: {"type": kind} for key, kind in self.types.items()}
        return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}

    @property
    def question(self) -> str:
        """Text and instruction as `ask` joins them, or in one line."""
        return f"{self.text}\n\n{self.asked}" if self.asked else self.text


def extraction(rng: Random, *, held_out: bool = False) -> Extraction:
    """Return a sentence with two to five values; the held-out ones say at least one of them in other words."""
    name = values.person(rng)
    fields = rng.sample(_PERSON, rng.choice((1, 2, 2, 3, 3, 4)))
    if rng.random() < 0.5:
        fields = [_ORDER[0], *rng.sample(_ORDER[1:], rng.choice((0, 1, 1, 2, 2, 3)))]
    unseen = rng.randrange(len(fields)) if held_out else -1
    clauses, data, types = [], {}, {}
    key = rng.choice(_NAMES)
    if rng.random() < 0.85:
        data[key], types[key] = name, "string"
    for i, field in enumerate(fields):
        if (key := rng.choice(field.names)) in data:
            continue
        value = field.draw(rng)
        clause = field.clauses[-1] if i == unseen else rng.choice(field.clauses[:-1])
        clauses.append(clause.format(v=value))
        data[key], types[key] = value, field.type
    if rng.random() < 0.2:
        names, yes, no = rng.choice(_FLAGS)
        key, value = rng.choice(names), rng.random() < 0.5
        clauses.append(yes if value else no)
        data[key], types[key] = value, "boolean"
    text = f"{rng.choice(_STARTS).format(n=name)} {_joined(clauses, rng)}."
    order = list(data)
    if rng.random() < 0.4:
        rng.shuffle(order)
    named = rng.random() < 0.55
    keys = ", ".join(order[:-1]) + f" and {order[-1]}" if len(order) > 1 else order[0]
    asked = rng.choice(_ASKED).format(keys=keys) if named else rng.choice(_UNNAMED)
    return Extraction(text, asked, {key: data[key] for key in order}, {key: types[key] for key in order})


def _joined(clauses: list[str], rng: Random) -> str:
    if len(clauses) == 1:
        return clauses[0]
    return ", ".join(clauses[:-1]) + rng.choice((" and ", ", ", " and ")) + clauses[-1]


def task(rng: Random, *, held_out: bool = False) -> Task:
    """Return a question with a sentence, answered by JSON on one line."""
    found = extraction(rng, held_out=held_out)
    return Task((Ask(found.question), Say(json.dumps(found.data, ensure_ascii=False))))
