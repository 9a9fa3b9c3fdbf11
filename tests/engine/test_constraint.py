"""Answers have the form that was asked for, whatever is drafted, and what cannot be held to is named."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from copy import copy
from functools import cache
from itertools import islice, product
from pathlib import Path
from typing import Any, cast

import jsonschema
import pytest

import mlxmtp
from mlxmtp.decode.compile import Rounds
from mlxmtp.engine.answer import _Reading
from mlxmtp.engine.constraint import Constraint, Matcher
from mlxmtp.engine.declarations import declaration
from mlxmtp.engine.events import Call, End, StopStrings, Text, Thinking
from mlxmtp.engine.model import Model
from mlxmtp.engine.params import Params
from mlxmtp.engine.tokenizer import Tokenizer
from mlxmtp.errors import UsageError
from tests.forms import POCKET, STOP, table, tokenizer

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer"}, "ok": {"type": "boolean"}},
    "required": ["name", "age", "ok"],
    "additionalProperties": False,
}

# Parameters of tools from the Berkeley Function Calling Leaderboard (bfcl-eval 2026.3.23, Apache-2.0): names, types and
# limits, without descriptions and defaults; its own names of types are those of JSON Schema here.
DECLARATIONS = (Path(__file__).parent / "declarations.jsonl").read_text(encoding="utf-8").splitlines()

# Files of SchemaStore (schemastore/schemastore at 3b6446a, Apache-2.0), by name: the smaller ones, without
# descriptions, defaults and editors' own keys.
STORED = (Path(__file__).parent / "schemastore.jsonl").read_text(encoding="utf-8").splitlines()

# What tools of coding agents take (Claude Code 2.1.197, Codex 0.171.0, opencode 1.18.33, as they sent them), by name,
# without descriptions, titles and defaults.
AGENTS = (Path(__file__).parent / "agents.jsonl").read_text(encoding="utf-8").splitlines()

BY_HAND: dict[str, Any] = {
    "names that are texts": {"type": "object", "propertyNames": {"type": "string"}, "additionalProperties": False,
                             "properties": {"propertyNames": {"type": "string", "maxLength": 2},
                                            "const": {"const": {"propertyNames": True}}}, "required": ["const"]},
    "recursion": {"$defs": {"tree": {"type": "object", "properties": {"v": {"type": "integer"}, "kids": {
        "type": "array", "items": {"$ref": "#/$defs/tree"}, "maxItems": 2}}, "required": ["v"],
        "additionalProperties": False}}, "$ref": "#/$defs/tree"},
    "enum of 3,000": {"enum": [f"word-{number}" for number in range(3000)]},
    "unicode": {"type": "object", "properties": {"größe": {"enum": ["klein", "日本", "🙂", 'mit "Zeichen"\n']}},
                "required": ["größe"], "additionalProperties": False},
    "limits of numbers": {"type": "array", "minItems": 3, "maxItems": 5,
                          "items": {"type": "integer", "minimum": -7, "exclusiveMaximum": 130, "multipleOf": 3}},
    "fractions": {"type": "number", "minimum": 0.25, "maximum": 1.75},
    "lengths": {"type": "string", "minLength": 3, "maxLength": 6},
    "pattern": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{4}$"},
    "formats": {"type": "object", "properties": {"d": {"type": "string", "format": "date"}, "u": {
        "type": "string", "format": "uuid"}}, "required": ["d", "u"], "additionalProperties": False},
    "one of several": {"anyOf": [{"type": "null"}, {"const": "x"}, {"type": "array", "items": {"type": "boolean"}}]},
    "all of": {"allOf": [{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
                         {"properties": {"b": {"type": "string"}}, "required": ["b"]}]},
    "optional and more": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
                          "additionalProperties": {"type": "boolean"}},
    "prefix": {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}], "items": False,
               "minItems": 2},
    "anything": {},
}  # fmt: skip


@cache
def closers() -> list[int]:
    """Tokens that bring a document nearer to its end."""
    ends = (b"}", b"]", b'"', b"0")
    return [STOP[0], *(token for token in range(110, 4096) if tokenizer().token_bytes(token) in ends)]


def written(constraint: Constraint, seed: str, most: int = 600) -> str | None:
    """Return a text of random allowed tokens, None for one that does not end in time."""
    rng, matcher, ids = random.Random(seed), Matcher(constraint, table()), list[int]()
    while len(ids) < most:
        mask = matcher.mask()

        def allowed(token: int, mask: bytes = mask) -> bool:
            return bool(mask[token >> 3] >> (token & 7) & 1) and token != table().open

        ending = [token for token in closers() if allowed(token)] if len(ids) > 20 or rng.random() < 0.2 else []
        some = ending or list(islice(filter(allowed, (rng.randrange(4096) for _ in range(100))), 1))
        token = rng.choice(some or list(filter(allowed, range(4096))))
        assert matcher.accept([token]) == 1
        if token in STOP:
            assert matcher.complete
            return b"".join(map(tokenizer().token_bytes, ids)).decode()
        ids.append(token)
    return None


@pytest.mark.parametrize("part", range(4))
def test_every_document_is_one_of_its_schema(part):
    lines = DECLARATIONS[part::4]
    endless = 0
    for line in lines:
        schema = json.loads(line)
        constraint = Constraint.schema(schema)
        constraint.check()
        text = written(constraint, line)
        if text is None:
            endless += 1
        else:
            jsonschema.validate(json.loads(text), schema)
    assert len(lines) > 75
    assert endless < 8  # any object, for ever


def test_every_document_is_one_for_a_tool_of_an_agent():
    for line in AGENTS:
        ((name, schema),) = json.loads(line).items()
        Constraint.schema(schema).check()
        text = written(Constraint.schema(schema), name, 400)
        assert text is not None or name == "WebFetch", "an address without end"
        if text is not None:
            jsonschema.validators.validator_for(schema)(schema).validate(json.loads(text))


@pytest.mark.parametrize("part", range(3))
def test_stored_schemas_are_refused_in_a_sentence_or_kept(part):
    finished, refused = 0, list[str]()
    for line in STORED[part::3]:
        ((name, schema),) = json.loads(line).items()
        constraint = Constraint.schema(schema)
        try:
            constraint.check()
        except UsageError as error:
            refused.append(str(error))
            continue
        text = written(constraint, name, 400)
        if text is not None:
            jsonschema.validators.validator_for(schema)(schema).validate(json.loads(text))
            finished += 1
    assert finished > 45
    assert len(refused) > 20
    assert not any("\n" in said for said in refused)


@pytest.mark.parametrize("name", BY_HAND)
def test_schemas_of_every_kind(name):
    constraint = Constraint.schema(BY_HAND[name])
    constraint.check()
    checker = jsonschema.Draft202012Validator(BY_HAND[name], format_checker=jsonschema.FormatChecker())
    texts = [written(constraint, str(seed)) for seed in range(6)]
    assert any(texts)
    for text in texts:
        if text is not None:
            checker.validate(json.loads(text))
            assert not re.search(r"\s{23}", re.sub(r'"(\\.|[^"\\])*"', '""', text))  # blanks between tokens end


def test_properties_come_in_the_order_of_the_schema():
    names = ["zebra", "apple", "mango"]
    schema = {"type": "object", "properties": {name: {"type": "boolean"} for name in names}, "required": names}
    text = written(Constraint.schema({**schema, "additionalProperties": False}), "x")
    assert list(json.loads(str(text))) == names


@pytest.mark.parametrize(
    ("schema", "text", "allowed"),
    [
        ({"type": "string"}, r'"\n\t\"\\ \u00e9 \ud83d\ude00 é日🙂"', True),
        ({"type": "string"}, r'"\ud83d"', False),
        ({"type": "string"}, '"a\nb"', False),
        ({"type": "string", "pattern": "b"}, '"abc"', True),
        ({"type": "string", "format": "date"}, '"2026-13-45"', False),
        ({"type": "integer"}, "1.0", False),
        ({"type": "object", "properties": {"a": {}}}, '{"a": 1, "a": 2}', False),
        ({"type": "object", "minProperties": 1}, "{}", False),
        ({"type": "array", "items": {}}, "[1,  2]", False),
        ({"type": "array", "items": {}}, '[1,\n  [2, 3],\n\n    {"a": null}\n]', True),
        ({"type": "array"}, "[1", False),
    ],
)
def test_what_a_schema_lets_through(schema, text, allowed):
    matcher, ids = Matcher(Constraint.schema(schema), table()), tokenizer().encode(text)
    assert (matcher.accept(ids) == len(ids) and matcher.complete) == allowed


def test_expressions_and_grammars_hold_for_the_whole_text():
    for seed in "abcdef":
        text = written(Constraint("regex", r"(yes|no), [a-z]{3,8}/\d\."), seed)
        assert re.fullmatch(r"(yes|no), [a-z]{3,8}/\d\.", str(text))
        sums = written(Constraint("grammar", 'start: n ("+" n)*\nn: /[0-9]{1,3}/ | "(" start ")"'), seed)
        assert sums is None or isinstance(eval(re.sub(r"\b0+(?=\d)", "", sums)), int)


@pytest.mark.parametrize(
    ("constraint", "named"),
    [
        (Constraint.schema({"type": "object", "properties": {"a": {"not": {"type": "string"}}}}), "not"),
        (Constraint.schema({"if": {"type": "string"}, "then": {"minLength": 3}}), "if"),
        (Constraint.schema({"type": "array", "uniqueItems": True}), "uniqueItems"),
        (Constraint.schema({"type": "object", "propertyNames": {"minLength": 2}}), "propertyNames"),
        (Constraint.schema({"oneOf": [{"type": "string"}, {"maxLength": 3}]}), "oneOf"),
        (Constraint.schema({"type": "string", "format": "color"}), "color"),
        (Constraint.schema({"type": "objekt"}), "objekt"),
        (Constraint.schema({"$ref": "#/nowhere"}), "nowhere"),
        (Constraint.schema({"type": "integer", "minimum": 5, "maximum": 3}), "minimum"),
        (Constraint.schema({"enum": []}), "empty"),
        (Constraint("regex", "(a"), "unclosed group"),
        (Constraint("regex", "(?=a)b"), "look-ahead"),
        (Constraint("regex", r"a[^\s\S]"), "no text"),
        (Constraint("grammar", "start: x"), "unknown name"),
        (Constraint("grammar", 'begin: "a"'), "start"),
        (Constraint("schema", "{no json"), "no JSON"),
        (Constraint(cast("Any", "json"), "{}"), "not 'json'"),
    ],
    ids=lambda value: getattr(value, "source", value),
)
def test_what_cannot_be_held_to_is_named(constraint, named):
    with pytest.raises(UsageError, match=named) as caught:
        constraint.check()
    assert "\n" not in str(caught.value)


def test_a_mark_spelled_in_the_tokens_of_a_form_is_text_of_it():
    text = '{"mark": "<|channel>", "use": "<channel|> ends it"}'
    (opening,), (close,) = (tokenizer().encode(mark) for mark in ("<|channel>", "<channel|>"))
    thought = [opening, *tokenizer().encode_plain("thought\nA mark? <channel|> no"), close]
    tokens = [*thought, *tokenizer().encode_plain(text)]
    assert not {opening, close} & {*tokens[len(thought) :]}
    for size, calls in product((1, 5, len(tokens)), (False, True)):
        how = {"inside": False, "calls": calls, "singly": False, "in_form": True}
        reading = _Reading(tokenizer(), StopStrings(()), **how)
        events = [one for at in range(0, len(tokens), size) for one in reading.feed(tokens[at : at + size])[0]]
        events += reading.finish(cut=False)
        assert "".join(one.text for one in events if isinstance(one, Text)) == text
        assert "".join(one.text for one in events if isinstance(one, Thinking)) == "A mark? <channel|> no"


@pytest.fixture(scope="module")
def pocket() -> Iterator[Model]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Rounds, "build", lambda *_: None)  # no kernels are built behind these tests and later ones
        model = mlxmtp.load("pocket")
        yield model
        model.close()


def answer(model: Model, constraint: Constraint | None, **params: Any) -> tuple[str, str, str, bool]:
    """Return text, thought, the reason of the end, and whether the form was kept."""
    question = [{"role": "user", "content": "Who are you? Answer as JSON."}]
    stream = model.stream(question, Params(constraint=constraint, **({"max_tokens": 40} | params)))
    said: dict[type, str] = {Text: "", Thinking: ""}
    reason = ""
    for event in stream:
        if isinstance(event, End):
            reason = event.finish_reason
        elif isinstance(event, Text | Thinking):
            said[type(event)] += event.text
    return said[Text], said[Thinking], reason, stream.complete


@pytest.mark.parametrize("sampling", [{"temp": 0.0}, {"temp": 1.0, "seed": 5}], ids=["greedy", "sampled"])
def test_drafts_do_not_change_a_document(pocket, sampling):
    constraint = Constraint.schema(PERSON)
    plain = answer(pocket, constraint, num_draft_tokens=0, **sampling)
    assert plain[2:] == ("stop", True) or plain[2:] == ("length", False)
    for drafts in (3, "auto"):
        assert answer(pocket, constraint, num_draft_tokens=drafts, **sampling) == plain
    if plain[3]:
        jsonschema.validate(json.loads(plain[0]), PERSON)


def test_an_answer_that_obeys_anyway_is_the_free_one(pocket):
    for sampling in ({"temp": 0.0}, {"temp": 1.0, "seed": 11}):
        free = answer(pocket, None, **sampling)
        assert free[0]
        allowing = Constraint("regex", r"[\s\S]*")
        assert answer(pocket, allowing, **sampling)[:3] == free[:3]
        assert answer(pocket, Constraint("regex", re.escape(free[0]) + "[a-z]?"), **sampling)[0] == free[0]


def test_a_thought_comes_before_a_document_and_its_budget_holds(pocket):
    constraint = Constraint("regex", "(yes|no)")
    text, thought, reason, complete = answer(pocket, constraint, think=True, think_tokens=9)
    assert (text in ("yes", "no"), reason, complete) == (True, "stop", True)
    assert len(thought) < 80


@pytest.fixture(scope="module")
def caller(pocket, tmp_path_factory) -> Model:
    """The built-in model with a template that declares tools."""
    folder = tmp_path_factory.mktemp("caller")
    for file in POCKET.glob("*.json"):
        (folder / file.name).symlink_to(file)
    (folder / "chat_template.jinja").write_text("{{ tools }}{{ messages[0].content }}")
    model = copy(pocket)
    model._tokenizer = Tokenizer.load(folder)
    return model


@pytest.mark.parametrize("key", ["allOf", "anyOf", "oneOf"])
def test_a_branch_adds_to_the_properties_of_a_declaration(key):
    branch = {"properties": {"b": {"type": "integer"}}, "required": ["b"]}
    other = {"properties": {"c": {"type": "boolean"}}, "required": ["c", "a"]}
    schema = {"properties": {"a": {"type": "string"}}, "required": ["a"], key: [branch, other]}
    found = declaration("f", "", schema, "")["function"]["parameters"]
    names = ["a", "b", "c"] if key == "allOf" else ["a", "b"]
    assert ([*found["properties"]], found["required"]) == (names, names)
    assert found["properties"]["a"] == {"type": "string"}


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"friend": {"$ref": "#/$defs/Pet"}}, "allOf": [{"$ref": "#/$defs/Pet"}]},
        {"allOf": [{"$ref": "#/$defs/Pet"}, {"properties": {"friend": {"$ref": "#/$defs/Pet"}}}]},
        {"allOf": [{"$ref": "#/$defs/Loop"}, {"$ref": "#/$defs/Friendly"}]},
    ],
)
def test_a_property_may_have_the_type_that_its_schema_extends(schema):
    pet = {"type": "object", "properties": {"name": {"type": "string"}}}
    friendly = {"properties": {"friend": {"$ref": "#/$defs/Pet"}}}
    loop = {"properties": {"next": {"$ref": "#/$defs/Loop"}}}
    schema = {**schema, "required": ["friend"], "$defs": {"Pet": pet, "Friendly": friendly, "Loop": loop}}
    found = declaration("f", "", schema, "")["function"]["parameters"]
    assert found["properties"]["friend"] == pet
    assert found["required"] == ["friend"]


@pytest.mark.parametrize("bias", [{}, {48: 50.0}], ids=["free", "wants to call"])
def test_with_tools_an_answer_is_calls_or_has_the_form(caller, bias):
    tool = declaration("f", "", {"properties": {"unit": {"enum": ["C", "F"]}}, "required": ["unit"]}, "")
    form = Constraint.schema({"enum": ["red", "blue"]})
    answers = []
    for drafts in (0, 3):
        params = Params(max_tokens=20, temp=1.0, seed=1, num_draft_tokens=drafts, constraint=form, logit_bias=bias)
        *events, end = caller.stream([{"role": "user", "content": "Which?"}], params, tools=[tool])
        calls = {event.arguments["unit"] for event in events if isinstance(event, Call)}
        answers.append((calls, "".join(event.text for event in events if isinstance(event, Text))))
    assert answers[1] == answers[0]
    calls, text = answers[0]
    if bias:
        assert calls
        assert calls <= {"C", "F"}
        assert text in ("", "<|tool_call>call:f{")  # it never stops to call, until the limit cuts it
    else:
        assert (calls, json.loads(text) in ("red", "blue"), end.finish_reason) == (set(), True, "stop")


def test_an_answer_that_was_cut_goes_on_in_its_form(pocket):
    constraint = Constraint.schema(PERSON)
    question = {"role": "user", "content": "Who are you? Answer as JSON."}
    begun, _, reason, complete = answer(pocket, constraint, max_tokens=8, temp=0.0)
    assert (reason, complete) == ("length", False)
    messages = [question, {"role": "assistant", "content": begun}]
    params = Params(constraint=constraint, temp=0.0, max_tokens=300)
    rest = "".join(event.text for event in pocket.stream(messages, params, continues=True) if isinstance(event, Text))
    jsonschema.validate(json.loads(begun + rest), PERSON)
    with pytest.raises(UsageError, match="does not fit"):
        pocket.stream([question, {"role": "assistant", "content": "I am"}], params, continues=True)


def test_what_could_have_gone_on_is_not_complete_where_it_was_cut(pocket):
    number = Constraint("regex", "[0-9]+")
    assert answer(pocket, number, max_tokens=3, temp=0.0)[2:] == ("length", False)
    assert answer(pocket, Constraint("regex", "[0-9]{3}"), temp=0.0)[2:] == ("stop", True)
    word = Constraint("regex", "(yes|no), [a-z]{3}")
    text, _, reason, complete = answer(pocket, word, stop_strings=[","], temp=0.0)
    assert (text in ("yes", "no"), reason, complete) == (True, "stop", False)


def test_a_grammar_without_an_end_stops_at_the_limit(pocket):
    constraint = Constraint("grammar", 'start: "[" next\nnext: %json {"const": "x"} next')
    constraint.check()  # what is in a grammar beside plain Lark is not looked into
    for drafts in (0, "auto"):
        text, _, reason, complete = answer(pocket, constraint, temp=0.0, max_tokens=40, num_draft_tokens=drafts)
        assert (reason, complete) == ("length", False)
        assert text.startswith('["x"')


def test_a_constraint_shows_what_it_is_and_nothing_else():
    """Files of `map` hold a hash of that: another field would keep a run from going on behind its answers."""
    shown = "Constraint(kind='regex', source='a', calls='')"
    assert repr(Constraint("regex", "a", call_mark=3)) == shown


@pytest.mark.parametrize(
    "constraint",
    [
        Constraint.schema({"type": "array", "uniqueItems": True}),
        Constraint.schema({"type": "object", "properties": {"x": {"$ref": "#"}}, "required": ["x"]}),
        Constraint("grammar", "start: r0\n" + "\n".join(f"r{i}: r{i + 1}" for i in range(5000)) + '\nr5000: "a"'),
    ],
    ids=["unsupported", "endless", "large"],
)
def test_a_form_that_cannot_be_held_to_is_refused_before_an_answer_in_python_too(pocket, constraint):
    messages, weather = [{"role": "user", "content": "Hi"}], {"type": "function", "function": {"name": "weather"}}
    with pytest.raises(UsageError, match="cannot be used"):
        pocket.stream(messages, Params(constraint=constraint))
    with pytest.raises(UsageError, match="cannot be used"):
        pocket.stream(messages, Params(constraint=constraint), tools=[weather])
    with pytest.raises(UsageError, match="cannot be used"):
        list(pocket.stream_many([messages], Params(constraint=constraint)))
