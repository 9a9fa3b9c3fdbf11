"""Log-probabilities, bias and penalties in each protocol's form."""

from __future__ import annotations

import json

import pytest

from tests.serve.running import Json, Running

CHAT = "/v1/chat/completions"
HI: list[Json] = [{"role": "user", "content": "Hi"}]
SAID = "<|channel>thought\nHm.\n<channel|>Hé 🦀<turn|>"
LETTERS = ["H", "é", " ", *"\ufffd" * 4]
BYTES = "Hé 🦀".encode()


def check(told: list[Json]) -> None:
    """Tokens spell the text; the likeliest of a place is the token itself, as the scripted decoder says."""
    assert bytes(byte for one in told for byte in one["bytes"]) == BYTES
    assert [one["token"] for one in told][:3] == LETTERS[:3]
    for one in told:
        assert one["logprob"] == -0.5
        assert [other["logprob"] for other in one["top_logprobs"]] == [-0.5, -1.5]
        assert one["top_logprobs"][0]["token"] == one["token"]


def test_chat(served: Running) -> None:
    served.say(SAID, SAID, SAID)
    [choice] = served.post(CHAT, messages=HI, logprobs=True, top_logprobs=2)["choices"]
    check(choice["logprobs"]["content"])
    chunks = served.events(CHAT, messages=HI, logprobs=True, top_logprobs=2)
    told = [one["choices"][0]["logprobs"] for one in chunks]
    check([one for each in told if each for one in each["content"]])
    assert all(one["choices"][0]["logprobs"] is None for one in chunks if "content" not in one["choices"][0]["delta"])
    [choice] = served.post(CHAT, messages=HI, logprobs=True)["choices"]
    assert [one["top_logprobs"] for one in choice["logprobs"]["content"]] == [[]] * 7


def test_completions(served: Running) -> None:
    served.say("the 🦀 ab<turn|>", "the 🦀 ab<turn|>")
    [choice] = served.post("/v1/completions", prompt="x", logprobs=2)["choices"]
    told = choice["logprobs"]
    assert told["token_logprobs"] == [-0.5] * len(told["tokens"])
    assert told["text_offset"][:3] == [0, 1, 3]
    assert "".join(told["tokens"])[-3:] == " ab"
    chunks = [one["choices"][0] for one in served.events("/v1/completions", prompt="x", logprobs=2)]
    pieces = [one["logprobs"] for one in chunks if one["logprobs"]]
    for name in ("tokens", "top_logprobs", "text_offset"):
        assert [one for each in pieces for one in each[name]] == told[name]


def test_responses(served: Running) -> None:
    served.say(SAID, SAID)
    asked: Json = {"input": "Hi", "top_logprobs": 2, "include": ["message.output_text.logprobs"]}
    whole = served.post("/v1/responses", **asked)
    check(whole["output"][-1]["content"][0]["logprobs"])
    events = served.events("/v1/responses", **asked)
    deltas = [one["logprobs"] for one in events if one["type"] == "response.output_text.delta"]
    check([one for each in deltas for one in each])
    [done] = [one for one in events if one["type"] == "response.output_text.done"]
    check(done["logprobs"])
    check(events[-1]["response"]["output"][-1]["content"][0]["logprobs"])


@pytest.mark.parametrize(("path", "body"), [("/api/chat", {"messages": HI}), ("/api/generate", {"prompt": "Hi"})])
def test_ollama(served: Running, path: str, body: Json) -> None:
    served.say(SAID, SAID)
    asked = {"model": "fake", "logprobs": True, "top_logprobs": 2, **body}
    check(served.post(path, stream=False, **asked)["logprobs"])
    _, _, data = served.request("POST", path, asked)
    check([one for line in data.splitlines() for one in json.loads(line).get("logprobs", [])])


def test_bias_and_penalties_reach_the_decoder_under_each_name(served: Running) -> None:
    def penalties(path: str, **body: object) -> tuple[object, ...]:
        served.say("x<turn|>")
        assert served.post(path, stream=False, **body)["http"] == 200
        found = served.decoder.requests[-1].sampling.penalties
        return dict(found.bias), found.presence, found.frequency, found.repetition

    asked: Json = {"logit_bias": {"120": 7, "121": -100}, "presence_penalty": 0.5, "frequency_penalty": -2}
    expected = ({120: 7.0, 121: -100.0}, 0.5, -2)
    assert penalties(CHAT, messages=HI, repetition_penalty=1.2, **asked) == (*expected, 1.2)
    assert penalties("/v1/completions", prompt="x", **asked) == (*expected, 1)
    options = {"repeat_penalty": 1.1, "presence_penalty": 1}
    assert penalties("/api/chat", model="fake", messages=HI, options=options) == ({}, 1, 0, 1.1)
    assert penalties("/v1/messages", messages=HI, max_tokens=9) == ({}, 0, 0, 1)


REFUSED: list[tuple[Json, str]] = [
    ({"logit_bias": [5]}, "logit_bias"),
    ({"logit_bias": {"five": 1}}, "logit_bias"),
    ({"logit_bias": {"5": 101}}, "logit_bias.5"),
    ({"logit_bias": {"5": "much"}}, "logit_bias.5"),
    ({"logit_bias": {"99999999999999999999": 1}}, "logit_bias"),
    ({"logit_bias": {"5": 10**400}}, "logit_bias.5"),
    ({"temperature": 10**400}, "temperature"),
    ({"frequency_penalty": 2.5}, "frequency_penalty"),
    ({"presence_penalty": "high"}, "presence_penalty"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"logprobs": 3}, "logprobs"),
]


@pytest.mark.parametrize(("body", "param"), REFUSED)
def test_what_is_wrong_is_named(served: Running, body: Json, param: str) -> None:
    answer = served.post(CHAT, messages=HI, **body)
    assert (answer["http"], answer["error"]["param"]) == (400, param)
