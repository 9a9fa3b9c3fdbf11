"""Ollama's protocol, and completions of a plain text, over a socket."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.serve.running import Json, Running, call, running

HI: list[Json] = [{"role": "user", "content": "Hi"}]
TOOL: Json = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


def lines(served: Running, path: str, **body: object) -> list[Json]:
    status, headers, data = served.request("POST", path, body)
    assert (status, headers["content-type"]) == (200, "application/x-ndjson"), data
    return [json.loads(line) for line in data.splitlines()]


def test_chat_streams_lines_unless_told_otherwise(served: Running) -> None:
    served.say("Hello.<turn|>", "Hello.<turn|>")
    found = lines(served, "/api/chat", model="fake:latest", messages=HI, tools=[])
    assert "".join(one["message"]["content"] for one in found) == "Hello."
    assert [one["done"] for one in found] == [False] * (len(found) - 1) + [True]
    assert found[-1]["done_reason"] == "stop"
    assert found[-1]["eval_count"] == 7
    whole = served.post("/api/chat", model="fake", messages=HI, stream=False)
    assert (whole["message"], whole["done"]) == ({"role": "assistant", "content": "Hello."}, True)


def test_a_line_has_no_character_at_which_clients_split_lines(served: Running) -> None:
    """Ollama's own client reads lines by httpx, which splits as `str.splitlines`."""
    text = "a\u2028b\u2029c\x85d\x0be\r\nf"
    served.say(f"{text}<turn|>")
    status, _, data = served.request("POST", "/api/chat", {"model": "fake", "messages": HI})
    assert status == 200
    found = [json.loads(line) for line in data.decode().splitlines()]
    assert "".join(one["message"]["content"] for one in found) == text


def test_thoughts_and_calls(served: Running) -> None:
    served.say("<|channel>thought\nHm.\n<channel|>" + call("f{a:1}") + "<|tool_response>")
    found = lines(served, "/api/chat", model="fake", messages=HI, tools=[TOOL], think=True)
    assert "".join(one["message"].get("thinking", "") for one in found).strip() == "Hm."
    [function] = [one["function"] for line in found for one in line["message"].get("tool_calls", [])]
    assert (function["name"], function["arguments"]) == ("f", {"a": 1})


def test_calls_are_numbered_through_a_stream(served: Running) -> None:
    served.say(call("f{a:1}") + call("f{a:2}") + "<|tool_response>")
    found = lines(served, "/api/chat", model="fake", messages=HI, tools=[TOOL])
    calls = [one["function"] for line in found for one in line["message"].get("tool_calls", [])]
    assert [(one["index"], one["arguments"]) for one in calls] == [(0, {"a": 1}), (1, {"a": 2})]


def test_results_without_ids_belong_to_the_calls_in_order(served: Running) -> None:
    served.say("Done.<turn|>")
    calls: list[Json] = [{"function": {"name": name, "arguments": {}}} for name in ("f", "g")]
    results = [{"role": "tool", "tool_name": name, "content": name.upper()} for name in ("f", "g")]
    messages = [*HI, {"role": "assistant", "content": "", "tool_calls": calls}, *results]
    assert served.post("/api/chat", model="fake", messages=messages, tools=[TOOL], stream=False)["http"] == 200
    assert 'response:f{value:<|"|>F<|"|>}' in served.prompt()
    assert 'response:g{value:<|"|>G<|"|>}' in served.prompt()


def test_results_without_ids_belong_to_the_tools_that_they_name(served: Running) -> None:
    served.say("Done.<turn|>")
    calls: list[Json] = [{"function": {"name": name, "arguments": {}}} for name in ("f", "g", "f")]
    said = (("g", "G"), ("f", "F"), ("f", "FF"))
    results = [{"role": "tool", "tool_name": name, "content": content} for name, content in said]
    messages = [*HI, {"role": "assistant", "content": "", "tool_calls": calls}, *results]
    assert served.post("/api/chat", model="fake", messages=messages, tools=[TOOL], stream=False)["http"] == 200
    for name, content in said:
        assert f'response:{name}{{value:<|"|>{content}<|"|>}}' in served.prompt()


def test_thoughts_as_messages_of_their_own_are_passed_over(served: Running) -> None:
    served.say("Done.<turn|>", "Done.<turn|>")
    before = [*HI, {"role": "thinking", "content": "Hm."}, {"role": "assistant", "content": "Yes."}]
    prompts = []
    for messages in (before, [one for one in before if one["role"] != "thinking"]):
        body = {"model": "fake", "messages": [*messages, {"role": "user", "content": "And?"}], "stream": False}
        assert served.post("/api/chat", **body)["http"] == 200
        prompts.append(served.prompt())
    assert prompts[0] == prompts[1]
    assert "Yes." in prompts[0]


def test_an_answer_at_the_end_is_continued(served: Running) -> None:
    served.say(" b.<turn|>")
    messages = [*HI, {"role": "assistant", "content": "A,"}]
    answer = served.post("/api/chat", model="fake", messages=messages, stream=False)
    assert answer["message"]["content"] == " b."
    assert served.prompt().endswith("<|turn>model\nA,")


