"""Random bodies for every endpoint: an answer, or a refusal in the protocol's form; never a failure of the server."""

from __future__ import annotations

import json

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.serve.running import Json, Running

PATHS = [
    "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/messages/count_tokens",
    "/api/chat", "/api/generate", "/api/show",
]  # fmt: skip
FIELDS = [
    "content", "role", "type", "text", "name", "id", "input", "messages", "prompt", "system", "tools",
    "tool_choice", "tool_calls", "function", "arguments", "parameters", "properties", "schema", "json_schema",
    "response_format", "stop", "format", "n", "max_tokens", "temperature", "top_p", "top_k", "seed", "logprobs",
    "top_logprobs", "logit_bias", "presence_penalty", "stream_options", "thinking", "think", "reasoning",
    "reasoning_effort", "options", "include", "tool_use_id", "tool_call_id", "call_id", "output", "instructions",
    "mlxmtp", "num_draft_tokens", "images",
]  # fmt: skip
WORDS = [
    "user", "assistant", "tool", "system", "developer", "text", "function", "auto", "required", "json_object", "object",
    "json_schema", "tool_result", "tool_use", "function_call", "function_call_output", "message", "reasoning", "high",
    "enabled", "string", "", "\ud800", "<|tool_call>", "{}", "\0",
]  # fmt: skip
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(allow_nan=False), st.sampled_from(WORDS)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(FIELDS), inner, max_size=4)),
    max_leaves=12,
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(WORDS[:5]), "content": st.one_of(st.just("Hi"), VALUES)},
        optional=dict.fromkeys(("tool_calls", "tool_call_id", "reasoning", "type", "name"), VALUES),
    ),
    min_size=1,
    max_size=3,
)
RIGHT: Json = {"messages": [{"role": "user", "content": "Hi"}], "input": "Hi", "prompt": "Hi", "max_tokens": 5}
BODIES = st.builds(
    lambda base, odd: {**base, "model": "fake", **odd},
    st.one_of(st.just(RIGHT), st.builds(lambda some: {**RIGHT, "messages": some, "input": some}, MESSAGES)),
    st.dictionaries(st.sampled_from([name for name in FIELDS if name != "n"]), VALUES, max_size=3),
)


def refusal_is_in_form(path: str, value: Json) -> bool:
    error = value["error"]
    if path.startswith("/api/"):
        return isinstance(error, str) and bool(error)
    if path.startswith("/v1/messages"):
        return value["type"] == "error" and bool(error["type"] and error["message"])
    return set(error) == {"message", "type", "param", "code"} and bool(error["message"])


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(path=st.sampled_from(PATHS), body=BODIES, stream=st.booleans())
def test_a_body_is_answered_or_refused(served: Running, path: str, body: Json, stream: bool) -> None:
    served.decoder.answers.clear()
    served.say("Yes.<turn|>")
    status, headers, data = served.request("POST", path, {"stream": stream, **body})
    assert status == 200 or 400 <= status < 500, (status, data)
    if status != 200:
        assert refusal_is_in_form(path, json.loads(data)), data
    elif headers["content-type"].startswith("text/event-stream"):
        assert data.endswith(b"\n\n")
        assert b'"error"' not in data.replace(b'"error":null', b""), data
    else:
        for line in data.splitlines():
            json.loads(line)
    assert served.told[1:] == []  # the first line says that the model is there
