"""Forms and tools that are so large, or so deep, that following them would break or fill the process."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mlxmtp.engine.call_grammar import calls_only
from mlxmtp.engine.constraint import Constraint, Matcher
from mlxmtp.engine.declarations import declaration
from mlxmtp.errors import UsageError
from tests.forms import STOP, table, tokenizer


def chained(count: int) -> dict[str, Any]:
    """A schema whose references lead from one to the next."""
    links: dict[str, Any] = {f"d{number}": {"$ref": f"#/$defs/d{number + 1}"} for number in range(count)}
    return {"$defs": {**links, f"d{count}": {"type": "null"}}, "$ref": "#/$defs/d0"}


@pytest.mark.parametrize("rule", ["r{}: ", "?r{}: ", "!?r{}: ", "  r{}: ", "r{}[capture]: ", "r-{}: ", "r{}::_: "])
def test_a_grammar_of_so_many_rules_that_following_them_breaks_the_process_is_refused(rule: str) -> None:
    name = "r-{}" if "-" in rule else "r{}"
    rules = [rule.format(number) + name.format(number + 1) for number in range(3000)]
    with pytest.raises(UsageError, match="more than 1,000 rules"):
        Constraint("grammar", "\n".join([f"start: {name.format(0)}", *rules, f'{name.format(3000)}: "a"'])).check()
    if "::" not in rule:
        Constraint("grammar", "\n".join([f"start: {name.format(0)}", *rules[:900], f'{name.format(900)}: "a"'])).check()


def test_a_grammar_with_a_schema_of_so_many_references_is_refused() -> None:
    with pytest.raises(UsageError, match="more than 1,000 rules or references"):
        Constraint("grammar", f"start: %json {json.dumps(chained(4000))}").check()
    with pytest.raises(UsageError, match="more than 1,000 rules or references"):
        Constraint("grammar", f"start: %json {json.dumps(chained(4000))}".replace("$ref", "\\u0024ref")).check()


@pytest.mark.parametrize("level", ['{"items":X}', '{"anyOf":[X]}'])
@pytest.mark.parametrize("depth", [400, 900, 5000])
def test_a_schema_that_is_nested_too_deeply_is_refused(level: str, depth: int) -> None:
    opening, closing = level.split("X")
    with pytest.raises(UsageError, match=r"nested too deeply|recursion limit"):
        Constraint("schema", f"{opening * depth}{{}}{closing * depth}").check()


def test_a_schema_of_so_many_references_is_refused() -> None:
    with pytest.raises(UsageError, match="more than 1,000 rules or references"):
        Constraint.schema(chained(4000)).check()
    Constraint.schema(chained(900)).check()


def nested(depth: int) -> dict[str, Any]:
    """The declaration of a tool that takes arrays in arrays."""
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return declaration("f", "", {"properties": {"a": schema}, "required": ["a"]}, "f")


@pytest.mark.parametrize("depth", [1, 3, 12, 31])
def test_the_grammar_of_nested_arrays_does_not_double_with_each_level(depth: int) -> None:
    if depth > 12:  # else a grammar that does double fills the memory
        assert len(calls_only([nested(12)], tokenizer(), several=False).source) < 20_000
    constraint = calls_only([nested(depth)], tokenizer(), several=False)
    assert len(constraint.source) < 20_000
    for levels in (depth, depth - 1, depth + 1):
        value = f'{"[" * levels}<|"|>x<|"|>,<|"|>y<|"|>{"]" * levels}'
        ids = [*tokenizer().encode(f"<|tool_call>call:f{{a:{value}}}<tool_call|>"), STOP[0]]
        assert (Matcher(constraint, table()).accept(ids) == len(ids)) == (levels == depth)


def test_a_tool_of_too_many_schemas_is_refused() -> None:
    kinds: dict[str, Any] = {"type": "object", "properties": {f"p{number}": {} for number in range(999)}}
    assert len(declaration("f", "", kinds, "It")["function"]["parameters"]["properties"]) == 999
    kinds["properties"]["more"] = {}
    with pytest.raises(UsageError, match=r"^It is too large: 1000 schemas"):
        declaration("f", "", kinds, "It")
    ten: dict[str, Any] = {"properties": {f"p{number}": {"$ref": "#/$defs/few"} for number in range(100)}}
    few = {"type": "object", "properties": {f"q{number}": {"type": "null"} for number in range(10)}}
    with pytest.raises(UsageError, match=r"^It is too large"):
        declaration("f", "", {**ten, "$defs": {"few": few}}, "It")


def test_a_tool_whose_references_repeat_long_descriptions_is_refused() -> None:
    long = {"anyOf": [{"type": "string"}, {"type": "string", "description": "x" * 30_000}]}

    def declared(count: int) -> str:
        properties = {f"p{number}": {"$ref": "#/$defs/long"} for number in range(count)}
        return json.dumps(declaration("f", "", {"$defs": {"long": long}, "properties": properties}, "It"))

    assert len(declared(10)) < 102_000
    with pytest.raises(UsageError, match=r"^It is too large: its descriptions"):
        declared(11)
