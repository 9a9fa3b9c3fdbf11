# ruff: noqa: E501  (a row of a table is read best as one line)
"""Conversations with tools: the program's own ones, and others made of verbs, nouns and arguments.

An eighth of the pairs of verb and noun, and some names of arguments, are kept for measuring.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Any
from zlib import crc32

from mlxmtp.app.tools.builtin import builtin, calculate
from mlxmtp.app.tools.toolbox import Toolbox
from scripts.pocket.patterns import expand, parse
from scripts.pocket.tasks import values
from scripts.pocket.tasks.task import Ask, Call, Result, Say, Step, Task
from scripts.pocket.words import ADJECTIVES, NOUNS, THINGS

HELD_OUT_EVERY = 8
NOTHING_FITS = "None of the tools here can do that."
_STRAY = 0.35
"""How often a request that no tool fits stands between those that one does."""
_SINGULAR = tuple(noun for noun in dict.fromkeys(NOUNS + THINGS) if " " not in noun and not noun.endswith("s"))
_POLITE = ("", "", "", "", "please ", "could you ", "can you ", "now ", "I'd like you to ")
_UNITS = ("euros", "km", "kg", "degrees", "percent", "minutes", "metres", "litres", "points", "days")
_REASONS = ("not found", "no permission", "no such name", "out of range", "the server does not answer", "timed out")


@dataclass(frozen=True, slots=True)
class _Verb:
    """A verb of names of tools; `requests` with {n}; `tells`: its result is something to be told."""

    name: str
    requests: tuple[str, ...]
    tells: bool = False


@dataclass(frozen=True, slots=True)
class _Kind:
    """An argument: its JSON type, names (the last one is held out), descriptions, phrases with {v}, and values."""

    type: str
    names: tuple[str, ...]
    about: tuple[str, ...]
    phrases: tuple[str, ...]
    draw: Callable[[Random], Any]


_TOLD = ("what is the {n}", "tell me the {n}", "show me the {n}", "I need the {n}", "what's the {n}")
_VERBS = (
    *(_Verb(name, _TOLD, tells=True) for name in ("get", "read", "fetch", "show", "lookup")),
    _Verb("find", ("find a {n}", "find the {n}", "look for a {n}", "search for a {n}"), tells=True),
    _Verb("check", ("check the {n}", "how is the {n}", "look at the {n}"), tells=True),
    _Verb("count", ("count the {n}s", "how many {n}s are there"), tells=True),
    _Verb("measure", ("measure the {n}", "how large is the {n}"), tells=True),
    _Verb("create", ("create a {n}", "make a new {n}", "I want a new {n}")),
    _Verb("add", ("add a {n}", "put in a {n}", "add the {n}")),
    _Verb("delete", ("delete the {n}", "remove the {n}", "get rid of the {n}")),
    _Verb("send", ("send the {n}", "send a {n}", "mail the {n}")),
    _Verb("book", ("book a {n}", "reserve a {n}")),
    _Verb("order", ("order a {n}", "buy a {n}", "get me a {n}")),
    _Verb("start", ("start the {n}", "switch on the {n}", "turn on the {n}")),
    _Verb("stop", ("stop the {n}", "switch off the {n}", "turn off the {n}")),
    _Verb("open", ("open the {n}",)),
    _Verb("close", ("close the {n}", "shut the {n}")),
    _Verb("set", ("set the {n}", "set a {n}")),
    _Verb("update", ("update the {n}", "change the {n}")),
    _Verb("move", ("move the {n}", "bring the {n}")),
    _Verb("print", ("print the {n}", "print a {n}")),
    _Verb("share", ("share the {n}",)),
    _Verb("cancel", ("cancel the {n}", "call off the {n}")),
    _Verb("schedule", ("schedule a {n}", "plan a {n}")),
    _Verb("save", ("save the {n}", "keep the {n}")),
    _Verb("rename", ("rename the {n}",)),
    _Verb("paint", ("paint the {n}",)),
    _Verb("clean", ("clean the {n}", "wash the {n}")),
)
_KINDS = (
    _Kind("string", ("city", "town", "place", "location", "where", "destination"), ("Name of the town.", "Where.", ""), ("in {v}", "near {v}", "for {v}"), values.place),
    _Kind("string", ("name", "person", "user", "customer", "who", "recipient"), ("Name of the person.", "Who.", ""), ("for {v}", "of {v}", "by {v}"), values.person),
    _Kind("string", ("day", "date", "when", "on_day", "deadline"), ("The day.", "Date.", ""), ("on {v}", "for {v}"), values.day),
    _Kind("string", ("time", "at", "clock", "hour", "begin"), ("Time of day.", ""), ("at {v}",), values.clock),
    _Kind("integer", ("count", "number", "times", "amount", "n", "quantity"), ("How many.", "Number.", ""), ("{v} times", "with count {v}", "with {v}"), values.count),
    _Kind("integer", ("days", "duration", "nights", "length"), ("Number of days.", ""), ("for {v} days",), lambda rng: rng.randint(1, 99)),
    _Kind("integer", ("minutes", "delay", "wait", "timeout"), ("Minutes.", ""), ("in {v} minutes", "after {v} minutes"), lambda rng: rng.randint(1, 240)),
    _Kind("number", ("price", "value", "cost", "budget"), ("Price in euros.", ""), ("for {v} euros", "at {v} euros"), values.amount),
    _Kind("number", ("percent", "share", "level", "rate"), ("In percent.", ""), ("at {v} percent", "to {v} percent"), values.amount),
    _Kind("number", ("weight", "kilos", "mass"), ("Weight in kilograms.", ""), ("of {v} kg", "with {v} kg"), values.amount),
    _Kind("string", ("title", "text", "message", "subject", "caption"), ("The text.", "Title.", ""), ('"{v}"', "called {v}", "that says {v}"), values.phrase),
    _Kind("string", ("path", "file", "filename", "source"), ("Path of the file.", ""), ("from {v}", "in {v}"), values.path),
    _Kind("string", ("email", "address", "to", "mailbox"), ("E-mail address.", ""), ("to {v}",), values.address),
    _Kind("string", ("url", "link", "site", "page"), ("Web address.", ""), ("at {v}", "from {v}"), values.url),
    _Kind("string", ("id", "code", "order", "ticket", "reference"), ("Number of the order.", "Its id.", ""), ("number {v}", "with id {v}", "{v}"), values.number),
    _Kind("string", ("color", "colour", "paint", "shade"), ("A colour.", ""), ("in {v}", "and make it {v}"), values.colour),
    _Kind("string", ("item", "product", "object", "article"), ("What it is for.", ""), ("for the {v}", "with a {v}"), values.thing),
)  # fmt: skip
_CHOICES = (("small", "medium", "large"), ("celsius", "fahrenheit"), ("low", "high"), ("daily", "weekly", "monthly"), ("fast", "slow"), ("left", "right"), ("open", "closed"), ("north", "south", "east", "west"))  # fmt: skip
_CHOICE_NAMES = ("size", "unit", "mode", "kind", "speed", "side", "type", "state", "option")
_FLAGS = ("urgent", "quiet", "public", "private", "full", "hidden", "loud", "free")


@dataclass(frozen=True, slots=True)
class _Tool:
    """A tool made up, with a request for it."""

    declared: Mapping[str, Any]
    request: str
    arguments: Mapping[str, Any]
    noun: str
    tells: bool


def task(rng: Random, *, held_out: bool = False) -> Task:
    """Return a conversation with tools; the held-out ones ask for tools that no other conversation declares.

    Declarations are long: in training several requests follow them.
    """
    draw = rng.random()
    if held_out:
        return _made_up(rng, held_out=True)
    if draw < 0.20:
        return own_tools(rng, requests=rng.choice((1, 2, 3)))
    if draw < 0.25:
        return _convert(rng)
    if draw < 0.60:
        return _fit_or_not(rng) if draw < 0.50 else nothing_fits(rng)
    return _made_up(rng, held_out=False, all_asked=rng.random() < 0.7)


def some_tools(rng: Random) -> tuple[Mapping[str, Any], ...]:
    """Return declarations that may stand before any question."""
    if rng.random() < 0.3:
        return _chosen(rng)[0]
    return tuple(_tool(rng, held_out=False).declared for _ in range(rng.randint(1, 3)))


def _made_up(rng: Random, *, held_out: bool, all_asked: bool = False) -> Task:
    """`all_asked`: a request for each of the tools, in any order, and now and then one that none of them fits."""
    wanted = _tool(rng, held_out=held_out)
    others = [
        one
        for one in (_tool(rng, held_out=held_out) for _ in range(rng.choice((0, 1, 1, 2, 3))))
        if one.noun != wanted.noun
    ]
    declared = [wanted.declared, *(one.declared for one in others)]
    rng.shuffle(declared)
    steps = list(_requested(wanted, rng))
    for one in others if all_asked else ():
        stray = _tool(rng, held_out=held_out)
        if rng.random() < _STRAY and stray.noun not in (tool.noun for tool in (wanted, *others)):
            steps += (Ask(_spoken(stray.request, rng)), Say(NOTHING_FITS))
        steps += _requested(one, rng)
    return Task(tuple(steps), tuple(declared))


def _fit_or_not(rng: Random) -> Task:
    """Short declarations, then a request for each of them among as many that none of them fits."""
    short = {one.noun: one for one in (_tool(rng, held_out=False, most=1) for _ in range(rng.choice((1, 1, 2, 3))))}
    steps = [_requested(one, rng) for one in short.values()]
    strays = [_tool(rng, held_out=False, most=2) for _ in range(len(short) + 1)]
    steps += [(Ask(_spoken(one.request, rng)), Say(NOTHING_FITS)) for one in strays if one.noun not in short]
    rng.shuffle(steps)
    return Task(tuple(step for some in steps for step in some), tuple(one.declared for one in short.values()))


def _requested(tool: _Tool, rng: Random) -> tuple[Step, ...]:
    result, answer = _outcome(tool, rng)
    name = tool.declared["function"]["name"]
    return Ask(_spoken(tool.request, rng)), Call(name, tool.arguments), Result(name, result), Say(answer)


def nothing_fits(rng: Random, *, held_out: bool = False) -> Task:
    """Return a request for a tool that is not there."""
    wanted = _tool(rng, held_out=held_out)
    others = [
        one for one in (_tool(rng, held_out=held_out) for _ in range(rng.randint(1, 3))) if one.noun != wanted.noun
    ]
    declared = tuple(one.declared for one in others) or _chosen(rng)[0]
    return Task((Ask(_spoken(wanted.request, rng)), Say(NOTHING_FITS)), declared)


def _tool(rng: Random, *, held_out: bool, most: int = 3) -> _Tool:
    """`most`: how many arguments it has at most."""
    while True:
        verb, noun = rng.choice(_VERBS), rng.choice(_SINGULAR)
        if (crc32(f"{verb.name} {noun}".encode()) % HELD_OUT_EVERY == 0) == held_out:
            break
    nameless = rng.random() < 0.12
    name = _joined(rng, *((values.word(rng), values.word(rng)) if nameless else (verb.name, noun)))
    properties: dict[str, Any] = {}
    required: list[str] = []
    arguments: dict[str, Any] = {}
    said: list[str] = []
    for kind in rng.sample(range(len(_KINDS) + 4), min(most, rng.choice((0, 1, 1, 1, 2, 2, 3)))):
        key, schema, value, phrase = _argument(rng, kind, held_out=held_out)
        if key in properties:
            continue
        properties[key] = schema
        if rng.random() < 0.85:
            arguments[key] = value
            said.append(phrase)
        if key in arguments and rng.random() < 0.8:
            required.append(key)
    about = f"{verb.name.capitalize()}s {rng.choice(('the', 'a', 'one'))} {noun}."
    if not nameless and rng.random() < 0.25:
        about = rng.choice(("", f"{verb.name} {noun}", f"For the {noun}."))
    parameters: dict[str, Any] = {"type": "object", "properties": properties}
    parameters |= {"required": required} if required else {}
    declared = {"type": "function", "function": {"name": name, "description": about, "parameters": parameters}}
    request = " ".join((rng.choice(verb.requests).format(n=noun), *said))
    return _Tool(declared, request, arguments, noun, verb.tells)


def _joined(rng: Random, verb: str, noun: str) -> str:
    styles = (f"{verb}{noun.capitalize()}", f"{noun}_{verb}", f"{noun}.{verb}", noun, *(f"{verb}_{noun}",) * 4)
    return rng.choice(styles)


def _argument(rng: Random, number: int, *, held_out: bool) -> tuple[str, dict[str, Any], Any, str]:
    """Return name, schema, value and words of an argument; among the held-out ones are names never seen in training."""
    if number == len(_KINDS):
        key, value = rng.choice(_FLAGS), rng.random() < 0.6
        return key, {"type": "boolean"}, value, key if value else f"not {key}"
    if number > len(_KINDS):
        choices, key = rng.choice(_CHOICES), rng.choice(_CHOICE_NAMES)
        value = rng.choice(choices)
        return (
            key,
            {"enum": list(choices), "type": "string"},
            value,
            rng.choice((f"{value}", f"in {value}", f"as {value}")),
        )
    kind = _KINDS[number]
    key = kind.names[-1] if held_out and rng.random() < 0.5 else rng.choice(kind.names[:-1])
    if rng.random() < 0.1:
        key = f"{rng.choice(('the', 'my', 'new', 'old'))}_{key}"
    about = rng.choice(kind.about)
    value = kind.draw(rng)
    schema = {"description": about, "type": kind.type} if about else {"type": kind.type}
    return key, schema, value, rng.choice(kind.phrases).format(v=value)


def _outcome(tool: _Tool, rng: Random) -> tuple[str, str]:
    """Return a result and the answer that tells it."""
    if rng.random() < 0.1:
        reason = rng.choice(_REASONS)
        return f"Error: {reason}", f"That did not work: {reason}."
    if tool.tells:
        result = rng.choice(
            (
                f"{values.amount(rng)} {rng.choice(_UNITS)}", str(values.count(rng)), values.phrase(rng), values.day(rng),
                f"{rng.choice(ADJECTIVES)}, {values.amount(rng)} {rng.choice(_UNITS)}", values.person(rng),
            )
        )  # fmt: skip
        if rng.random() < 0.2:
            key = rng.choice(("value", "result", tool.noun))
            return json.dumps({key: result}), f"The {tool.noun} is {result}."
        return result, f"The {tool.noun} is {result}."
    result = rng.choice(
        (
            "ok",
            "done",
            "true",
            f"saved as {values.count(rng)}",
            f"{tool.noun} {values.number(rng)}",
            f"id {values.count(rng)}",
        )
    )
    return result, f"Done: {result}."


def own_tools(rng: Random, requests: int = 1) -> Task:
    """Return a conversation with the program's own tools."""
    declared, names = _chosen(rng)
    steps = [step for _ in range(requests) for step in _OWN[rng.choice(names)](rng)]
    return Task(tuple(steps), declared)


