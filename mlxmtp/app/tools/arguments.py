"""Values beside their schema, arguments of calls above all: a server's model, or limits no grammar holds, break it."""

import json
import operator
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from math import inf
from typing import Any

from mlxmtp.engine.declarations import limit_of, resolved, tuple_of

_MOST, _DEEPEST = 10_000, 64
"""Schemas and levels that are looked at; a stranger's schema may branch without end, and what is beyond is allowed."""

_KINDS: Mapping[str, Callable[[Any], bool]] = {
    "string": lambda one: isinstance(one, str),
    "boolean": lambda one: isinstance(one, bool),
    "integer": lambda one: type(one) is int or (type(one) is float and one.is_integer()),
    "number": lambda one: type(one) in (int, float),
    "array": lambda one: isinstance(one, list),
    "object": lambda one: isinstance(one, dict),
    "null": lambda one: one is None,
}
_AT_LEAST, _AT_MOST = (operator.ge, "at least"), (operator.le, "at most")
_LIMITS: Mapping[str, Mapping[str, tuple[Callable[[float, float], bool], str]]] = {
    "": {
        "minimum": _AT_LEAST,
        "maximum": _AT_MOST,
        "exclusiveMinimum": (operator.gt, "more than"),
        "exclusiveMaximum": (operator.lt, "less than"),
    },
    " characters": {"minLength": _AT_LEAST, "maxLength": _AT_MOST},
    " items": {"minItems": _AT_LEAST, "maxItems": _AT_MOST},
    " properties": {"minProperties": _AT_LEAST, "maxProperties": _AT_MOST},
}
"""Keywords by the unit of what they limit, with what must hold and how it is said."""

Fits = Callable[[str, Mapping[str, Any]], bool]
"""Says whether a text has the `pattern` and the `format` of a schema."""


def fault_in(value: Any, schema: Mapping[str, Any], fits: Fits | None = None) -> str:
    """Return the first thing that does not fit, as the end of a sentence; empty if all does.

    Looked at are types, names, enums, ranges and lengths; expressions and formats only with `fits`, for the user's own
    schema: those of a stranger may never end.
    """
    return _Check(schema, fits).fault(value, schema, "", 0)


class _Check:
    def __init__(self, root: Mapping[str, Any], fits: Fits | None) -> None:
        self._root, self._fits, self._left = root, fits, _MOST

    def fault(self, value: Any, schema: Any, name: str, depth: int) -> str:
        self._left -= 1
        if self._left < 0 or depth > _DEEPEST:
            return ""
        if schema is False:
            return f"{name or 'what is given'} must not be there"
        if self._fits is not None and isinstance(schema, dict) and "$ref" in schema and len(schema) > 1:
            # Both hold. A tool's calls are held to what `resolved` makes of it, as it was declared.
            beside = {key: one for key, one in schema.items() if key != "$ref"}
            schema = {"allOf": [{"$ref": schema["$ref"]}, beside]}
        schema, _ = resolved(schema, self._root)
        if value is None and schema.get("nullable") is True:
            return ""
        found = _misfit(value, schema, name or "what is given")
        if not found and isinstance(value, str) and self._fits is not None:
            form = {key: schema[key] for key in ("pattern", "format") if key in schema}
            if form and not self._fits(value, form):
                found = f"{name or 'what is given'} must have the form {_shown(form)}, not {_shown(value)}"
        if not found and isinstance(value, dict):
            found = self._in_object(value, schema, name, depth)
        if not found and isinstance(value, list):
            found = self._in_array(value, schema, name, depth)
        for key in ("allOf", "anyOf", "oneOf"):
            some = schema.get(key)
            faults = [self.fault(value, one, name, depth + 1) for one in (some if isinstance(some, list) else ())]
            if faults and not found and (any(faults) if key == "allOf" else all(faults)):
                found = next(filter(None, faults))
        return found

    def _in_object(self, value: Mapping[str, Any], schema: Mapping[str, Any], name: str, depth: int) -> str:
        properties, required = schema.get("properties"), schema.get("required")
        properties = properties if isinstance(properties, dict) else {}
        path = f"{name}." if name else ""
        for key in required if isinstance(required, list) else ():
            if isinstance(key, str) and key not in value:
                return f"{path}{key} is missing"
        patterns, others = schema.get("patternProperties"), schema.get("additionalProperties")
        patterns = patterns if isinstance(patterns, dict) else {}
        for key, one in value.items():
            wanted = [properties[key]] if key in properties else []
            if self._fits is not None:
                wanted += [inner for pattern, inner in patterns.items() if self._fits(key, {"pattern": pattern})]
            elif patterns and not wanted:
                continue
            if not wanted and others is False:
                return f"{path}{key} is not known: there is {', '.join([*properties, *patterns]) or 'nothing'}"
            for inner in wanted or [others]:
                if found := self.fault(one, inner, f"{path}{key}", depth + 1):
                    return found
        return ""

    def _in_array(self, value: Sequence[Any], schema: Mapping[str, Any], name: str, depth: int) -> str:
        first, rest = tuple_of(schema)
        if rest is False and len(value) > len(first):
            return f"{name} must have at most {len(first)} items, not {len(value)}"
        wanted = [*first, *[rest] * len(value)]  # `items` is for those behind the first
        inside = (self.fault(one, wanted[at], f"{name}[{at}]", depth + 1) for at, one in enumerate(value))
        return next(filter(None, inside), "")


def _misfit(value: Any, schema: Mapping[str, Any], name: str) -> str:
    """Return why a value has not the type, is none of those listed or is beyond a limit of its size or its length."""
    kinds = schema.get("type")
    kinds = [one for one in (kinds if isinstance(kinds, list) else [kinds]) if isinstance(one, str) and one in _KINDS]
    if kinds and not any(_KINDS[kind](value) for kind in kinds):
        return f"{name} must be of type {' or '.join(kinds)}, not {_shown(value)}"
    allowed = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if isinstance(allowed, list) and not any(
        value == one and isinstance(value, bool) == isinstance(one, bool) for one in allowed
    ):
        return f"{name} must be one of {_shown(allowed)}, not {_shown(value)}"
    if not isinstance(value, int | float | str | list | dict) or isinstance(value, bool):
        return ""
    measured = value if isinstance(value, int | float) else len(value)
    unit = " characters" if isinstance(value, str) else " items" if isinstance(value, list) else ""
    unit = " properties" if isinstance(value, dict) else unit
    for key, (holds, said) in _LIMITS[unit].items():
        limit = limit_of(schema, key)
        if limit is not None and not holds(measured, limit):
            return f"{name} must {'have' if unit else 'be'} {said} {limit}{unit}, not {measured}"
    step = 0 if unit else limit_of(schema, "multipleOf") or 0
    if step > 0 and abs(measured) < inf and Fraction(str(measured)) % Fraction(str(step)):  # 0.3 is three times 0.1
        return f"{name} must be a multiple of {step}, not {measured}"
    return ""


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else f"{text[:200]}…"
