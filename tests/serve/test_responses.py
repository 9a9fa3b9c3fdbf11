"""OpenAI's responses over a socket, with answers that are scripted."""

from __future__ import annotations

import json

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
    assert served.events(RESPONSES, input="Hi", max_output_tokens=4)[-1]["type"] == "response.incomplete"


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
    assert "declaration:inner" in prompt
    assert (
        "<|turn>user\nHi<turn|>\n<|turn>model\n<|channel>thought\nHm.\n<channel|>"
        '<|tool_call>call:f{a:<|"|>x<|"|>}<tool_call|><|tool_response>response:f{value:<|"|>42<|"|>}<tool_response|>'
    ) in prompt


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