@cache
def _declared(word: str) -> tuple[Mapping[str, Any], ...]:
    return tuple(Toolbox(builtin(word)).declarations)


def _chosen(rng: Random) -> tuple[tuple[Mapping[str, Any], ...], list[str]]:
    words = [word for word in ("time", "calculator", "files=.", "fetch") if rng.random() < 0.5] or ["calculator"]
    declared = tuple(one for word in words for one in _declared(word))
    return declared, [one["function"]["name"] for one in declared]


def _now(rng: Random) -> tuple[Step, ...]:
    when = f"{rng.choice(values.DAYS[:7])} {rng.randint(2024, 2032)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}"
    clock = f"{rng.randrange(24):02}:{rng.randrange(60):02}"
    kind = rng.choice(("time", "day"))
    asked = (
        _wording("(what time is it|what's the time|how late is it|tell me the time|the time)( now| please|)", rng)
        if kind == "time"
        else _wording(
            "(what day is (it|today)|which date is today|what is the date|what's the date|today's date)( now|)", rng
        )
    )
    answer = f"It is {clock}." if kind == "time" else f"Today is {when}."
    result = f"{when} {clock}:{rng.randrange(60):02} {rng.choice(('+0000', '+0100', '-0500', '+0530'))}"
    return Ask(asked), Call("now", {}), Result("now", result), Say(answer)


