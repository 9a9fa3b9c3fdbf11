"""OpenAI's responses over a socket, with answers that are scripted."""

from __future__ import annotations

import base64
import json
import re

import pytest

from tests.serve.running import Json, Running, call

RESPONSES = "/v1/responses"
TOOL: Json = {"type": "function", "name": "f", "parameters": {"type": "object", "properties": {}}, "strict": False}


def test_items_of_a_stream_are_those_of_the_whole(served: Running) -> None:
    answer = "<|channel>thought\nHm.\n<channel|>Look: " + call('f{a:"x"}') + call("f{}") + "<|tool_response>"
    served.say(answer, answer)
    body = {"input": "Hi", "tools": [TOOL], "reasoning": {"effort": "high"}, "instructions": "Be kind."}
    whole = served.post(RESPONSES, **body)
    assert [one["type"] for one in whole["output"]] == ["reasoning", "message", "function_call", "function_call"]
    assert whole["output"][0]["content"][0]["text"].strip() == "Hm."
    assert whole["output"][1]["content"][0]["text"] == "Look: "
    assert [json.loads(one["arguments"]) for one in whole["output"][2:]] == [{"a": "x"}, {}]
    assert (whole["status"], whole["usage"]["output_tokens"] > 0, whole["instructions"]) == (
        "completed",
        True,
        "Be kind.",
    )
    events = served.events(RESPONSES, **body)
    assert [one["sequence_number"] for one in events] == list(range(len(events)))
    assert [one["type"] for one in events[:2]] == ["response.created", "response.in_progress"]
    final = events[-1]
    assert final["type"] == "response.completed"
    done = [one["item"] for one in events if one["type"] == "response.output_item.done"]
    assert done == final["response"]["output"]
    strip = [{key: value for key, value in one.items() if key not in ("id", "call_id")} for one in done]
    assert strip == [{k: v for k, v in one.items() if k not in ("id", "call_id")} for one in whole["output"]]
    for index, item in enumerate(done):
        mine = [one for one in events if one.get("output_index") == index]
        assert mine[0]["type"] == "response.output_item.added"
        assert mine[0]["item"]["id"] == item["id"]
        assert {one["item_id"] for one in mine[1:-1]} == {item["id"]}
        text = "".join(one["delta"] for one in mine if one["type"].endswith(".delta"))
        assert text == (item["arguments"] if item["type"] == "function_call" else item["content"][0]["text"])


def test_the_limit_leaves_a_response_incomplete(served: Running) -> None:
    served.say("abcdefghij<turn|>", "abcdefghij<turn|>")
    whole = served.post(RESPONSES, input="Hi", max_output_tokens=4)
    assert (whole["status"], whole["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert [item["status"] for item in whole["output"]] == ["incomplete"]
    *_, done, end = served.events(RESPONSES, input="Hi", max_output_tokens=4)
    assert (end["type"], done["item"]["status"]) == ("response.incomplete", "incomplete")


def test_a_tool_round_as_codex_sends_it(served: Running) -> None:
    served.say("Done.<turn|>")
    items = [
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "You are an agent."}]},
        {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm.\n"}]},
        {"type": "function_call", "call_id": "call_1", "name": "f", "arguments": '{"a": "x"}'},
        {"type": "additional_tools", "tools": []},
        {"type": "function_call_output", "call_id": "call_1", "output": "42"},
    ]
    tools = [
        TOOL,
        {"type": "namespace", "name": "ns", "tools": [{"type": "function", "name": "inner", "parameters": {}}]},
        {"type": "web_search"},
        {"type": "custom", "name": "apply_patch", "format": {}},
        {"type": "local_shell"},
    ]
    body = {
        "input": items,
        "tools": tools,
        "store": False,
        "include": ["reasoning.encrypted_content"],
        "truncation": "auto",
    }
    assert served.post(RESPONSES, **body)["http"] == 200
    prompt = served.prompt()
    assert prompt.count("declaration:") == 2
    assert "declaration:ns__inner" in prompt
    assert (
        "<|turn>user\nHi<turn|>\n<|turn>model\n<|channel>thought\nHm.\n<channel|>"
        '<|tool_call>call:f{a:<|"|>x<|"|>}<tool_call|><|tool_response>response:f{value:<|"|>42<|"|>}<tool_response|>'
    ) in prompt


