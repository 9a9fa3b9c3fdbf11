"""Answers with calls as they were written: the next prompt begins with what the KV cache holds."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import soundfile

from mlxmtp.engine.media import Media
from mlxmtp.engine.tokenizer import Tokenizer
from mlxmtp.engine.written import Written
from mlxmtp.models.config import read_config
from scripts.goldens.pictures import SOUNDS
from tests.media_golden import pictures
from tests.seeing import write_seeing_pocket
from tests.serve.running import TEMPLATE, call

# Media stand behind the result that they are part of, and the model's turn goes on, as in Google's templates.
_RESULT = "{{ value(message.content) }}}<tool_response|>"
_WITH_MEDIA = """\
{{ value(message.content | selectattr('type', 'equalto', 'text') | map(attribute='text') | join) }}}<tool_response|>
{%- for part in message.content if part.type != 'text' -%}<|{{ part.type }}|>{%- endfor -%}"""


@pytest.mark.parametrize("kind", ["image", "audio"])
def test_an_answer_after_a_result_with_a_medium_is_read_as_it_was_written(tmp_path: Path, kind: str) -> None:
    folder = write_seeing_pocket(tmp_path / "seeing")
    assert _RESULT in TEMPLATE
    (folder / "chat_template.jinja").write_text(TEMPLATE.replace(_RESULT, _WITH_MEDIA), encoding="utf-8")
    sound = io.BytesIO()
    soundfile.write(sound, SOUNDS[0], 16_000, format="WAV")
    medium = {"type": kind, kind: pictures()[0] if kind == "image" else sound.getvalue()}
    tokenizer, media, written = Tokenizer.load(folder), Media(read_config(folder)), Written()
    messages: list[dict[str, Any]] = [{"role": "user", "content": "Look."}]
    held: list[int] = []
    for number in range(3):
        shown = media.prepared(messages, 70)
        ids, _ = written.splice(tokenizer.prompt_ids(shown), shown, tokenizer)
        assert ids[: len(held)] == held
        assert (min(ids) < 0) == (number > 0)
        said = tokenizer.encode("I see. " * number + call('look{ n: 2.50, at: "a" }'))  # as no template would write it
        written.keep(f"call_{number}", 1, ids, said, "", tokenizer)
        held = [*ids, *said]
        made = {"id": f"call_{number}", "function": {"name": "look", "arguments": {"n": 2.5, "at": "a"}}}
        messages += [{"role": "assistant", "content": "I see. " * number}] if number else []
        messages += [
            {"role": "assistant", "content": "", "tool_calls": [made]},
            {"role": "tool", "name": "look", "content": [{"type": "text", "text": "It is"}, medium]},
        ]


def test_an_answer_that_calls_inside_an_open_thought_is_not_read_as_it_was_written(tmp_path: Path) -> None:
    """What follows the result would be a part of that thought, to its end."""
    folder = write_seeing_pocket(tmp_path / "seeing")
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    tokenizer, written = Tokenizer.load(folder), Written()
    asked: list[dict[str, Any]] = [{"role": "user", "content": "Look."}]
    said = tokenizer.encode("<|channel>thought\nI look." + call('look{ n: 2.50, at: "a" }'))
    written.keep("call_0", 1, tokenizer.prompt_ids(asked), said, "I look.", tokenizer)
    made = {"id": "call_0", "function": {"name": "look", "arguments": {"n": 2.5, "at": "a"}}}
    messages = [
        *asked,
        {"role": "assistant", "content": "", "reasoning": "I look.", "tool_calls": [made]},
        {"role": "tool", "name": "look", "content": "It is"},
    ]
    rendered = tokenizer.prompt_ids(messages)
    assert written.splice(rendered, messages, tokenizer)[0] == rendered
    assert not tokenizer.opens_in_thought(rendered)