def test_calls_at_the_end_are_not_continued(served: Running) -> None:
    served.say("Done.<turn|>")
    calls: list[Json] = [{"function": {"name": "f", "arguments": {}}}]
    messages = [*HI, {"role": "assistant", "content": "A,", "tool_calls": calls}]
    assert served.post("/api/chat", model="fake", messages=messages, tools=[TOOL], stream=False)["http"] == 200
    assert "<|tool_call>call:f{}<tool_call|>" in served.prompt()


def test_limits_of_the_server_can_be_lifted(tmp_path: Path) -> None:
    thought = f"<|channel>thought\n{'x' * 60}\n<channel|>"
    with running(tmp_path, defaults={"max_tokens": 90, "think_tokens": 8}) as served:
        for number, effort in ((-1, "high"), (-2, "max")):
            served.say(f"{thought}{'y' * 60}<turn|>")
            body = {"model": "fake", "messages": HI, "stream": False, "think": effort}
            answer = served.post("/api/chat", **body, options={"num_predict": number})
            assert (answer["done_reason"], answer["message"]["content"]) == ("stop", "y" * 60)
            assert answer["message"]["thinking"].strip() == "x" * 60


def test_generate(served: Running) -> None:
    served.say("Hello.<turn|>", " there")
    options = {"num_predict": 90, "temperature": 0, "repeat_penalty": 1.0, "num_ctx": 4096}
    found = lines(served, "/api/generate", model="fake", prompt="Hi", system="Be kind.", options=options)
    assert "".join(one["response"] for one in found) == "Hello."
    assert served.prompt().startswith("<bos><|turn>system\nBe kind.<turn|>\n<|turn>user\nHi")
    raw = served.post("/api/generate", model="fake", prompt="Hello", raw=True, stream=False, options={"num_predict": 2})
    assert (raw["response"], raw["done_reason"], served.prompt()) == (" ther", "length", "<bos>Hello")


@pytest.mark.parametrize(("path", "body"), [("/api/chat", {"messages": HI}), ("/api/generate", {"prompt": "Hi"})])
def test_stop_strings(served: Running, path: str, body: Json) -> None:
    served.say("Hello END there")
    answer = served.post(path, model="fake", stream=False, options={"stop": ["END"]}, **body)
    assert (answer.get("response") or answer["message"]["content"], answer["done_reason"]) == ("Hello ", "stop")


def test_a_request_for_nothing_loads_the_model(served: Running) -> None:
    assert served.post("/api/generate", model="fake")["done_reason"] == "load"
    assert served.post("/api/chat", model="fake", messages=[])["done_reason"] == "load"


def test_lists(served: Running) -> None:
    assert served.get("/api/tags")["models"][0]["name"] == "fake:latest"
    served.post("/api/generate", model="fake")  # so that it is in memory
    digests = {served.get(path)["models"][0]["digest"] for path in ("/api/tags", "/api/ps")}
    assert len(digests) == 1
    assert len(digests.pop()) >= 12  # Ollama's own client shows so many, and ends where there are fewer
    version = served.get("/api/version")["version"]  # VS Code wants 0.6.4 or more, others 0.14.2 or 0.35
    assert tuple(map(int, version.split("."))) >= (0, 35, 0)
    shown = served.post("/api/show", model="fake")
    assert shown["model_info"]["gemma4.context_length"] == 4096
    assert set(shown["capabilities"]) == {"completion", "tools", "thinking"}
    assert served.post("/api/show", model="other") == {
        "http": 404,
        "error": "Model 'other' is not served here: there is 'fake'.",
    }


def test_errors_are_one_sentence(served: Running) -> None:
    assert served.post("/api/chat", model="fake", messages=HI, format="xml")["error"].startswith("format must be")
    assert served.post("/api/chat", messages=HI)["error"] == "model must be a text."
    image = [{"role": "user", "content": "", "images": ["x"]}]
    assert "messages[0].images" in served.post("/api/chat", model="fake", messages=image)["error"]


def test_a_plain_text_is_continued(served: Running) -> None:
    served.say(" time<turn|>", " time<turn|>")
    whole = served.post("/v1/completions", prompt="Once upon a", max_tokens=50)
    assert (whole["choices"][0]["text"], whole["object"]) == (" time", "text_completion")
    assert served.prompt() == "<bos>Once upon a"
    chunks = served.events("/v1/completions", prompt=["Once upon a"])
    assert "".join(one["choices"][0]["text"] for one in chunks) == " time"
    assert served.post("/v1/completions", prompt=["a", "b"])["error"]["param"] == "prompt"
    for field in ({"suffix": "b"}, {"echo": True}, {"echo": 1}, {"best_of": 2}, {"typical_p": True}):
        answer = served.post("/v1/completions", prompt="a", **field)
        assert (answer["http"], answer["error"]["param"]) == (400, *field)
    served.say("b<turn|>")
    assert served.post("/v1/completions", prompt="a", echo=False, best_of=1, suffix="")["http"] == 200
