"""A form of which no text ends is an error; whatever can end is not."""

from __future__ import annotations

from typing import Any

import pytest

from mlxmtp.engine.constraint import Constraint
from mlxmtp.engine.endless import endless_rule
from mlxmtp.errors import UsageError

NODE = {"type": "object", "properties": {"v": {"type": "integer"}, "next": {"$ref": "#/$defs/n"}}}


def schema(node: dict[str, Any], **root: Any) -> Constraint:
    return Constraint.schema({"$defs": {"n": node}, "$ref": "#/$defs/n", **root})


@pytest.mark.parametrize(
    "constraint",
    [
        schema({**NODE, "required": ["v", "next"]}),
        schema({**NODE, "required": ["next"], "additionalProperties": False}),
        schema({"type": "array", "items": {"$ref": "#/$defs/n"}, "minItems": 1}),
        schema({"type": "array", "prefixItems": [{"type": "integer"}, {"$ref": "#/$defs/n"}], "minItems": 2}),
        schema({"anyOf": [{"type": "array", "items": {"$ref": "#/$defs/n"}, "minItems": 2}, {"$ref": "#/$defs/n"}]}),
        Constraint.schema({"type": "object", "properties": {"~/": {"$ref": "#/properties/~0~1"}}, "required": ["~/"]}),
        Constraint("grammar", 'start: "a" start'),
        Constraint("grammar", 'start: x | "(" y ")"\nx: "a" y+\ny: /[0-9]/ x'),
        Constraint("grammar", 'start: A (start | "b" start){1,2}\nA: "a"'),
        Constraint("grammar", 'start: "|" start // no: "b"\n'),
    ],
    ids=lambda one: one.source[:60],
)
def test_what_never_ends_is_an_error(constraint: Constraint) -> None:
    with pytest.raises(UsageError, match="no text ends"):
        constraint.check()


@pytest.mark.parametrize(
    "constraint",
    [
        schema({**NODE, "required": ["v"]}),
        schema({**NODE, "required": ["next"], "type": ["object", "null"]}),
        schema({"type": "array", "items": {"$ref": "#/$defs/n"}}),
        schema({"type": "array", "prefixItems": [{"type": "integer"}, {"$ref": "#/$defs/n"}], "minItems": 1}),
        schema({"anyOf": [{"type": "integer"}, {"type": "array", "items": {"$ref": "#/$defs/n"}, "minItems": 2}]}),
        Constraint.schema({"$defs": {"never": {"$ref": "#/$defs/never"}}, "type": "integer"}),
        Constraint.schema({"type": "object", "properties": {"$ref": {"type": "string"}}, "required": ["$ref"]}),
        Constraint("grammar", 'start: "a" start | "b"'),
        Constraint("grammar", 'start: "a" start?'),
        Constraint("grammar", 'start: "a" [start "b"]'),
        Constraint("grammar", 'start: "a" start{0,3}'),
        Constraint("grammar", 'start: x*\nx: "a" x'),
        Constraint("grammar", 'start: expr\nexpr: expr "+" term\n  | term\nterm: /[0-9]+/ | "(" expr ")"'),
        Constraint("grammar", "start: TEXT <[1]>\nTEXT: /[^x]*/"),
        Constraint("grammar", 'start: "a" | %json {"type": "object", "properties": {"start": {"$ref": "#"}}}'),
    ],
    ids=lambda one: one.source[:60],
)
def test_what_can_end_is_none(constraint: Constraint) -> None:
    constraint.check()


@pytest.mark.parametrize(
    ("grammar", "rule"),
    [
        ('start: "a" (start~2)* "b"', None),
        ('start: "a" (start ~ 1..2)? "b"', None),
        ('start: "a" (start~0..2) "b"', None),
        ('start: "a" (start~2) "b"', "start"),
        ('start: "a" (start ~ 10..20) "b"', "start"),
    ],
)
def test_a_number_of_times_ends_where_its_bracket_does(grammar: str, rule: str | None) -> None:
    assert endless_rule(grammar) == rule
