"""Tuples and references in the schemas of tools: what the grammar of a declaration lets through, its schema allows."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from mlxmtp.app.tools.arguments import fault_in
from mlxmtp.engine.call_grammar import calls_only
from mlxmtp.engine.calls import CallReader
from mlxmtp.engine.constraint import Constraint, Matcher
from mlxmtp.engine.declarations import declaration, unwritable
from mlxmtp.engine.events import Call
from tests.forms import STOP, table, tokenizer

PAIR = {"type": "array", "prefixItems": [{"type": "number"}] * 2, "minItems": 2, "maxItems": 2}
MIXED: dict[str, Any] = {"prefixItems": [{"type": "string"}, {"type": "integer"}], "minItems": 2, "maxItems": 2}
NODE = {"type": "object", "properties": {"v": {"type": "integer"}, "next": {"$ref": "#/$defs/N"}}}
ENTRY = {"anyOf": [{"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}, {"type": "null"}]}

EITHER = [{"type": "object", "properties": {name: {"type": "integer"}}, "required": [name]} for name in ("v", "next")]


def schema_of(value: dict[str, Any], **root: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"x": value}, "required": ["x"], "additionalProperties": False, **root}


def declared(schema: dict[str, Any]) -> dict[str, Any]:
    """How the property x is declared."""
    found: dict[str, Any] = declaration("f", "", schema, "")["function"]["parameters"]["properties"]["x"]
    return found


def grammar(schema: dict[str, Any]) -> Constraint:
    return calls_only([declaration("f", "", schema, "")], tokenizer(), several=False)


def made(schema: dict[str, Any], seed: int) -> dict[str, Any] | None:
    """Arguments of random tokens that the grammar allows, None where they do not end in time."""
    rng, matcher, reader = random.Random(seed), Matcher(grammar(schema), table()), CallReader(tokenizer())
    ends = [token for mark in ('<|"|>', "}", "]") for token in tokenizer().encode(mark)]
    for count in range(300):
        mask = matcher.mask()
        drawn = (ends if count > 15 or rng.random() < 0.3 else []) + [rng.randrange(4096) for _ in range(200)]
        allowed = (token for token in [*drawn, *range(4096)] if mask[token >> 3] >> (token & 7) & 1)
        token = next(allowed)
        assert matcher.accept([token]) == 1
        for part in reader.feed(token):
            if isinstance(part, Call):
                return dict(part.arguments)
    return None


@pytest.mark.parametrize(
    "schema",
    [
        schema_of(PAIR),
        schema_of({"type": "array", "items": [{"type": "integer"}] * 3, "minItems": 3, "maxItems": 3}),
        schema_of({"type": "array", "prefixItems": [{"type": "boolean"}], "items": {"type": "boolean"}}),
        schema_of({"type": "array", "items": PAIR, "minItems": 1}),
        schema_of({"type": "array", "prefixItems": [PAIR, PAIR]}),
        schema_of({"$ref": "#/$defs/N"}, **{"$defs": {"N": NODE}}),
        schema_of({"$ref": "#/$defs/My%20T"}, **{"$defs": {"My T": {"type": "integer"}}}),
        schema_of({**EITHER[0], "required": [], "anyOf": [{"required": ["v"]}, {"minProperties": 9}]}),
        schema_of({"type": ["string", "null"], "enum": ["a", None]}),
        {"type": "object", "properties": {"x": {"$ref": "#/properties/y/anyOf/0"}, "y": ENTRY}, "required": ["x"]},
    ],
    ids=lambda schema: json.dumps(schema["properties"]["x"])[:50],
)  # fmt: skip
def test_whatever_the_grammar_makes_fits_the_schema(schema: dict[str, Any]) -> None:
    values = [one for one in (made(schema, seed) for seed in range(8)) if one is not None]
    assert values
    assert [fault_in(one, schema) for one in values] == [""] * len(values)


@pytest.mark.parametrize(
    ("schema", "value", "wrong"),
    [
        (schema_of({"type": "array", **MIXED}), ["a", 1], ["a", "1"]),
        (schema_of({"type": "array", "items": MIXED["prefixItems"]}), ["a", 1], [1, "a"]),
        (schema_of({"type": "array", "prefixItems": [PAIR, MIXED | {"type": "array"}]}), [[1, 2.5], ["a", 1]], [["a"]]),
        (schema_of({"$ref": "#/$defs/N"}, **{"$defs": {"N": NODE}}), {"next": {"next": {"next": {}}}}, {"next": 5}),
        (
            schema_of({"$ref": "#/$defs/N"}, **{"$defs": {"N": {"type": "array", "items": {"$ref": "#/$defs/N"}}}}),
            [[], [[]]],
            [1],
        ),
        (schema_of({"anyOf": [{"$ref": "#"}, {"type": "null"}]}), {"x": {"x": None}}, {"x": 5}),
        (schema_of({"anyOf": [{"$ref": "#"}, {"type": "null"}]}), None, "null"),
        (schema_of({"type": ["number", "string"]}), "open", True),
        (schema_of({"type": ["string", "number", "null"]}), 5, True),
        (schema_of({"type": "array", "items": {"type": "array"}}), [[1, "a", None], [{}, []]], [1]),
        (schema_of({"type": "array", "prefixItems": [{}, {}], "minItems": 2}), [1, 2], [1]),
        (schema_of({"enum": [1, "a", None]}), "a", "b"),
        (schema_of({"anyOf": [{"type": "integer"}, {"type": "string"}]}), "a", True),
        (schema_of({"anyOf": [{"type": "integer"}, {"type": "number"}, {"type": "null"}]}), 2.5, "a"),
        (schema_of({"oneOf": [{"const": "a"}, {"const": "b"}]}), "b", "c"),
        (schema_of({"anyOf": EITHER}), {"next": 5}, {"next": "5"}),
        (schema_of({"type": "string", "anyOf": [{"const": "auto"}, {"maxLength": 3}]}), "on", "often"),
    ],
    ids=lambda value: json.dumps(value)[:50],
)
def test_the_grammar_lets_the_right_value_through_where_no_type_says_it(
    schema: dict[str, Any], value: Any, wrong: Any
) -> None:
    written = json.dumps({"x": value}).replace('"x":', "x:").replace('"next":', "next:").replace('"', '<|"|>')
    ids = [*tokenizer().encode(f"<|tool_call>call:f{written.replace(' ', '')}<tool_call|>"), STOP[0]]
    assert Matcher(grammar(schema), table()).accept(ids) == len(ids)
    assert fault_in({"x": value}, schema) == ""
    assert fault_in({"x": wrong}, schema)


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ({}, {"type": "string"}),
        ({"type": "array"}, {"type": "array", "items": {"type": "string"}}),
        ({"type": "array", "items": {"enum": ["a"]}}, {"type": "array", "items": {"type": "string", "enum": ["a"]}}),
        ({"type": "array", "items": [{"type": "string"}] * 2}, {"type": "array", "items": {"type": "string"}}),
        ({"$ref": "https://example.org/x"}, {"type": "string"}),
        ({"type": ["string", "number"]}, {"type": "string"}),
        ({"anyOf": [{"type": "string"}, {"$ref": "#"}]}, {"type": "string", "description": "Or: [{}]."}),
    ],
    ids=lambda value: json.dumps(value)[:50],
)
def test_what_was_a_string_stays_one(value: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert declared(schema_of(value)) == wanted


def test_a_circle_is_an_object_without_names_or_anything() -> None:
    node = declared(schema_of({"$ref": "#/$defs/N"}, **{"$defs": {"N": NODE}}))
    assert node["properties"] == {"v": {"type": "integer"}, "next": {"type": "object"}}
    both = {"anyOf": [{"$ref": "#/$defs/E"}, {"type": "null"}]}
    expression = {"anyOf": [{"type": "object", "properties": {"left": both}}, {"type": "integer"}]}
    found = declared(schema_of({"$ref": "#/$defs/E"}, **{"$defs": {"E": expression}}))
    assert found["properties"]["left"]["type"] == "any"
    assert found["properties"]["left"]["nullable"]


def test_an_argument_that_only_one_branch_needs_is_not_needed():
    branches = [{"type": "object", "properties": {name: {}}, "required": [name]} for name in ("ids[]", "id")]
    lost = [*unwritable(declaration("f", "", schema_of({"anyOf": branches}), "")["function"]["parameters"])]
    assert lost == [("ids[]", False)]
    lost = [*unwritable(declaration("f", "", schema_of(branches[0]), "")["function"]["parameters"])]
    assert lost == [("ids[]", True)]
