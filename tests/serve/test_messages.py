"""Anthropic's messages over a socket, with answers that are scripted."""

from __future__ import annotations

import json
import re

import pytest

from tests.serve.running import Json, Running, call

MESSAGES = "/v1/messages"
HI: list[Json] = [{"role": "user", "content": "Hi"}]
TOOL: Json = {
    "name": "f",
    "description": "F.",
    "input_schema": {"type": "object", "properties": {"a": {"type": "string"}}},
}
LIMIT: Json = {"max_tokens": 500}


def blocks(events: list[Json]) -> list[Json]:
    """The blocks that a client builds from a stream, after a check of the order of events."""
    kinds = [one["type"] for one in events if one["type"] != "ping"]
    assert kinds[0] == "message_start"
    assert kinds[-2:] == ["message_delta", "message_stop"]
    built: list[Json] = []
    open_block = False
    for one in events:
        if one["type"] == "content_block_start":
            assert not open_block
            assert one["index"] == len(built)
            open_block = True
            built.append({**one["content_block"], "json": ""})
        elif one["type"] == "content_block_delta":
            assert open_block
            assert one["index"] == len(built) - 1
            [(key, value)] = [(key, value) for key, value in one["delta"].items() if key != "type"]
            key = "json" if key == "partial_json" else key
            built[-1][key] += value
        elif one["type"] == "content_block_stop":
            open_block = False
    assert not open_block
    return built


