"""Answers that must have a form: JSON of a schema, or calls."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxmtp.engine.call_grammar import calls_only, form_or_calls, text_or_calls
from mlxmtp.engine.calls import CallReader
from mlxmtp.engine.constraint import Constraint, Matcher, TokenTable
from mlxmtp.engine.events import Call
from mlxmtp.engine.tokenizer import Tokenizer
from mlxmtp.serve.tools import declare
from tests.serve.running import TEMPLATE, Json, Running, call
from tests.text_checkpoint import write_text_checkpoint

HI: list[Json] = [{"role": "user", "content": "Hi"}]
STOP = [1, 50, 106]
SCHEMA: Json = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
TOOL: Json = {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}


@pytest.fixture(scope="module")
def text_side(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, TokenTable]:
    tokenizer = Tokenizer.load(write_text_checkpoint(tmp_path_factory.mktemp("forms"), template=TEMPLATE))
    return tokenizer, TokenTable(tokenizer, 700, STOP)


def accepted(text_side: tuple[Tokenizer, TokenTable], tools: list[Json], text: str, *, several: bool = True) -> bool:
    tokenizer, table = text_side
    matcher = Matcher(calls_only(tools, tokenizer, several=several), table)
    tokens = tokenizer.encode(text)
    return matcher.accept(tokens) == len(tokens) and matcher.complete


WEATHER = declare(
    "weather",
    "",
    {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "unit": {"enum": ["C", "F"]},
            "Days": {"type": ["integer", "null"]},
            "tags": {"type": "array", "items": {"type": "string"}},
            "place": {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"]},
            "more": {"type": "object"},
        },
        "required": ["city"],
    },
    "tools[0]",
)


@pytest.mark.parametrize(
    ("written", "allowed"),
    [
        ('weather{city:"Rome, {x}"}', True),
        ('weather{city:"",Days:3,more:{a:[1,true,{b:null}]},place:{x:-1.5},tags:["a","b"],unit:"C"}', True),
        ('weather{city:"x",Days:null,tags:[]}', True),
        ("weather{}", False),
        ("weather{city:3}", False),
        ('weather{city:"x",unit:"K"}', False),
        ('weather{city:"x",unit:"C",tags:[]}', False),  # keys come in their order
        ('weather{city:"x",other:1}', False),
        ('rain{city:"x"}', False),
        ("Hello", False),
    ],
)
def test_a_forced_call_is_one_of_the_tool(text_side: Any, written: str, allowed: bool) -> None:
    assert accepted(text_side, [WEATHER], call(written)) == allowed
    thought = "<|channel>thought\nAnything {} <channel|>"
    assert accepted(text_side, [WEATHER], thought + call(written)) == allowed


def test_one_call_or_several(text_side: Any) -> None:
    tools = [declare("now", "", None, ""), declare("f", "", {"additionalProperties": True}, "")]
    both = call("now{}") + call("f{a:1}")
    assert accepted(text_side, tools, both)
    assert not accepted(text_side, tools, call("now{a:1}"))  # it takes nothing
    assert accepted(text_side, tools, call("f{}"), several=False)
    assert not accepted(text_side, tools, both, several=False)


@pytest.mark.parametrize("key", ["a", "Due date", "Größe", "src/a.py", "7", "it's (new)", "日本", "x" * 64])
def test_a_free_object_has_the_keys_that_the_model_means(text_side: Any, key: str) -> None:
    tokenizer, _ = text_side
    written = call(f"f{{more:{{{key}:1}}}}")
    assert accepted(text_side, [declare("f", "", {"properties": {"more": {"type": "object"}}}, "")], written)
    reader = CallReader(tokenizer)
    [read] = [part for token in tokenizer.encode(written) for part in reader.feed(token)]
    assert isinstance(read, Call)
    assert read.arguments == {"more": {key: 1}}


@pytest.mark.parametrize("key", ["", " a", "a ", "\u3000a", "a\nb", "a\x7fb", '"a"', "a[0]", "x" * 65])
def test_no_key_is_read_as_another(text_side: Any, key: str) -> None:
    written = call(f"f{{{key}:1}}")
    assert not accepted(text_side, [declare("f", "", {"additionalProperties": True}, "")], written)
    plain = written.replace('<|"|>', '"')
    assert not accepted(text_side, [declare("f", "", {"additionalProperties": True}, "")], plain)


@pytest.mark.parametrize("kind", ["text", "form", "calls"])
def test_no_call_stands_in_a_thought(text_side: Any, kind: str) -> None:
    tokenizer, table = text_side
    tools = [declare("now", "", None, "")]
    constraint = {
        "text": text_or_calls(tools, tokenizer, STOP),
        "form": form_or_calls(Constraint.schema({}), tools, tokenizer),
        "calls": calls_only(tools, tokenizer, several=True),
    }[kind]
    opened, thought = tokenizer.encode("<|channel>"), tokenizer.encode("thought\nHm ")
    rest, closed = tokenizer.encode(call("now{}")), tokenizer.encode("<channel|>")
    beginnings = [opened, [*tokenizer.encode("Well, "), *opened], [*opened, *closed, *opened]]
    for begun in [[], *(beginnings if kind == "text" else beginnings[:1])]:
        matcher = Matcher(constraint, table, begun, in_thought=not begun)
        assert matcher.accept(thought) == len(thought)
        assert matcher.accept(rest) == 0
        assert matcher.accept([*closed, *rest]) == len(closed) + len(rest)
        assert matcher.complete


def test_an_answer_in_free_text_may_end_in_a_thought(text_side: Any) -> None:
    tokenizer, table = text_side
    matcher = Matcher(text_or_calls([declare("now", "", None, "")], tokenizer, STOP), table)
    thought = tokenizer.encode("Well <channel|> <|channel>thought\nHm <|channel> <channel|> so <|channel>thought")
    assert matcher.accept(thought) == len(thought)
    assert matcher.complete
    assert matcher.accept(STOP[:1]) == 1


VALUES: dict[str, st.SearchStrategy[Any]] = {
    "string": st.text(st.characters(codec="ascii", exclude_characters="\0"), max_size=8),
    "integer": st.integers(-(10**9), 10**9),
    "boolean": st.booleans(),
}


@st.composite
def arguments(draw: st.DrawFn) -> tuple[Json, Json]:
    """A schema of a flat object and arguments that it allows."""
    kinds = draw(
        st.dictionaries(st.text("abcXY_", min_size=1, max_size=4), st.sampled_from(sorted(VALUES)), max_size=5)
    )
    required = [name for name in kinds if draw(st.booleans())]
    given = {name: draw(VALUES[kind]) for name, kind in kinds.items() if name in required or draw(st.booleans())}
    properties = {name: {"type": kind} for name, kind in kinds.items()}
    return {"type": "object", "properties": properties, "required": required}, given


@settings(max_examples=60, deadline=None)
@given(arguments())
def test_whatever_a_schema_allows_can_be_written(text_side: Any, case: tuple[Json, Json]) -> None:
    schema, values = case
    lower = [name.lower() for name in schema["properties"]]
    if len(set(lower)) < len(lower):
        return  # templates leave the order of such keys open
    written = ",".join(
        f'{name}:"{value}"' if isinstance(value, str) else f"{name}:{json.dumps(value)}"
        for name, value in sorted(values.items(), key=lambda item: item[0].lower())
        if not isinstance(value, str) or '"' not in value
    )
    if any(isinstance(value, str) and '"' in value for value in values.values()):
        return
    assert accepted(text_side, [declare("f", "", schema, "")], call(f"f{{{written}}}"))


FORM: Json = {"type": "json_schema", "schema": SCHEMA}
FORMATS: list[tuple[str, Json]] = [
    ("/v1/chat/completions", {"messages": HI, "response_format": {"type": "json_schema", "json_schema": FORM}}),
    ("/v1/responses", {"input": "Hi", "text": {"format": {**FORM, "name": "x"}}}),
    ("/v1/chat/completions", {"messages": HI, "response_format": {"type": "json_object", "schema": SCHEMA}}),
    ("/v1/messages", {"messages": HI, "max_tokens": 50, "output_config": {"format": FORM}}),
    ("/v1/messages", {"messages": HI, "max_tokens": 50, "output_format": FORM}),
    ("/api/chat", {"model": "fake", "messages": HI, "format": SCHEMA, "stream": False}),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body"), FORMATS)
def test_a_format_reaches_the_decoder(served: Running, path: str, body: Json) -> None:
    served.say('{"a":1}<turn|>')
    assert served.post(path, **body)["http"] == 200
    matcher = served.decoder.requests[-1].constraint
    assert matcher.accept(served.tokenizer.encode('{"a":"')) < 6


def continuing(path: str, begun: str) -> Json:
    """A body that asks for JSON, its beginning given."""
    messages = [*HI, {"role": "assistant", "content": begun}]
    if path == "/v1/messages":
        return {"messages": messages, "max_tokens": 50, "output_config": {"format": FORM}}
    form = {"type": "json_schema", "json_schema": FORM}
    return {"messages": messages, "continue_final_message": True, "response_format": form}


@pytest.mark.parametrize("tools", [False, True])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
def test_a_continuation_goes_on_in_its_form(served: Running, path: str, tools: bool) -> None:
    own = TOOL if path == "/v1/chat/completions" else {"name": "f", "input_schema": SCHEMA}
    body = continuing(path, '{"a"') | ({"tools": [own]} if tools else {})
    for text, right in ((":1}", True), ('{"a":1}', False), ("<|channel>thought\n", False)):
        served.say(":1}<turn|>")
        assert served.post(path, **body)["http"] == 200
        matcher, tokens = served.decoder.requests[-1].constraint, served.tokenizer.encode(text)
        assert (matcher.accept(tokens) == len(tokens) and matcher.complete) == right


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
def test_a_beginning_without_the_form_is_refused(served: Running, path: str, stream: bool) -> None:
    answer = served.post(path, **continuing(path, "I am"), stream=stream)
    assert (answer["http"], "is to be continued" in answer["error"]["message"]) == (400, True), answer


def test_a_forced_call_may_follow_any_text(served: Running) -> None:
    served.say(call("f{a:1}") + "<|tool_response>")
    body = continuing("/v1/chat/completions", "I look. ") | {"tools": [TOOL], "tool_choice": "required"}
    assert served.post("/v1/chat/completions", **body)["choices"][0]["finish_reason"] == "tool_calls"


GUIDED: list[tuple[Json, str, str]] = [
    ({"guided_json": SCHEMA}, '{"a":1}', '{"a":"'),
    ({"guided_regex": "[ab]+c"}, "abac", "abd"),
    ({"guided_grammar": 'start: "yes" | "no"'}, "no", "nn"),
    ({"guided_choice": ["grün", 'a "b" \\n']}, 'a "b" \\n', "a b"),
    ({"guided_choice": [f"{i // 60}:{i % 60}:00" for i in range(1200)]}, "12:30:00", "12 "),
    ({"structured_outputs": {"choice": ["yes", "no"]}}, "yes", "yn"),
    ({"structured_outputs": {"json": SCHEMA}}, '{"a":1}', '{"a":"'),
    ({"structured_outputs": {"json_object": True}}, '{"b":1}', "[1]"),
    ({"structured_outputs": {"regex": "[ab]+c"}}, "abac", "abd"),
    ({"structured_outputs": {"grammar": 'start: "yes" | "no"'}}, "no", "nn"),
]


@pytest.mark.parametrize(("body", "right", "wrong"), GUIDED)
@pytest.mark.parametrize("asked", [{"messages": HI}, {"prompt": "Hi"}])
def test_forms_as_vllm_names_them(served: Running, asked: Json, body: Json, right: str, wrong: str) -> None:
    path = "/v1/chat/completions" if "messages" in asked else "/v1/completions"
    for text in (right, wrong):
        served.say(f"{right}<turn|>")
        assert served.post(path, **asked, **body)["http"] == 200
        matcher, tokens = served.decoder.requests[-1].constraint, served.tokenizer.encode(text)
        assert (matcher.accept(tokens) == len(tokens)) == (text == right)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "f"}}])
def test_a_forced_call_reaches_the_decoder(served: Running, choice: object) -> None:
    served.say(call("f{a:1}") + "<|tool_response>")
    answer = served.post("/v1/chat/completions", messages=HI, tools=[TOOL], tool_choice=choice)
    assert answer["choices"][0]["finish_reason"] == "tool_calls"
    matcher = served.decoder.requests[-1].constraint
    assert matcher.accept(served.tokenizer.encode("Hello")) == 0


OTHER: Json = {"type": "function", "function": {"name": "g", "parameters": SCHEMA}}


def allowing_one(path: str, mode: str) -> Json:
    """A body that declares two tools and allows the second."""
    if path == "/v1/responses":
        tools = [{"type": "function", **one["function"]} for one in (OTHER, TOOL)]
        choice: Json = {"type": "allowed_tools", "mode": mode, "tools": [{"type": "function", "name": "f"}]}
        return {"input": "Hi", "tools": tools, "tool_choice": choice}
    allowed = {"mode": mode, "tools": [{"type": "function", "function": {"name": "f"}}]}
    choice = {"type": "allowed_tools", "allowed_tools": allowed}
    return {"messages": HI, "tools": [OTHER, TOOL], "tool_choice": choice}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
def test_tools_that_are_not_allowed_are_not_declared(served: Running, path: str) -> None:
    served.say("Hello<turn|>")
    assert served.post(path, **allowing_one(path, "auto"))["http"] == 200
    assert re.findall(r"declaration:(\w+)", served.prompt()) == ["f"]
    assert served.decoder.requests[-1].constraint is None


@pytest.mark.parametrize(
    ("written", "right"), [(call("f{a:1}"), True), (call("g{a:1}"), False), ('{"a":1}', False), ("Hello", False)]
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
def test_a_call_of_the_allowed_tool_may_be_required(served: Running, path: str, written: str, right: bool) -> None:
    served.say(call("f{a:1}") + "<|tool_response>")
    assert served.post(path, **allowing_one(path, "required"))["http"] == 200
    assert re.findall(r"declaration:(\w+)", served.prompt()) == ["f"]
    matcher, tokens = served.decoder.requests[-1].constraint, served.tokenizer.encode(written)
    assert (matcher.accept(tokens) == len(tokens)) == right


@pytest.mark.parametrize(
    ("more", "form", "calls"),
    [
        ({}, True, 2),
        ({"tool_choice": "auto", "parallel_tool_calls": False}, True, 1),
        ({"tool_choice": "none"}, True, 0),
        ({"tool_choice": "required"}, False, 2),
    ],
)
@pytest.mark.parametrize("written", ['{"a":1}', call("f{a:1}"), call("f{a:1}") * 2, 'I see: {"a":1}', call('f{a:"x"}')])
def test_with_a_form_and_tools_an_answer_is_one_or_the_other(
    served: Running, more: Json, form: bool, calls: int, written: str
) -> None:
    served.say(written + "<turn|>")
    served.post("/v1/chat/completions", messages=HI, guided_json=SCHEMA, tools=[TOOL], **more)
    matcher, tokens = served.decoder.requests[-1].constraint, served.tokenizer.encode(written)
    allowed = (written == '{"a":1}' and form) or written in (call("f{a:1}"), call("f{a:1}") * 2)[:calls]
    assert (matcher.accept(tokens) == len(tokens) and matcher.complete) == allowed


REFUSED: list[tuple[Json, str]] = [
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "response_format.json_schema.schema"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "object", "not": {}}}}},
        "response_format",
    ),
    (
        {"guided_json": {"type": "object", "not": {}}, "tools": [TOOL], "tool_choice": "required"},
        "response_format",
    ),
    ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs.structural_tag"),
    ({"guided_choice": [1]}, "guided_choice"),
]


@pytest.mark.parametrize(("body", "param"), REFUSED)
def test_a_form_that_cannot_be_had_is_named(served: Running, body: Json, param: str) -> None:
    answer = served.post("/v1/chat/completions", messages=HI, **body)
    assert (answer["http"], answer["error"]["param"]) == (400, param), answer
