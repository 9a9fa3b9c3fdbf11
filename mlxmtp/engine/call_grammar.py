"""Grammars for answers with calls: Gemma's format, with the arguments that a tool's schema allows."""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from math import ceil, floor
from typing import Any

from mlxmtp.engine.calls import CALL_CLOSE, CALL_OPEN, QUOTE
from mlxmtp.engine.constraint import Constraint
from mlxmtp.engine.declarations import KEY, Wider
from mlxmtp.engine.events import CLOSE, OPEN
from mlxmtp.engine.tokenizer import Tokenizer
from mlxmtp.errors import UsageError

_LARGEST, _LONGEST, _MOST = 10**17, 1000, 100
"""Integers, characters of a string and items of an array up to which limits of a schema are part of a grammar; calls
are held to all of them where they are run (`app/tools/arguments.py`)."""
_LONG = 100  # characters of an expression that is not written twice
_ANY = r"""
any: string | number | "true" | "false" | "null" | object | array
object: "{" (pair ("," pair)*)? "}"
pair: KEY ":" any
array: "[" (any ("," any)*)? "]"
number: NUMBER
KEY: /[^\s\x00-\x1f\x7f-\x9f{}\[\],:"]([^\x00-\x1f\x7f-\x9f{}\[\],:"]{0,62}[^\s\x00-\x1f\x7f-\x9f{}\[\],:"])?/
TEXT: /(.|\n)*/
NUMBER: /-?(0|[1-9][0-9]{0,17})(\.[0-9]{1,17})?([eE][+-]?[0-9]{1,2})?/
INTEGER: /-?(0|[1-9][0-9]{0,17})/
"""


def calls_only(tools: Sequence[Mapping[str, Any]], tokenizer: Tokenizer, *, several: bool) -> Constraint:
    """Return the constraint to one call of one of `tools`, or to `several`."""
    rules = f"start: call{'+' if several else ''}\n{_calls(tools, tokenizer)}"
    return Constraint("grammar", rules, call_mark=tokenizer.special_id(CALL_OPEN))


def text_or_calls(tools: Sequence[Mapping[str, Any]], tokenizer: Tokenizer, stop: Collection[int]) -> Constraint:
    """Return the constraint to any text and thoughts, behind which calls of `tools` may stand and nothing else.

    `stop`: the tokens that end an answer. Raises UsageError for a model that knows no tools.
    """
    _require_tools(tokenizer)
    call_mark, call_close, opening, closing = map(tokenizer.special_id, (CALL_OPEN, CALL_CLOSE, OPEN, CLOSE))
    rules = f"free: {_any_but(call_mark, call_close, opening, *stop)}\n{_calls(tools, tokenizer)}"
    if opening is None or closing is None:
        return Constraint("grammar", f"start: free call*\n{rules}")
    rules = f"thought: <[{opening}]> {_any_but(call_mark, call_close, closing, *stop)}\n{rules}"
    return Constraint(
        "grammar", f"start: free (thought <[{closing}]> free)* (thought | call*)\n{rules}", call_mark=call_mark
    )


def form_or_calls(
    form: Constraint, tools: Sequence[Mapping[str, Any]], tokenizer: Tokenizer, *, several: bool = True
) -> Constraint:
    """Return the constraint to an answer of a form or, in its place, one call of one of `tools`, or `several`.

    Raises UsageError for a model that knows no tools.
    """
    _require_tools(tokenizer)
    rules = f"calls: call{'+' if several else ''}\n{_calls(tools, tokenizer)}"
    return replace(form, calls=rules, call_mark=tokenizer.special_id(CALL_OPEN))


def _require_tools(tokenizer: Tokenizer) -> None:
    if not tokenizer.declares_tools or tokenizer.special_id(CALL_OPEN) is None:
        raise UsageError("This model knows no tools: take another one, or leave the tools out.")


def _any_but(*tokens: int | None) -> str:
    """Return an expression for any tokens but these."""
    return f"<[^{','.join(str(one) for one in sorted({one for one in tokens if one is not None}))}]>*"


def _calls(tools: Sequence[Mapping[str, Any]], tokenizer: Tokenizer) -> str:
    """Return the rules of `call` and all below it."""
    opening, closing, quote = (f"<[{tokenizer.special_id(mark)}]>" for mark in (CALL_OPEN, CALL_CLOSE, QUOTE))
    rules = _Rules(quote)
    for tool in tools:
        function = tool["function"]
        name, head = f"tool{len(rules.lines)}", json.dumps(f"call:{function['name']}")
        rules.tools.append(name)
        rules.lines.append(f"{name}: {head} {rules.arguments(function['parameters'])}")
    call = f"call: {opening} ({' | '.join(rules.tools)}) {closing}\n"
    text = f"string: {quote} TEXT {quote}\n"
    return call + "\n".join(rules.lines) + _ANY + text