def inside(namespace: str) -> Json:
    """A namespace, which is how Codex sends the tools of an MCP server."""
    return {"type": "namespace", "name": namespace, "description": "", "tools": [{**TOOL, "name": "search"}]}


def declared(served: Running) -> list[str]:
    return re.findall(r"declaration:(\w+)", served.prompt())


def test_functions_of_one_name_in_two_namespaces_are_told_apart(served: Running) -> None:
    tools = [inside("mcp__a__"), inside("mcp__b")]
    written = call("mcp__b__search{}") + "<|tool_response>"
    served.say(written, written, "Done.<turn|>", "Done.<turn|>")
    [whole] = served.post(RESPONSES, input="Hi", tools=tools)["output"]
    assert declared(served) == ["mcp__a__search", "mcp__b__search"]
    events = served.events(RESPONSES, input="Hi", tools=tools)
    items = [one["item"] for one in events if "item" in one]
    assert len(items) == 2
    [streamed] = events[-1]["response"]["output"]
    for item in (whole, *items, streamed):
        assert (item["type"], item["name"], item.get("namespace")) == ("function_call", "search", "mcp__b")
    for number in (streamed["call_id"], "call_of_another_server"):
        result = {"type": "function_call_output", "call_id": number, "output": "42"}
        sent = [{"role": "user", "content": "Hi"}, {**streamed, "call_id": number}, result]
        assert served.post(RESPONSES, input=sent, tools=tools)["http"] == 200
        assert (
            "<|tool_call>call:mcp__b__search{}<tool_call|><|tool_response>response:mcp__b__search{" in served.prompt()
        )


def test_tools_that_an_item_adds_are_declared(served: Running) -> None:
    served.say("Done.<turn|>")
    added = [{**TOOL, "name": "g"}, inside("ns"), {"type": "web_search"}]
    items = [{"role": "user", "content": "Hi"}, {"type": "additional_tools", "role": "developer", "tools": added}]
    assert served.post(RESPONSES, input=items, tools=[TOOL])["http"] == 200
    assert declared(served) == ["f", "g", "ns__search"]


def test_a_prompt_beyond_the_context_is_an_event_of_a_stream_and_a_status_without(served: Running) -> None:
    requests = len(served.decoder.requests)
    events = served.events(RESPONSES, input="x" * 9000)
    assert [one["sequence_number"] for one in events] == list(range(len(events)))
    assert (events[0]["type"], events[-1]["type"]) == ("response.created", "response.failed")
    failed = events[-1]["response"]
    assert (failed["status"], failed["error"]["code"]) == ("failed", "context_length_exceeded")
    assert "prompt is too long: 90" in failed["error"]["message"]
    whole = served.post(RESPONSES, input="x" * 9000)
    assert (whole["http"], whole["error"]["code"]) == (400, "context_length_exceeded")
    assert len(served.decoder.requests) == requests


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("typed", [{"type": "item_reference"}, {}])
def test_items_of_an_answer_can_be_referred_to(served: Running, typed: Json, stream: bool) -> None:
    served.say("<|channel>thought\nHm.\n<channel|>Look:" + call("f{}") + "<|tool_response>", "Done.<turn|>")
    hi: Json = {"role": "user", "content": "Hi"}
    body: Json = {"input": [hi], "tools": [TOOL]}
    response = served.events(RESPONSES, **body)[-1]["response"] if stream else served.post(RESPONSES, **body)
    said = response["output"]
    assert [one["type"] for one in said] == ["reasoning", "message", "function_call"]
    result = {"type": "function_call_output", "call_id": said[2]["call_id"], "output": "42"}
    items = [hi, *({**typed, "id": one["id"]} for one in said), result]
    assert served.post(RESPONSES, input=items, tools=[TOOL])["http"] == 200
    assert (
        "<|turn>model\n<|channel>thought\nHm.\n<channel|>Look:<|tool_call>call:f{}<tool_call|>"
        '<|tool_response>response:f{value:<|"|>42<|"|>}<tool_response|>'
    ) in served.prompt()


