"""The official clients against the server: streams, whole answers, tool rounds, errors."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.serve.running import Json, Running, call

openai = pytest.importorskip("openai")
anthropic = pytest.importorskip("anthropic")
ollama = pytest.importorskip("ollama")

SCHEMA: Json = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
CALLS = call('weather{city:"Rome"}') + call('weather{city:"Oslo"}') + "<|tool_response>"
THOUGHT = "<|channel>thought\nHm.\n<channel|>"
HI: list[Any] = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def openai_client(served: Running) -> Any:
    with openai.OpenAI(base_url=f"{served.server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def anthropic_client(served: Running) -> Any:
    with anthropic.Anthropic(base_url=served.server.url, api_key="none", max_retries=0) as client:
        yield client


def test_openai_chat_with_a_tool_round(served: Running, openai_client: Any) -> None:
    tools = [{"type": "function", "function": {"name": "weather", "description": "W.", "parameters": SCHEMA}}]
    served.say(CALLS, "Warm and cold.<turn|>")
    first = openai_client.chat.completions.create(model="fake", messages=HI, tools=tools)
    [choice] = first.choices
    assert choice.finish_reason == "tool_calls"
    calls = choice.message.tool_calls
    assert [json.loads(one.function.arguments)["city"] for one in calls] == ["Rome", "Oslo"]
    results = [{"role": "tool", "tool_call_id": one.id, "content": f"result {i}"} for i, one in enumerate(calls)]
    second = openai_client.chat.completions.create(model="fake", messages=[*HI, choice.message, *results], tools=tools)
    assert second.choices[0].message.content == "Warm and cold."
    assert 'value:<|"|>result 1<|"|>' in served.prompt()
    assert second.usage.prompt_tokens == len(served.decoder.requests[-1].prompt)


def test_openai_chat_stream_helper(served: Running, openai_client: Any) -> None:
    tools = [{"type": "function", "function": {"name": "weather", "parameters": SCHEMA, "strict": True}}]
    served.say(f"{THOUGHT}Look: {CALLS}")
    with openai_client.chat.completions.stream(
        model="fake", messages=HI, tools=tools, stream_options={"include_usage": True}
    ) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert "tool_calls.function.arguments.done" in kinds
    message = final.choices[0].message
    assert (message.content, message.reasoning_content.strip()) == ("Look: ", "Hm.")
    assert [one.function.parsed_arguments or json.loads(one.function.arguments) for one in message.tool_calls] == [
        {"city": "Rome"},
        {"city": "Oslo"},
    ]
    assert final.usage.total_tokens > 0


def test_openai_responses(served: Running, openai_client: Any) -> None:
    tool = {"type": "function", "name": "weather", "parameters": SCHEMA, "strict": False}
    served.say(f"{THOUGHT}Look: {CALLS}", "Warm.<turn|>")
    with openai_client.responses.stream(model="fake", input="Hi", tools=[tool]) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_response()
    assert {"response.created", "response.output_text.delta", "response.function_call_arguments.done"} <= kinds
    calls = [item for item in final.output if item.type == "function_call"]
    assert [json.loads(one.arguments)["city"] for one in calls] == ["Rome", "Oslo"]
    results = [{"type": "function_call_output", "call_id": one.call_id, "output": "20"} for one in calls]
    history = [{"role": "user", "content": "Hi"}, *[item.model_dump() for item in final.output], *results]
    second = openai_client.responses.create(model="fake", input=history, tools=[tool])
    assert (second.output_text, second.status) == ("Warm.", "completed")
    assert 'value:<|"|>20<|"|>' in served.prompt()


def test_openai_errors_and_models(served: Running, openai_client: Any) -> None:
    assert [one.id for one in openai_client.models.list()] == ["fake"]
    with pytest.raises(openai.NotFoundError, match="not served here"):
        openai_client.chat.completions.create(model="gpt-4o", messages=HI)
    with pytest.raises(openai.BadRequestError) as error:
        openai_client.chat.completions.create(model="fake", messages=HI, functions=[{"name": "f"}])
    assert (error.value.param, error.value.code) == ("functions", "unsupported_parameter")
    served.say("abc<turn|>")
    plain = openai_client.completions.create(model="fake", prompt="x", max_tokens=2)
    assert (plain.choices[0].text, plain.choices[0].finish_reason) == ("ab", "length")


def test_anthropic_with_a_tool_round(served: Running, anthropic_client: Any) -> None:
    tools = [{"name": "weather", "description": "W.", "input_schema": SCHEMA}]
    served.say(f"{THOUGHT}Look: {CALLS}", "Warm.<turn|>")
    thinking = {"type": "enabled", "budget_tokens": 1024}
    with anthropic_client.messages.stream(
        model="fake", max_tokens=2048, messages=HI, tools=tools, thinking=thinking
    ) as stream:
        assert "".join(stream.text_stream) == "Look: "
        first = stream.get_final_message()
    assert first.stop_reason == "tool_use"
    uses = [block for block in first.content if block.type == "tool_use"]
    assert [one.input for one in uses] == [{"city": "Rome"}, {"city": "Oslo"}]
    results = [{"type": "tool_result", "tool_use_id": one.id, "content": "20"} for one in uses]
    messages = [*HI, {"role": "assistant", "content": first.content}, {"role": "user", "content": results}]
    body = {"model": "fake", "messages": messages, "tools": tools}
    counted = anthropic_client.messages.count_tokens(**body).input_tokens
    second = anthropic_client.messages.create(max_tokens=2048, **body)
    assert (second.content[0].text, second.stop_reason) == ("Warm.", "end_turn")
    assert second.usage.input_tokens + second.usage.cache_read_input_tokens == counted
    image = {"type": "image", "source": {"type": "url", "url": "http://127.0.0.1/x.png"}}
    with pytest.raises(anthropic.BadRequestError, match=r"messages\[0\]\.content\[0\]\.source\.url: nothing"):
        anthropic_client.messages.create(model="fake", max_tokens=9, messages=[{"role": "user", "content": [image]}])


def test_ollama_client(served: Running) -> None:
    with ollama.Client(host=served.server.url) as client:
        assert [one.model for one in client.list().models] == ["fake:latest"]
        served.say(f"{THOUGHT}Hello.<turn|>", CALLS, "Hi.<turn|>", "Hi.<turn|>")
        said = list(client.chat(model="fake", messages=HI, stream=True, think=True))
        assert "".join(one.message.content or "" for one in said) == "Hello."
        assert said[-1].done_reason == "stop"
        tool = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}
        answer = client.chat(model="fake", messages=HI, tools=[tool])
        assert [one.function.arguments for one in answer.message.tool_calls or ()] == [
            {"city": "Rome"},
            {"city": "Oslo"},
        ]
        messages = [*HI, answer.message, {"role": "tool", "tool_name": "weather", "content": "20"}]
        assert client.chat(model="fake", messages=messages, tools=[tool]).message.content == "Hi."
        assert client.generate(model="fake", prompt="Hi").response == "Hi."
        with pytest.raises(ollama.ResponseError, match="not served here"):
            client.chat(model="llama3", messages=HI)
