"""Declarations of tools in the form that Gemma's templates can write."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mlxmtp.engine.endless import referenced
from mlxmtp.errors import UsageError

TOOL_NAME = re.compile(r"[A-Za-z0-9_.:/-]{1,128}")
KEY = re.compile(r"[^\0{}\[\],:]+")
"""Names of arguments that a call can have: templates write them without quotation marks."""
_WRITTEN = frozenset({"type", "description", "properties", "required", "items", "enum", "nullable"})
"""Keywords of a schema that templates write; what others say goes into the description."""
_SILENT = frozenset({"$schema", "$id", "$defs", "definitions", "$ref", "title", "examples", "$comment", "strict"})
_LIMITS: Mapping[str, Sequence[str]] = {
    "integer": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    "string": ("minLength", "maxLength"),
    "array": ("minItems", "maxItems"),
}
"""Keywords that no template writes, by the type they belong to: grammars of calls know them (`call_grammar.py`)."""
_FAR = 1e17
_DEEPEST, _LARGEST = 32, 1000
"""Levels of a schema, and schemas in it, after references have been followed."""
_LONGEST, _MOST_SAID = 10_000, 100_000
"""Characters of a description, and of all of them."""
_ROOT = frozenset({"#"})  # the reference to the whole schema, in which everything is
_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}

Declaration = dict[str, Any]


class Wider(dict[str, Any]):
    """A schema that allows more than the one type that templates write; grammars hold calls to the type `held`."""

    def __init__(self, written: Mapping[str, Any], held: str) -> None:
        super().__init__(written)
        self.held = {"type": held}


def declaration(name: str, description: str, parameters: Mapping[str, Any] | None, path: str) -> Declaration:
    """Return a declaration as templates read it. Raises UsageError, which names `path`, for a schema too large."""
    schema = {"type": "object", "properties": {}, **(parameters or {})}
    written = _Writable(schema, path).of(schema)
    if not written.get("properties") and schema.get("additionalProperties"):
        written["additionalProperties"] = True  # a tool that takes whatever it is given; others take nothing then
    return {"type": "function", "function": {"name": name, "description": description, "parameters": written}}


def unwritable(schema: Mapping[str, Any], needed: bool = True) -> Iterator[tuple[str, bool]]:
    """Yield the names in a declared schema that no call can have, each with whether no call is right without it."""
    for name, inner in schema.get("properties", {}).items():
        must = needed and not isinstance(schema, Wider) and name in schema.get("required", ())
        if KEY.fullmatch(name):
            yield from unwritable(inner, must)
        else:
            yield name, must
    if "items" in schema:
        yield from unwritable(schema["items"], needed=False)


class _Writable:
    """Schemas that say the same with the keywords that templates write.

    Templates read `type` as one word and pass over $ref, anyOf, limits and formats: so references are put in place, the
    first branch stands for all, and the rest is said in the description. Where that would refuse right values, "any" is
    the type: in circles that are no plain objects, and for the items of a tuple if they differ. What has several types
    or branches, or no type, is written as before and is `Wider`.
    """

    def __init__(self, root: Mapping[str, Any], path: str) -> None:
        self._root, self._path = root, path
        self._left, self._said = _LARGEST, 0

    def of(self, schema: Any, depth: int = 0, inside: frozenset[str] = _ROOT) -> dict[str, Any]:
        """Return a schema; `inside` are the references that led to it, which a circle would follow for ever."""
        self._left -= 1
        if self._left < 0 or depth > _DEEPEST:
            raise UsageError(f"{self._path} is too large: {_LARGEST} schemas and {_DEEPEST} levels at most.")
        schema, inside = resolved(schema, self._root, inside)
        branch, others, through, led = self._branch(schema, inside)
        merged = _joined(schema, branch)
        kind, nullable = _type_of(merged, self._root)
        found: dict[str, Any] = {"type": kind}
        if nullable or any(one.get("type") == "null" for one in others):
            found["nullable"] = True
        if kind == "object":
            properties = merged.get("properties")
            if isinstance(properties, dict):
                found["properties"] = {
                    key: self.of(value, depth + 1, led.get(id(value), inside)) for key, value in properties.items()
                }
            found["required"] = [name for name in _list(merged, "required") if isinstance(name, str)]
        if kind == "array":
            first, rest = tuple_of(merged)
            if first:
                some = [*first, rest] if isinstance(rest, dict) else first
                found["items"] = _common([self.of(one, depth + 1, through) for one in some])
            else:
                found["items"] = self.of(rest, depth + 1, through)
        values = merged.get("enum", [merged["const"]] if "const" in merged else None)
        if isinstance(values, list) and kind in ("string", "integer"):
            wanted = str if kind == "string" else int
            found["enum"] = [one for one in values if isinstance(one, wanted) and not isinstance(one, bool)]
        found |= {key: limit for key in _LIMITS.get(kind, ()) if (limit := limit_of(merged, key)) is not None}
        if description := _described(merged, values if kind != "string" else None, others)[:_LONGEST]:
            self._said += len(description)
            if self._said > _MOST_SAID:
                raise UsageError(f"{self._path} is too large: its descriptions have over {_MOST_SAID:,} characters.")
            found["description"] = description
        found = {key: value for key, value in found.items() if value != []}
        held = _held(schema, merged, kind, [one for one in others if one.get("type") != "null"])
        return Wider(found, held) if held else found

    def _branch(
        self, schema: Mapping[str, Any], inside: frozenset[str]
    ) -> tuple[dict[str, Any], list[dict[str, Any]], frozenset[str], dict[int, frozenset[str]]]:
        """Return the branch of anyOf, oneOf or allOf that stands for the schema, the others, what led to it, and what
        led to each of its properties, by `id`."""
        joint, through, led = dict[str, Any](), inside, dict[int, frozenset[str]]()
        options = [resolved(one, self._root, inside) for one in _list(schema, "anyOf") or _list(schema, "oneOf")]
        first = next((one for one in options if one[0].get("type") != "null"), ({}, inside))
        for found, way in [*(resolved(part, self._root, inside) for part in _list(schema, "allOf")), first]:
            joint, through = _joined(joint, found), through | way
            if isinstance(properties := found.get("properties"), dict):
                led |= {id(one): way for one in properties.values()}
        others = [one for one, _ in options if one is not first[0]]
        return joint, [{key: one[key] for key in one if key != "$ref"} for one in others], through, led


def _joined(schema: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return a schema with the keywords of both, those of `other` first; it has the properties of both."""
    joined = {**schema, **other}
    if all(isinstance(one.get("properties"), dict) for one in (schema, other)):
        joined["properties"] = {**schema["properties"], **other["properties"]}
    if required := [name for name in _list(schema, "required") + _list(other, "required") if isinstance(name, str)]:
        joined["required"] = [*dict.fromkeys(required)]
    return joined