def _calculate(rng: Random) -> tuple[Step, ...]:
    many = rng.choice((2, 2, 2, 3))
    numbers = [
        str(values.amount(rng) if rng.random() < 0.2 else rng.randrange(2, 10 ** rng.randint(1, 4)))
        for _ in range(many)
    ]
    signs = [rng.choice("+-*/") for _ in numbers[1:]]
    spelled = {"+": "plus", "-": "minus", "*": "times", "/": "divided by"}
    expression, said = numbers[0], numbers[0]
    in_words = rng.random() < 0.5
    for sign, number in zip(signs, numbers[1:], strict=True):
        expression += f" {sign} {number}"
        said += f" {spelled[sign] if in_words else sign} {number}"
    asked = _wording(f"(what is|what's|how much is|calculate|compute|) {said}", rng)
    result = calculate(expression)
    return (
        Ask(asked),
        Call("calculate", {"expression": expression}),
        Result("calculate", result),
        Say(f"{expression} = {result}"),
    )


def _list(rng: Random) -> tuple[Step, ...]:
    folder = rng.choice((".", ".", f"{rng.choice(_SINGULAR)}", "src", "docs"))
    names = sorted({values.path(rng).rpartition("/")[2] for _ in range(rng.randint(1, 5))})
    where = rng.choice(("here", "in this folder", "")) if folder == "." else f"in {folder}"
    asked = _wording(
        f"(which files are {where}|list the files {where}|what is {where or 'here'}|show me the files {where}|what files are there {where})",
        rng,
    )
    told = f"There are {len(names)} files:" if len(names) > 1 else "There is one file:"
    answer = told + "".join(f"\n- {name}" for name in names)
    return Ask(asked), Call("list_files", {"path": folder}), Result("list_files", "\n".join(names)), Say(answer)