def test_thought_text_and_calls_in_blocks(served: Running) -> None:
    answer = "<|channel>thought\nHm.\n<channel|>Look: " + call('f{a:"x"}') + call("g{}") + "<|tool_response>"
    served.say(answer, answer)
    body = {**LIMIT, "messages": HI, "tools": [TOOL, {**TOOL, "name": "g"}], "thinking": {"type": "adaptive"}}
    whole = served.post(MESSAGES, **body)
    assert [one["type"] for one in whole["content"]] == ["thinking", "text", "tool_use", "tool_use"]
    assert whole["content"][0]["signature"]
    assert [one["input"] for one in whole["content"][2:]] == [{"a": "x"}, {}]
    assert (whole["stop_reason"], whole["role"], whole["type"]) == ("tool_use", "assistant", "message")
    events = served.events(MESSAGES, **body)
    built = blocks(events)
    assert [one["type"] for one in built] == ["thinking", "text", "tool_use", "tool_use"]
    assert (built[0]["thinking"].strip(), built[1]["text"]) == ("Hm.", "Look: ")
    assert built[0]["signature"]
    assert [json.loads(one["json"]) for one in built[2:]] == [{"a": "x"}, {}]
    delta = events[-2]
    assert delta["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert delta["usage"]["output_tokens"] == whole["usage"]["output_tokens"]


def test_an_empty_answer_has_a_block(served: Running) -> None:
    served.say("<turn|>", "<turn|>")
    assert served.post(MESSAGES, **LIMIT, messages=HI)["content"] == [{"type": "text", "text": ""}]
    [block] = blocks(served.events(MESSAGES, **LIMIT, messages=HI))
    assert (block["type"], block["text"]) == ("text", "")


def test_an_empty_thought_is_no_block(served: Running) -> None:
    served.say(*["<|channel>thought\n<channel|>Yes.<turn|>"] * 2)
    body = {**LIMIT, "messages": HI, "thinking": {"type": "adaptive"}}
    assert served.post(MESSAGES, **body)["content"] == [{"type": "text", "text": "Yes."}]
    assert [one["type"] for one in blocks(served.events(MESSAGES, **body))] == ["text"]


def test_the_limit_is_a_reason(served: Running) -> None:
    served.say("abcdefghij<turn|>")
    assert served.post(MESSAGES, max_tokens=3, messages=HI)["stop_reason"] == "max_tokens"


def test_at_a_limit_of_0_the_prompt_is_read_and_nothing_is_answered(served: Running) -> None:
    served.say("abc<turn|>", "<turn|>", call("f{}"))
    body: Json = {"max_tokens": 0, "messages": HI, "tools": [TOOL]}
    for _ in range(2):
        whole = served.post(MESSAGES, **body)
        assert (whole["http"], whole["content"], whole["stop_reason"]) == (200, [], "max_tokens")
        assert (whole["usage"]["input_tokens"] > 0, whole["usage"]["output_tokens"]) == (True, 0)
        assert served.decoder.requests[-1].max_tokens == 1  # of which nothing is told
    events = served.events(MESSAGES, **body)
    assert blocks(events) == []
    assert events[-2]["delta"] == {"stop_reason": "max_tokens", "stop_sequence": None}
    assert events[-2]["usage"]["output_tokens"] == 0


def test_a_stop_sequence_is_named(served: Running) -> None:
    served.say("One. Two.<turn|>", "One. Two.<turn|>")
    whole = served.post(MESSAGES, **LIMIT, messages=HI, stop_sequences=["#", " Tw"])
    assert (whole["stop_reason"], whole["stop_sequence"]) == ("stop_sequence", " Tw")
    assert whole["content"] == [{"type": "text", "text": "One."}]
    delta = served.events(MESSAGES, **LIMIT, messages=HI, stop_sequences=[" Tw"])[-2]["delta"]
    assert delta == {"stop_reason": "stop_sequence", "stop_sequence": " Tw"}


def test_a_prompt_beyond_the_context_is_counted_and_refused(served: Running) -> None:
    body: Json = {"messages": [{"role": "user", "content": "x" * 9000}]}
    assert served.post(f"{MESSAGES}/count_tokens", **body)["input_tokens"] > 9000
    refused = served.post(MESSAGES, **body, max_tokens=9)
    assert (refused["http"], refused["error"]["type"]) == (400, "invalid_request_error")
    assert "prompt is too long: 90" in refused["error"]["message"]


def test_counted_tokens_are_those_of_the_request(served: Running) -> None:
    served.say("Hi.<turn|>", "Hi.<turn|>")
    body = {"messages": [{"role": "user", "content": "How are you?"}], "system": "Be kind.", "tools": [TOOL]}
    counted = served.post(f"{MESSAGES}/count_tokens", **body)["input_tokens"]
    usage = served.post(MESSAGES, **LIMIT, **body)["usage"]
    assert counted == usage["input_tokens"] + usage["cache_read_input_tokens"]
    assert served.events(MESSAGES, **LIMIT, **body)[0]["message"]["usage"]["input_tokens"] == counted
    assert counted > served.post(f"{MESSAGES}/count_tokens", messages=HI)["input_tokens"]


def test_a_tool_round_as_claude_code_sends_it(served: Running) -> None:
    served.say("Done.<turn|>")
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "Hi", "cache_control": {"type": "ephemeral"}}]},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "Hm.\n", "signature": "mlxmtp"},
            {"type": "text", "text": "Look:"},
            {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"a": "x"}},
        ]},
        {"role": "user", "content": [
            {"type": "text", "text": "And?"},
            {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "42"}]},
        ]},
        {"role": "system", "content": "Be brief."},
    ]  # fmt: skip
    system = [
        {"type": "text", "text": "x-anthropic-billing-header: cc_version=2; cch=abc12;"},
        {"type": "text", "text": "You are an agent."},
    ]
    body = {
        "messages": messages, "system": system, "tools": [TOOL, {"type": "web_search_20250305", "name": "web_search"}],
        "metadata": {"user_id": "u"}, "context_management": {"edits": []}, "output_config": {"effort": "high"},
        "thinking": {"type": "disabled"},
    }  # fmt: skip
    status, _, data = served.request("POST", f"{MESSAGES}?beta=true", {**LIMIT, **body})
    assert status == 200, data
    prompt = served.prompt()
    assert "<|turn>system\nYou are an agent.<|tool>declaration:f" in prompt
    assert "billing" not in prompt
    assert "web_search" not in prompt
    assert "model\nLook:<|channel>thought\nHm.\n<channel|>" not in prompt
    assert '<|tool_call>call:f{a:<|"|>x<|"|>}<tool_call|><|tool_response>response:f{value:<|"|>42<|"|>}' in prompt
    assert prompt.endswith("<|turn>user\nAnd?<turn|>\n<|turn>system\nBe brief.<turn|>\n<|turn>model\n")


def changes(*blocks: tuple[str, Json]) -> list[Json]:
    """Messages in which Claude Code adds tools and takes them away."""
    return [{"role": "system", "content": [{"type": f"tool_{kind}", "tool": tool}]} for kind, tool in blocks]


def named(name: str) -> Json:
    return {"type": "tool_reference", "name": name}


H: Json = {"type": "tool_definition", "definition": {**TOOL, "name": "h"}}
SEARCH: Json = {"type": "tool_definition", "definition": {"type": "web_search_20250305", "name": "web_search"}}
CHANGED: list[tuple[list[Json], str]] = [
    (changes(("addition", named("f"))), "f g"),
    (changes(("removal", named("f"))), "g"),
    (changes(("removal", named("f")), ("addition", named("f"))), "f g"),
    (changes(("addition", H)), "f g h"),
    (changes(("addition", H), ("removal", named("h"))), "f g"),
    (changes(("addition", H), ("removal", named("h")), ("removal", named("g")), ("addition", named("h"))), "f h"),
    (changes(("addition", SEARCH), ("removal", named("nothing"))), "f g"),
]