@pytest.mark.parametrize("typed", [{"type": "item_reference"}, {}])
def test_items_that_were_not_to_be_stored_are_unknown(served: Running, typed: Json) -> None:
    hi: Json = {"role": "user", "content": "Hi"}
    for store, http in ((True, 200), (False, 400)):
        served.say("Blue.<turn|>")
        [item] = served.post(RESPONSES, input=[hi], store=store)["output"]
        if http == 200:
            served.say("Done.<turn|>")
        answer = served.post(RESPONSES, input=[hi, {**typed, "id": item["id"]}, hi])
        assert answer["http"] == http
        if http == 200:
            assert "<|turn>model\nBlue.<turn|>" in served.prompt()
        else:
            assert answer["error"]["param"] == "input[1]"


@pytest.mark.parametrize("content", [[], [{"type": "reasoning_text", "text": "Hm."}]])
def test_a_thought_that_nothing_follows_is_no_answer(served: Running, content: list[Json]) -> None:
    thought = {"type": "reasoning", "id": "rs_1", "summary": [], "content": content}
    hi, prompts = {"role": "user", "content": "Hi"}, []
    for items in ([hi, thought, hi], [hi, hi]):
        served.say("Done.<turn|>")
        assert served.post(RESPONSES, input=items)["http"] == 200
        prompts.append(served.prompt())
    assert prompts[0] == prompts[1]


def test_an_earlier_response_is_not_found(served: Running) -> None:
    answer = served.post(RESPONSES, input="Hi", previous_response_id="resp_1")
    assert (answer["http"], answer["error"]["code"]) == (400, "previous_response_not_found")


DRAWN: Json = {
    "type": "input_image",
    "image_url": "data:image/svg+xml;base64," + base64.b64encode(b'<svg xmlns="http://www.w3.org/2000/svg"/>').decode(),
}


@pytest.mark.parametrize(
    ("items", "param"),
    [
        ([{"role": "user", "content": [DRAWN]}], "input[0].content[0].image_url"),
        (
            [
                {"type": "function_call", "call_id": "call_1", "name": "f", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "call_1", "output": [DRAWN]},
            ],
            "input[1].output[0].image_url",
        ),
    ],
)
def test_an_image_that_cannot_be_read_is_an_invalid_value(served: Running, items: list[Json], param: str) -> None:
    answer = served.post(RESPONSES, input=items, tools=[TOOL])
    error = answer["error"]
    assert (answer["http"], error["code"], error["param"]) == (400, "invalid_value", param)  # Codex takes it out then


@pytest.mark.parametrize(
    "allowed", [{"type": "namespace", "name": "ns"}, {"type": "function", "name": "inner", "namespace": "ns"}]
)
def test_functions_inside_a_namespace_can_be_the_allowed_ones(served: Running, allowed: Json) -> None:
    inside = [{"type": "function", "name": "inner", "parameters": {}}]
    body = {"input": "Hi", "tools": [TOOL, {"type": "namespace", "name": "ns", "tools": inside}]}
    served.say("Done.<turn|>")
    choice = {"type": "allowed_tools", "mode": "auto", "tools": [allowed]}
    assert served.post(RESPONSES, **body, tool_choice=choice)["http"] == 200
    assert re.findall(r"declaration:(\w+)", served.prompt()) == ["ns__inner"]


REFUSED: list[tuple[Json, str]] = [
    ({}, "input"),
    ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]"),
    ({"input": "Hi", "previous_response_id": "resp_1"}, "previous_response_id"),
    ({"input": "Hi", "background": True}, "background"),
    ({"input": "Hi", "text": {"format": {"type": "json_schema"}}}, "text.format.schema"),
    (
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
        "input[0].content[0].image_url",
    ),
    ({"input": [{"type": "function_call_output", "call_id": "x", "output": "1"}]}, "input[0].call_id"),
    ({"input": "Hi", "tools": [TOOL], "tool_choice": {"type": "function", "name": "g"}}, "tool_choice"),
]


@pytest.mark.parametrize(("body", "param"), REFUSED)
def test_what_is_wrong_is_named(served: Running, body: Json, param: str) -> None:
    answer = served.post(RESPONSES, **body)
    assert (answer["http"], answer["error"]["param"]) == (400, param)