def _read(rng: Random) -> tuple[Step, ...]:
    path, text = values.path(rng), ". ".join(values.phrase(rng).capitalize() for _ in range(rng.randint(1, 2)))
    asked = _wording(f"(read|open|show me|print|what is in|what stands in|tell me the text of) {path}", rng)
    return Ask(asked), Call("read_file", {"path": path}), Result("read_file", text), Say(f"{path} says: {text}")


def _search(rng: Random) -> tuple[Step, ...]:
    text = rng.choice((values.word(rng), rng.choice(_SINGULAR)))
    found = [f"{values.path(rng)}:{rng.randint(1, 300)}" for _ in range(rng.randint(1, 3))]
    asked = _wording(
        f"(search for|where is|find|which files contain|look for) {text}( in the files| in my files|)", rng
    )
    lines = "\n".join(f"{where}: {values.phrase(rng)} {text}" for where in found)
    return (
        Ask(asked),
        Call("search_files", {"text": text}),
        Result("search_files", lines),
        Say(f"It is in {', '.join(found)}."),
    )


def _fetch(rng: Random) -> tuple[Step, ...]:
    address, text = values.url(rng), values.phrase(rng).capitalize()
    asked = _wording(f"(fetch|get|read|open|what is at|what does it say at) {address}", rng)
    return Ask(asked), Call("fetch", {"url": address}), Result("fetch", text), Say(f"The page says: {text}")


