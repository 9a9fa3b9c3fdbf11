"""Sounds in requests: OpenAI's `input_audio` and Ollama's `images`, by real clients to a miniature."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import soundfile

from mlxmtp.app.remote import Remote
from mlxmtp.app.remote_media import Sent
from mlxmtp.app.remote_model import ServedModel
from mlxmtp.engine.events import Text
from mlxmtp.engine.params import Params
from mlxmtp.errors import UsageError
from mlxmtp.media.source import media_file
from scripts.goldens.pictures import SOUNDS
from tests.media_golden import pictures
from tests.seeing import POCKET, write_blind_pocket, write_seeing_pocket
from tests.serve.running import Json
from tests.serve.test_pictures import QUESTION, Seeing, part, said, serving, user

openai = pytest.importorskip("openai")
ollama = pytest.importorskip("ollama")


def encoded(number: int, container: str = "WAV") -> str:
    buffer = io.BytesIO()
    soundfile.write(buffer, SOUNDS[number], 16_000, format=container)
    return base64.b64encode(buffer.getvalue()).decode()


FIRST, SECOND = encoded(0), encoded(1)


def heard(data: str = FIRST, container: str = "wav") -> Json:
    return {"type": "input_audio", "input_audio": {"data": data, "format": container}}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seeing]:
    folder = write_seeing_pocket(tmp_path_factory.mktemp("models") / "seeing")
    (folder.parent / "seeing-assistant").symlink_to(POCKET.parent / "drafter")
    with serving(folder, tmp_path_factory.mktemp("home")) as running:
        yield running


def test_every_client_sends_the_same_sound(server: Seeing) -> None:
    wanted = said(server.chat(heard(), QUESTION))
    about: Json = {"base_url": f"{server.url}/v1", "api_key": "none", "max_retries": 0}
    with openai.OpenAI(**about) as client:
        messages: Any = [user(heard(), QUESTION)]
        chat = client.chat.completions.create(model="default", messages=messages, max_tokens=8, temperature=0)
        content: Any = [heard(), {"type": "input_text", "text": QUESTION}]
        response = client.responses.create(
            model="default", input=[{"role": "user", "content": content}], max_output_tokens=8, temperature=0
        )
    with ollama.Client(host=server.url) as client:
        asking: Any = [{"role": "user", "content": QUESTION, "images": [base64.b64decode(FIRST)]}]
        told = client.chat(model="default", messages=asking, options={"num_predict": 8, "temperature": 0})
        assert "audio" in client.show("default").capabilities
    assert [chat.choices[0].message.content, response.output_text, told.message.content] == [wanted] * 3


def test_sounds_count_and_another_sound_is_no_prefix(server: Seeing) -> None:
    def usage(*content: Any) -> tuple[int, int]:
        table = server.chat(*content)["usage"]
        return table["prompt_tokens"], table["prompt_tokens_details"]["cached_tokens"]

    long = "word " * 300
    alone, _ = usage(long, QUESTION)
    prompt, _ = usage(heard(), long, QUESTION)
    assert prompt - alone == 21 + 2  # a sound and its marks
    assert usage(heard(), long, QUESTION)[1] > prompt - 100
    assert usage(heard(SECOND), long, QUESTION)[1] < 30
    both, _ = usage(heard(), part(), heard(encoded(1, "FLAC"), "flac"), long, QUESTION)
    assert both - alone > 21 + 8 + 6 + 50


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (
            {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
            "is no audio that can be read",
        ),
        ({"type": "input_audio", "input_audio": {"data": "?", "format": "wav"}}, "is not valid base64"),
        ({"type": "input_audio", "input_audio": "x"}, "must be an object"),
        ({"type": "input_audio"}, "must be an object"),
        ({"type": "input_audio", "input_audio": {"data": "https://example.org/a.wav"}}, "nothing is fetched"),
        (heard(FIRST[:60]), "is "),
        (heard(base64.b64encode(base64.b64decode(FIRST)[:100]).decode()), "is too short"),
    ],
)
def test_what_is_no_sound_is_refused_by_name(server: Seeing, content: Json, sentence: str) -> None:
    answer = server.chat(content, QUESTION)
    assert answer["http"] == 400
    assert sentence in answer["error"]["message"]
    assert "input_audio" in answer["error"]["message"]


def test_a_model_that_does_not_hear_says_so(tmp_path: Path) -> None:
    with serving(write_blind_pocket(tmp_path / "blind"), tmp_path) as running:
        answer = running.chat(heard(), QUESTION)
        assert answer["http"] == 400
        assert "has no audio tower, so it cannot hear" in answer["error"]["message"]


def test_a_terminal_sends_sounds_and_files_of_a_batch(server: Seeing, tmp_path: Path) -> None:
    def answered(source: Any, kind: str = "audio") -> str:
        model = ServedModel(Remote(server.url), "default")
        messages = [{"role": "user", "content": [{"type": kind, kind: source}, {"type": "text", "text": QUESTION}]}]
        said = model.stream(messages, Params(temp=0, max_tokens=8))
        return "".join(one.text for one in said if isinstance(one, Text))

    flac, picture = tmp_path / "memo.flac", tmp_path / "tall.png"
    soundfile.write(flac, SOUNDS[0], 16_000)
    pictures()[0].save(picture)
    wanted = said(server.chat(heard(), QUESTION))
    assert [answered(media_file(base64.b64decode(FIRST), "memo")), answered(flac)] == [wanted] * 2
    assert answered(picture, "image") == said(server.chat(part(), QUESTION))
    counted = Sent().prepare(flac)
    assert (counted.about, counted.count) == ("0.8 s", 21)
    with pytest.raises(UsageError, match="Videos are seen by a model on this machine"):
        Sent().prepare(media_file(b"\x1a\x45\xdf\xa3 V_VP9", "clip"))
