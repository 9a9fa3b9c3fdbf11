"""Twenty rounds of an agent with tools: nothing that the KV cache holds is read again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.serve.running import TEMPLATE, Json, Running, call, running

GOOGLES = Path(__file__).parents[2] / "shared" / "reference" / "chat_templates"
SCHEMA: Json = {
    "type": "object",
    "properties": {"path": {"type": "string"}, "line": {"type": "number"}, "all": {"type": "boolean"}},
}
TOOLS = [{"type": "function", "function": {"name": "read", "description": "Reads.", "parameters": SCHEMA}}]
END = "<|tool_response>"
WRITTEN = (  # as a model may write a call, and no template would
    'read{path:"a.py",line:3}',
    'read{ path: "b c", line: 1e-7 }',
    'read{line:2.50,all:true,path:"\n{x}, [y] "}',
    "read{}",
)


@pytest.fixture(scope="module", params=["ours", "gemma-4-e2b-e4b", "gemma-4-12b-26b-31b"])
def agent(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Running]:
    path = GOOGLES / f"{request.param}.jinja"
    if request.param != "ours" and not path.is_file():
        pytest.skip("Google's templates are not part of the repository")
    template = TEMPLATE if request.param == "ours" else path.read_text(encoding="utf-8")
    with running(tmp_path_factory.mktemp("agent"), context=32_768, template=template) as server:
        yield server


def read_tokens(served: Running, answers: list[list[int]]) -> list[int]:
    """Tokens of each prompt that are not what the prompt before and its answer left in the KV cache."""
    held: list[int] = []
    counts = []
    for request, answer in zip(served.decoder.requests, answers, strict=True):
        same = next((i for i, (a, b) in enumerate(zip(held, request.prompt, strict=False)) if a != b), None)
        same = min(len(held), len(request.prompt)) if same is None else same
        counts.append(len(request.prompt) - same)
        held = [*request.prompt, *answer[:-1]]  # the stop token is not in the cache
    return counts


@pytest.mark.parametrize("sends_thoughts", [True, False])
@pytest.mark.parametrize("think", [True, False])
def test_twenty_tool_rounds_read_every_token_once(agent: Running, think: bool, sends_thoughts: bool) -> None:
    if not think and sends_thoughts:
        pytest.skip("there are none")
    messages: list[Any] = [{"role": "user", "content": "Fix it. " * 50}]
    answers = []
    agent.decoder.requests.clear()
    for number in range(20):
        opened = "" if think and number and agent.opens_thoughts else "<|channel>thought\n"
        thought = f"{opened}Now {number} .\n<channel|>" if think else ""
        calls = "".join(call(WRITTEN[(number + i) % 4]) for i in range(1 + number % 2))
        text = f"{thought}{'Look:  ' if number % 3 else ''}{calls}{END}"
        answers.append(agent.tokenizer.encode(text))
        agent.say(text)
        body: Json = {"messages": messages, "tools": TOOLS, "enable_thinking": think}
        [choice] = agent.post("/v1/chat/completions", **body)["choices"]
        message = choice["message"]
        assert (choice["finish_reason"], bool(message.get("reasoning_content"))) == ("tool_calls", think)
        if not sends_thoughts:
            message.pop("reasoning_content", None)
        for one in message["tool_calls"]:  # as clients do that parse arguments
            arguments = json.loads(one["function"]["arguments"])
            one["function"]["arguments"] = json.dumps(dict(sorted(arguments.items())), indent=1)
        results = [{"role": "tool", "tool_call_id": one["id"], "content": "7 "} for one in message["tool_calls"]]
        messages = [*messages, message, *results]
    [first, second, *counts] = read_tokens(agent, answers)
    assert first == len(agent.decoder.requests[0].prompt)
    result = len(agent.tokenizer.encode('<|tool_response>response:read{value:<|"|>7 <|"|>}<tool_response|>'))
    most = 2 * result + len(agent.tokenizer.encode("<|channel>thought\n"))
    assert max(counts) <= most, counts
    # Some templates open the first answer with an empty thought, and take it out later.
    assert second <= most + (0 if think else len(answers[0])), second


def test_what_a_client_changed_is_what_the_model_reads(served: Running) -> None:
    served.say(
        f"<|channel>thought\nHm.\n<channel|>Look: {call(WRITTEN[1])}{END}", "A.<turn|>", "B.<turn|>", "C.<turn|>"
    )
    hi = [{"role": "user", "content": "Hi"}]
    message = served.post("/v1/chat/completions", messages=hi, tools=TOOLS)["choices"][0]["message"]
    result = {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": "7"}

    def asked(**changed: Any) -> str:
        served.post("/v1/chat/completions", messages=[*hi, {**message, **changed}, result], tools=TOOLS)
        return served.prompt()

    assert "thought\nHm.\n<channel|>Look: <|tool_call>call:read{ path:" in asked(reasoning_content=None)
    changed = asked(content="Look here")
    assert "Look here" in changed
    assert "<|tool_call>call:read{line:1e-07" in changed
    calls = [{**message["tool_calls"][0], "function": {"name": "read", "arguments": {"line": 2}}}]
    assert "<|tool_call>call:read{line:2}" in asked(tool_calls=calls)