def resolved(
    schema: Any, root: Mapping[str, Any], inside: frozenset[str] = frozenset()
) -> tuple[dict[str, Any], frozenset[str]]:
    """Follow references within `root`, beyond those `inside` which we are; one that leads nowhere stands for anything.

    Return the schema and all references that led to it. It has a $ref only where that leads in a circle.
    """
    schema = schema if isinstance(schema, dict) else {}
    while isinstance(reference := schema.get("$ref"), str) and reference not in inside:
        found = referenced(root, reference)
        rest = {key: value for key, value in schema.items() if key != "$ref"}
        schema, inside = {**(found if isinstance(found, dict) else {}), **rest}, inside | {reference}
    return schema, inside


def tuple_of(schema: Mapping[str, Any]) -> tuple[list[Any], Any]:
    """Return the schemas of the first items of an array, and that of all others."""
    if isinstance(items := schema.get("items"), list):  # as drafts before 2020 have it
        return items, schema.get("additionalItems")
    return _list(schema, "prefixItems"), items


def _common(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the type that all items of a tuple have, with what is inside it."""
    kept = ("type", "nullable")
    kinds = [
        one if one["type"] in ("array", "object") else {key: one[key] for key in one if key in kept} for one in items
    ]
    found = kinds[0] if all(one == kinds[0] for one in kinds) else {"type": "any"}
    return Wider(found, "any") if any(isinstance(one, Wider) for one in items) else found


def limit_of(schema: Mapping[str, Any], key: str) -> float | None:
    """Return a number that limits a value; None for what is none, or so large that it limits nothing."""
    value: Any = schema.get(key)
    return value if type(value) in (int, float) and abs(value) <= _FAR else None


def _list(schema: Mapping[str, Any], key: str) -> list[Any]:
    value = schema.get(key)
    return value if isinstance(value, list) else []


def _type_of(schema: Mapping[str, Any], root: Mapping[str, Any]) -> tuple[str, bool]:
    """Return one type, and whether null is allowed beside it."""
    kind = schema.get("type")
    kinds = [one for one in (kind if isinstance(kind, list) else [kind]) if isinstance(one, str)]
    named = [one for one in kinds if one != "null"]
    if named:
        return named[0], "null" in kinds or schema.get("nullable") is True
    values = schema.get("enum", [schema.get("const")])
    value = values[0] if isinstance(values, list) and values else None
    unknown = "string"
    if isinstance(reference := schema.get("$ref"), str):  # a circle
        found = referenced(root, reference)
        unknown = "object" if isinstance(found, dict) and found.get("type") == "object" else "any"
    shape = "object" if "properties" in schema else "array" if "items" in schema else unknown
    return _TYPES.get(type(value), shape), "null" in kinds


def _held(own: Mapping[str, Any], merged: Mapping[str, Any], kind: str, others: Sequence[Mapping[str, Any]]) -> str:
    """Return the type to hold calls to where what is written says less; empty where it says all.

    `own` is a schema without its branches, `merged` with the first of them, which is written with the type `kind`.
    """
    kinds = _kinds(own)
    if not kinds:
        each = [_kinds(merged) or ({kind} if "$ref" in merged else set()), *map(_kinds, others)]
        kinds = set().union(*each) if all(each) else set()
    if kinds == {"integer", "number"}:
        return "number"
    if len(kinds) != 1:
        return "any"
    if kinds == {"null"}:
        return "null"
    if not others or own.get("properties") or "items" in own:  # their branches only narrow them
        return ""
    return "any" if kinds == {"array"} else kinds.pop()


def _kinds(schema: Mapping[str, Any]) -> set[str]:
    """Return the types that a schema allows, null only if it is alone; none where it does not say."""
    kind, values = schema.get("type"), schema.get("enum", [schema["const"]] if "const" in schema else [])
    if kinds := {one for one in (kind if isinstance(kind, list) else [kind]) if isinstance(one, str)}:
        return kinds - {"null"} or kinds
    if isinstance(values, list) and values:
        return {_TYPES.get(type(one), "null") for one in values}
    return {"object"} if "properties" in schema else {"array"} if "items" in schema else set()


def _described(schema: Mapping[str, Any], values: Any, others: Sequence[Mapping[str, Any]]) -> str:
    description = schema.get("description")
    parts = [description] if isinstance(description, str) and description else []
    if values is not None:
        parts.append(f"One of {_json(values)}.")
    rest = [one for one in others if one.get("type") != "null"]
    if rest:
        parts.append(f"Or: {_json(rest)}.")
    left = {key: value for key, value in schema.items() if key not in _WRITTEN | _SILENT | {"const"}}
    for key in ("anyOf", "oneOf", "allOf"):
        left.pop(key, None)
    if left.get("additionalProperties") in (True, False, {}):
        del left["additionalProperties"]
    if left:
        parts.append("(" + ", ".join(f"{key}: {_json(value)}" for key, value in left.items()) + ")")
    return " ".join(part for at, part in enumerate(parts) if at == 0 or part not in parts[0])  # said already


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
