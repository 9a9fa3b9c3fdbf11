"""Finds forms of which no text has an end: every way through them comes back to itself.

The rules that can end are found as usual for context-free grammars, from those that end at once to those that need them
(Hopcroft, Ullman 1979, 4.4), because llguidance looks no further than the next token.
"""

import re
from collections.abc import Callable, Collection, Iterator
from typing import Any
from urllib.parse import unquote

_RULE = re.compile(r"^[ \t]*[?!]?([A-Za-z_]\w*)(?:\[[^\]\n]*\])?[ \t]*:(?!:)", re.MULTILINE)
_TOKEN = re.compile(
    r"""\s+|//[^\n]*                                       # nothing
      | (?P<text>"(?:\\.|[^"\\])*"i?|/(?:\\.|[^/\\\n])+/[a-z]*|<[^<>\s]+>)
      | (?P<name>[A-Za-z_]\w*)
      | (?P<maybe>[?*]|\{\s*0?\s*,[^}]*\}|~\s*0(?:\s*\.\.\s*\d+)?(?!\d))  # may be left out
      | (?P<times>\+|\{\s*[0-9][^}]*\}|~\s*[0-9]+(?:\s*\.\.\s*[0-9]+)?)
      | (?P<mark>[|()\[\]])""",
    re.VERBOSE,
)


def endless_rule(grammar: str) -> str | None:
    """Return `start` if no text of a Lark grammar ends; None also for what is not plain Lark."""
    heads = list(_RULE.finditer(grammar))
    ends = [*(head.start() for head in heads[1:]), len(grammar)]
    rules: dict[str, list[tuple[str, str]]] = {}
    for head, end in zip(heads, ends, strict=True) if heads else []:
        tokens = _tokens(grammar[head.end() : end])
        if tokens is None:
            return None
        rules[head[1]] = tokens
    elsewhere = {text for tokens in rules.values() for kind, text in tokens if kind == "name"} - set(rules)
    ending = _fixpoint(rules, lambda name, known: _alternatives(iter(rules[name]), known | elsewhere))
    return None if "start" not in rules or "start" in ending else "start"


def endless_reference(schema: Any) -> str | None:
    """Return a `$ref` that a document of a JSON schema would have to follow for ever."""
    references = {one["$ref"] for one in objects_in(schema) if isinstance(one.get("$ref"), str)}
    targets = {name: referenced(schema, name) for name in references}
    ending = _fixpoint(targets, lambda name, known: _ends(targets[name], known))
    return None if _ends(schema, ending) else min(references - ending)


def _fixpoint(names: Collection[str], ends: Callable[[str, set[str]], bool]) -> set[str]:
    """Return the names that end, given which others do."""
    ending: set[str] = set()
    while found := {name for name in names if name not in ending and ends(name, ending)}:
        ending |= found
    return ending


def _tokens(rule: str) -> list[tuple[str, str]] | None:
    found, at = list[tuple[str, str]](), 0
    while at < len(rule):
        match = _TOKEN.match(rule, at)
        if match is None:
            return None
        at = match.end()
        if match.lastgroup is not None:
            found.append((match.lastgroup, match[0]))
    return found


def _alternatives(tokens: Iterator[tuple[str, str]], ending: set[str]) -> bool:
    """Read up to a closing bracket: true if one of the alternatives can end."""
    some, items = False, list[bool]()
    for kind, text in tokens:
        if kind in ("text", "name"):
            items.append(kind == "text" or text in ending)
        elif text in "([":
            inner = _alternatives(tokens, ending)
            items.append(inner or text == "[")
        elif kind == "maybe" and items:
            items[-1] = True
        elif text == "|":
            some, items = some or all(items), []
        elif text in ")]":
            break
    return some or all(items)


def _ends(schema: Any, ending: set[str]) -> bool:
    """Return true if a document of a schema can end where the references in `ending` can."""
    if not isinstance(schema, dict):
        return True
    if schema.get("$ref", "") not in {"", *ending}:
        return False
    if not all(_ends(one, ending) for one in _listed(schema.get("allOf"))):
        return False
    for choices in (schema.get("anyOf"), schema.get("oneOf")):
        if choices and not any(_ends(one, ending) for one in _listed(choices)):
            return False
    kinds = {schema["type"]} if isinstance(schema.get("type"), str) else set(_listed(schema.get("type")))
    if "enum" in schema or "const" in schema or not kinds or kinds - {"object", "array"}:
        return True
    return ("object" in kinds and _object_ends(schema, ending)) or ("array" in kinds and _array_ends(schema, ending))


def _object_ends(schema: dict[str, Any], ending: set[str]) -> bool:
    properties = schema.get("properties")
    known = properties if isinstance(properties, dict) else {}
    others = schema.get("additionalProperties", True)
    return all(_ends(known.get(name, others), ending) for name in _listed(schema.get("required")))


def _array_ends(schema: dict[str, Any], ending: set[str]) -> bool:
    least, first = schema.get("minItems", 0), _listed(schema.get("prefixItems"))
    needed = [*first[:least], *([schema.get("items")] if least > len(first) else [])]
    return all(_ends(one, ending) for one in needed)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def objects_in(value: Any) -> Iterator[dict[str, Any]]:
    """Yield the objects in a document, those inside others included."""
    if isinstance(value, dict):
        yield value
    for one in value.values() if isinstance(value, dict) else _listed(value):
        yield from objects_in(one)


def referenced(schema: Any, reference: str) -> Any:
    """Return what a reference within the schema means; None for any other, and for one that leads nowhere."""
    if reference != "#" and not reference.startswith("#/"):
        return None
    for step in unquote(reference[1:]).split("/")[1:]:
        key = step.replace("~1", "/").replace("~0", "~")
        if isinstance(schema, list) and key.isdecimal() and int(key) < len(schema):
            schema = schema[int(key)]
        elif isinstance(schema, dict) and key in schema:
            schema = schema[key]
        else:
            return None
    return schema