class _Rules:
    """Rules of a grammar, one for every object of a schema."""

    def __init__(self, quote: str) -> None:
        self.lines: list[str] = []
        self.tools: list[str] = []
        self._quote = quote

    def arguments(self, schema: Mapping[str, Any]) -> str:
        """Return an expression for the arguments of a tool: none where its schema names none and no others."""
        return self.of(schema) if schema.get("properties") or schema.get("additionalProperties") else '"{" "}"'

    def of(self, schema: Mapping[str, Any]) -> str:
        """Return an expression for a value of a schema as `tools.declare` writes it."""
        found = self._of_type(schema.held if isinstance(schema, Wider) else schema)
        return f'({found} | "null")' if schema.get("nullable") else found

    def _of_type(self, schema: Mapping[str, Any]) -> str:
        kind = schema["type"]
        if kind == "string":
            return self._string(schema)
        if kind == "integer":
            return _integer(schema)
        if kind == "array":
            return self._array(schema)
        if kind == "object" and schema.get("properties"):
            return self._object(schema["properties"], frozenset(schema.get("required", ())))
        words = {"number": "NUMBER", "boolean": '("true" | "false")', "object": "object", "null": '"null"'}
        return words.get(kind, "any")

    def _string(self, schema: Mapping[str, Any]) -> str:
        if schema.get("enum"):
            return "(" + " | ".join(f"{self._quote} {json.dumps(one)} {self._quote}" for one in schema["enum"]) + ")"
        low, high = _counts(schema, "Length", _LONGEST)
        if (low, high) == (0, None):
            return "string"
        most = "" if high is None else high
        name = f"TEXT_{low}_{most}"
        rule = f"{name}: /(.|\\n){{{low},{most}}}/"
        self.lines += [] if rule in self.lines else [rule]
        return f"{self._quote} {name} {self._quote}"

    def _array(self, schema: Mapping[str, Any]) -> str:
        item, (low, high) = self.of(schema["items"]), _counts(schema, "Items", _MOST)
        if high == 0:
            return '("[" "]")'
        if len(item) > _LONG:  # it is written twice: as a rule of its own, so that what is nested does not double
            name = f"item{len(self.lines)}"
            self.lines.append(f"{name}: {item}")
            item = name
        times = "*" if high is None and low < 2 else f"{{{max(0, low - 1)},{'' if high is None else high - 1}}}"
        some = item if high == 1 else f'{item} ("," {item}){times}'
        return f'("[" {some} "]")' if low else f'("[" ({some})? "]")'

    def _object(self, properties: Mapping[str, Any], required: frozenset[str]) -> str:
        """Return the rule of an object whose keys come in the order in which templates write them."""
        name = f"object{len(self.lines)}"
        self.lines.append("")
        place = len(self.lines) - 1
        pairs = [
            (f"{json.dumps(key)} {json.dumps(':')} {self.of(value)}", key in required)
            for key, value in sorted(properties.items(), key=lambda item: item[0].lower())
            if KEY.fullmatch(key)
        ]
        self.lines[place] = "\n".join(_members(name, pairs))
        return name


def _counts(schema: Mapping[str, Any], of: str, most: int) -> tuple[int, int | None]:
    """Return the limits minLength and maxLength, or those of items, as far as a grammar can hold them."""
    low, high = int(schema.get(f"min{of}", 0)), schema.get(f"max{of}")
    low = low if 0 <= low <= most else 0
    return low, int(high) if high is not None and low <= high <= most else None


def _integer(schema: Mapping[str, Any]) -> str:
    """Return an expression for the integers that a schema lists, for those of its range, or for all."""
    if schema.get("enum"):
        return "(" + " | ".join(f'"{one}"' for one in schema["enum"]) + ")"
    low = [ceil(schema["minimum"])] if "minimum" in schema else []
    low += [floor(schema["exclusiveMinimum"]) + 1] if "exclusiveMinimum" in schema else []
    high = [floor(schema["maximum"])] if "maximum" in schema else []
    high += [ceil(schema["exclusiveMaximum"]) - 1] if "exclusiveMaximum" in schema else []
    least, most = max([-_LARGEST, *low]), min([_LARGEST, *high])
    if least > most or not (low or high):
        return "INTEGER"
    return f"%json {json.dumps({'type': 'integer', 'minimum': least, 'maximum': most})}"


def _members(name: str, pairs: Sequence[tuple[str, bool]]) -> Iterator[str]:
    """Yield rules for the pairs from each place on, before and after a first one has been written."""
    yield f'{name}: "{{" {name}f0 "}}"'
    for index, (pair, needed) in enumerate(pairs):
        for state, comma in (("f", ""), ("m", '"," ')):
            rest = "" if needed else f" | {name}{state}{index + 1}"
            yield f"{name}{state}{index}: {comma}{pair} {name}m{index + 1}{rest}"
    for state in "fm":
        yield f'{name}{state}{len(pairs)}: ""'