_OWN = {
    "now": _now, "calculate": _calculate, "list_files": _list, "read_file": _read, "search_files": _search, "fetch": _fetch,
}  # fmt: skip


def _convert(rng: Random) -> Task:
    """A conversion of units by somebody's own function."""
    words = rng.choice((("value", "from_unit", "to_unit"), ("amount", "source", "target"), ("number", "unit", "into")))
    types = ("number", "string", "string")
    properties = {word: {"type": kind} for word, kind in zip(words, types, strict=True)}
    name = rng.choice(("convert", "convert_units", "unit_converter", "units", "conversion"))
    parameters = {"type": "object", "properties": properties, "required": list(words)}
    about = rng.choice(
        ("Converts units.", "Convert a value from one unit to another.", "Converts one unit into another.")
    )
    declared = {"type": "function", "function": {"name": name, "description": about, "parameters": parameters}}
    given, wanted = rng.sample(rng.choice(_MEASURES), 2)
    value, result = values.amount(rng), values.amount(rng)
    asked = _wording(
        f"(convert {value} {given} (to|into) {wanted}|how many {wanted} are {value} {given}|what is {value} {given} in {wanted}|{value} {given} in {wanted})",
        rng,
    )
    others = [one.declared for one in (_tool(rng, held_out=False) for _ in range(rng.randint(0, 2)))]
    call = Call(name, dict(zip(words, (value, given, wanted), strict=True)))
    answer = Say(f"{value} {given} are {result} {wanted}.")
    return Task((Ask(asked), call, Result(name, str(result)), answer), (*others, declared))


_MEASURES = (
    ("miles", "kilometres", "metres", "feet", "inches", "yards"), ("kilograms", "pounds", "grams", "ounces"),
    ("celsius", "fahrenheit", "kelvin"), ("litres", "gallons", "cups"), ("euros", "dollars", "pounds", "yen"),
    ("hours", "minutes", "seconds", "days"),
)  # fmt: skip


def _wording(pattern: str, rng: Random) -> str:
    return _spoken(" ".join(expand(parse(pattern), rng).split()), rng)


def _spoken(text: str, rng: Random) -> str:
    """The request as somebody types it; values in it stay as they are."""
    text = rng.choice(_POLITE) + text
    if rng.random() < 0.5:
        text = text[:1].upper() + text[1:]
    return text + rng.choice(("", "", ".", "?", " please"))
