"""Tool calls out of token ids: complete ones to the letter, everything else as text."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxmtp.engine.calls import CallReader, parse_call
from mlxmtp.engine.events import Call
from mlxmtp.engine.tokenizer import Tokenizer
from tests.text_checkpoint import write_text_checkpoint

Q = '<|"|>'


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(write_text_checkpoint(tmp_path_factory.mktemp("calls")))


def read(tokenizer: Tokenizer, text: str) -> list[str | tuple[str, Any]]:
    """What comes out of a text: pieces of text, and calls as (name, arguments)."""
    reader, detokenizer = CallReader(tokenizer), tokenizer.detokenizer()
    parts = [*(one for token in tokenizer.encode(text) for one in reader.feed(token)), *reader.finish()]
    found = [(part.name, part.arguments) if isinstance(part, Call) else detokenizer.add(part) for part in parts]
    merged: list[str | tuple[str, Any]] = []
    for one in found:
        if isinstance(one, str) and merged and isinstance(merged[-1], str):
            merged[-1] += one
        elif one:
            merged.append(one)
    return merged


def call(inner: str) -> str:
    return f"<|tool_call>{inner.replace(chr(34), Q)}<tool_call|>"


GOOD: list[tuple[str, tuple[str, Any]]] = [
    ("call:now{}", ("now", {})),
    ('call:f{a:"x",b:2}', ("f", {"a": "x", "b": 2})),
    ('call:f{a:"x, {b}: [c] ",n:-1.5,e:1e-7,t:true,f:false,z:null}',
     ("f", {"a": "x, {b}: [c] ", "n": -1.5, "e": 1e-7, "t": True, "f": False, "z": None})),
    ('call:f{o:{k:[1,"two",{three:3}],e:[],m:{}}}', ("f", {"o": {"k": [1, "two", {"three": 3}], "e": [], "m": {}}})),
    ('call:mcp__fs__read.file{max-n:3,a key:"v"}', ("mcp__fs__read.file", {"max-n": 3, "a key": "v"})),
    ('call:ns:name{ a : "x" ,\n b : [ 1 , 2 ] }', ("ns:name", {"a": "x", "b": [1, 2]})),
    ('call:f{"a":1}', ("f", {"a": 1})),
    ('call:f{code:"if (a[0]) {\n\tprint(\'\\n\')\n}",big:123456789012345678901234567890}',
     ("f", {"code": "if (a[0]) {\n\tprint('\\n')\n}", "big": 123456789012345678901234567890})),
    ('call:f{s:"call:g{}",n:"12",empty:"",u:"é中"}', ("f", {"s": "call:g{}", "n": "12", "empty": "", "u": "é中"})),
]  # fmt: skip

BAD = [
    "call:f{a:1", "call:f", "f{a:1}", "call:f{a:'x'}", "call:f{a:x}", "call:f{a:1 b:2}", "call:f{a:1}}", "call:f{a}",
    "call:f{a:1,a:2}", "call:f(a:1)", "call:f{a:01}", "call:f{a:1e999}", "call:f{a:[1,2}", "call:f{a:NaN}", "call:{}",
    "call:f{,}", "call:f{a:1,}", "call:f{:1}", "call:f{a:}", 'call:f{a:"x""y"}', 'call:f{a:"x"y}', "call:f{a:True}",
    "call:f{a:" + "9" * 400 + "}", "call:f{a:-" + "9" * 5000 + "}",
    "call:f{a:" + "[" * 80 + "]" * 80 + "}",
]  # fmt: skip


@pytest.mark.parametrize(("written", "expected"), GOOD)
def test_a_call_is_what_it_says(tokenizer: Tokenizer, written: str, expected: tuple[str, Any]) -> None:
    assert read(tokenizer, f"Before. {call(written)}") == ["Before. ", expected]


@pytest.mark.parametrize("written", BAD)
def test_a_damaged_call_is_text_as_it_was_written(tokenizer: Tokenizer, written: str) -> None:
    assert read(tokenizer, f"{call(written)} After.") == [f"{call(written)} After."]


def test_calls_follow_each_other(tokenizer: Tokenizer) -> None:
    text = call("call:f{a:1}") + call('call:g{b:"2"}') + call("call:f{a:1}")
    assert read(tokenizer, text) == [("f", {"a": 1}), ("g", {"b": "2"}), ("f", {"a": 1})]


def test_only_the_closing_mark_may_be_missing(tokenizer: Tokenizer) -> None:
    assert read(tokenizer, "<|tool_call>call:f{a:1}") == [("f", {"a": 1})]
    cut = f"<|tool_call>call:f{{a:{Q}rm -rf /tmp"
    assert read(tokenizer, cut) == [cut]
    unclosed = f"<|tool_call>call:f{{a:{Q}x}}<tool_call|>{call('call:g{}')}"
    assert read(tokenizer, unclosed) == [unclosed]


def test_a_call_that_another_one_interrupts_is_text(tokenizer: Tokenizer) -> None:
    assert read(tokenizer, "<|tool_call>call:f{a:" + call("call:g{}")) == ["<|tool_call>call:f{a:", ("g", {})]


def test_marks_inside_a_string_are_its_text(tokenizer: Tokenizer) -> None:
    text = "see <tool_call|> and <|tool_call>call:g{}<tool_call|>"
    assert read(tokenizer, call(f'call:f{{a:"{text}"}}')) == [("f", {"a": text})]


def test_the_tokens_of_a_call_write_it_again(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(call('call:f{ a : "x" }'))
    reader = CallReader(tokenizer)
    [found] = [part for token in ids for part in reader.feed(token)]
    assert isinstance(found, Call)
    assert list(found.tokens) == ids


KEYS = st.text(st.characters(codec="ascii", categories=("L", "N")), min_size=1, max_size=8)
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=12,
)


def written(value: Any, strings: list[str]) -> str:
    if isinstance(value, str):
        strings.append(value)
        return "\0"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{written(one, strings)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(written(one, strings) for one in value) + "]"
    return json.dumps(value)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(KEYS, VALUES, max_size=4))
def test_whatever_json_says_can_be_an_argument(arguments: dict[str, Any]) -> None:
    strings: list[str] = []
    structure = "call:f" + written(arguments, strings)
    assert parse_call(structure, strings) == ("f", arguments)


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from('{}[]:,\0 a1"-.etruflsn'), max_size=30))
def test_nothing_but_a_call_or_an_error_comes_of_noise(noise: str) -> None:
    try:
        _, arguments = parse_call("call:f{" + noise, ["s"] * noise.count("\0"))
    except ValueError:
        return
    json.dumps(arguments, allow_nan=False)