@pytest.mark.parametrize(("messages", "names"), CHANGED)
def test_tools_change_in_the_middle_of_a_conversation(served: Running, messages: list[Json], names: str) -> None:
    served.say("Done.<turn|>")
    tools = [TOOL, {**TOOL, "name": "g"}]
    answer = served.post(MESSAGES, **LIMIT, messages=[*HI, *messages], tools=tools)
    assert answer["http"] == 200, answer
    prompt = served.prompt()
    assert sorted(re.findall(r"declaration:(\w+)", prompt)) == names.split()
    assert prompt.endswith("<|turn>user\nHi<turn|>\n<|turn>model\n")  # nothing is said of it


def test_what_stands_beside_a_change_of_tools_is_read(served: Running) -> None:
    served.say("Done.<turn|>")
    [message] = changes(("addition", H))
    content = [*message["content"], {"type": "text", "text": "Be brief."}]
    assert served.post(MESSAGES, **LIMIT, messages=[*HI, {"role": "system", "content": content}])["http"] == 200
    assert "declaration:h" in served.prompt()
    assert "<|turn>system\nBe brief.<turn|>" in served.prompt()


def use(number: str, name: str) -> Json:
    return {"role": "assistant", "content": [{"type": "tool_use", "id": number, "name": name, "input": {}}]}


def result(number: str, content: object, **more: object) -> Json:
    return {"type": "tool_result", "tool_use_id": number, "content": content, **more}


DOCUMENT: Json = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "A plan."}}
RESULTS: list[tuple[list[Json], bool, str]] = [
    ([{"type": "tool_reference", "tool_name": "g"}], False, r"[^<]*\bg\b[^<]*"),
    ([{"type": "tool_reference", "tool_name": "g"}, {"type": "tool_reference", "tool_name": "h"}], False,
     r"[^<]*\bg\b[^<]*\bh\b[^<]*"),
    ([DOCUMENT], False, r"A plan\."),
    ([{"type": "text", "text": "Look:"}, DOCUMENT], True, r"Error: Look:\nA plan\."),
]  # fmt: skip


@pytest.mark.parametrize(("content", "wrong", "read"), RESULTS)
def test_results_may_hold_tools_that_were_found_and_documents(
    served: Running, content: list[Json], wrong: bool, read: str
) -> None:
    served.say("Done.<turn|>")
    messages = [*HI, use("1", "f"), {"role": "user", "content": [result("1", content, is_error=wrong)]}]
    answer = served.post(MESSAGES, **LIMIT, messages=messages, tools=[TOOL])
    assert answer["http"] == 200, answer
    assert re.search(rf'response:f\{{value:<\|"\|>{read}<\|"\|>\}}', served.prompt())


def test_results_of_two_messages_in_a_row_come_after_both(served: Running) -> None:
    served.say("Done.<turn|>")
    results = {"role": "user", "content": [result("2", "two"), result("1", "one")]}
    messages = [*HI, use("1", "f"), use("2", "g"), results]
    answer = served.post(MESSAGES, **LIMIT, messages=messages, tools=[TOOL])
    assert answer["http"] == 200, answer
    prompt = served.prompt()
    assert "<|tool_call>call:f{}<tool_call|><|tool_call>call:g{}<tool_call|>" in prompt
    assert 'response:f{value:<|"|>one<|"|>}' in prompt
    assert 'response:g{value:<|"|>two<|"|>}' in prompt


def test_the_beginning_of_an_answer_is_continued(served: Running) -> None:
    served.say(" B.<turn|>")
    served.post(MESSAGES, **LIMIT, messages=[*HI, {"role": "assistant", "content": "A,"}])
    assert served.prompt().endswith("<|turn>model\nA,")


REFUSED: list[tuple[Json, str]] = [
    ({"messages": HI}, "max_tokens"),
    ({"max_tokens": -1, "messages": HI}, "max_tokens"),
    ({**LIMIT, "messages": []}, "messages"),
    ({**LIMIT, "messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "messages[0].content[0]"),
    (
        {**LIMIT, "messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "x"}]}]},
        "tool_use_id",
    ),
    ({**LIMIT, "messages": HI, "tools": [TOOL], "tool_choice": {"type": "tool", "name": "g"}}, "tool_choice"),
    ({**LIMIT, "messages": HI, "output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema"),
    ({**LIMIT, "messages": HI, "tools": [{"name": ""}]}, "tools[0].name"),
]


@pytest.mark.parametrize(("body", "named"), REFUSED)
def test_what_is_wrong_is_named_in_this_protocol(served: Running, body: Json, named: str) -> None:
    answer = served.post(MESSAGES, **body)
    assert (answer["http"], answer["type"], answer["error"]["type"]) == (400, "error", "invalid_request_error")
    assert named in answer["error"]["message"]
