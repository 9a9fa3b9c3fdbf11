"""The part of JSON Schema that schema.json uses, so that tests need no library for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

KNOWN = {
    "$schema", "$defs", "$ref", "title", "description", "type", "properties", "required", "additionalProperties",
    "items", "minItems", "maxItems", "enum", "const", "anyOf",
}  # fmt: skip
TYPES: dict[str, Any] = {
    "object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool,
    "null": type(None),
}  # fmt: skip


def problems(value: Any, schema: Mapping[str, Any], root: Mapping[str, Any], at: str = "$") -> Iterator[str]:
    """Everything in which `value` breaks `schema`."""
    assert schema.keys() <= KNOWN, f"{at}: the validator does not know {schema.keys() - KNOWN}"
    if "$ref" in schema:
        yield from problems(value, root["$defs"][schema["$ref"].removeprefix("#/$defs/")], root, at)
    if "const" in schema and value != schema["const"]:
        yield f"{at} is not {schema['const']}"
    if "enum" in schema and not any(value == one and type(value) is type(one) for one in schema["enum"]):
        yield f"{at} is none of {schema['enum']}"
    if "anyOf" in schema and all(list(problems(value, one, root, at)) for one in schema["anyOf"]):
        yield f"{at} fits no alternative"
    if "type" in schema:
        names = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        if not any(is_a(value, name) for name in names):
            yield f"{at} is no {names}, but {value!r:.40}"
            return
    if isinstance(value, dict):
        yield from in_object(value, schema, root, at)
    if isinstance(value, list):
        if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
            yield f"{at} has {len(value)} items"
        for number, item in enumerate(value):
            yield from problems(item, schema.get("items", {}), root, f"{at}[{number}]")


def is_a(value: Any, name: str) -> bool:
    return isinstance(value, TYPES[name]) and (name == "boolean" or not isinstance(value, bool))


def in_object(value: dict[str, Any], schema: Mapping[str, Any], root: Mapping[str, Any], at: str) -> Iterator[str]:
    properties = schema.get("properties", {})
    yield from (f"{at} lacks {key}" for key in schema.get("required", []) if key not in value)
    more = schema.get("additionalProperties", True)
    for key, item in value.items():
        if key in properties:
            yield from problems(item, properties[key], root, f"{at}.{key}")
        elif more is False:
            yield f"{at} has the unknown {key}"
        elif isinstance(more, Mapping):
            yield from problems(item, more, root, f"{at}.{key}")
