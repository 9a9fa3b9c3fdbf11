"""Pictures in requests of every protocol, with the real clients and a miniature that sees."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from mlxmtp.app.open import Opener
from mlxmtp.app.remote import Remote
from mlxmtp.app.remote_model import ServedModel
from mlxmtp.engine.events import Text
from mlxmtp.engine.params import Params
from mlxmtp.media.source import media_file
from mlxmtp.serve.models import models_of
from mlxmtp.serve.server import Options, Server
from mlxmtp.settings import Settings, load_settings
from tests.media_golden import pictures
from tests.seeing import POCKET, write_blind_pocket, write_seeing_pocket
from tests.serve.running import Json, wait_until

openai = pytest.importorskip("openai")
anthropic = pytest.importorskip("anthropic")
ollama = pytest.importorskip("ollama")

QUESTION = "What is a drafter?"


def encoded(number: int, kind: str = "PNG") -> str:
    buffer = io.BytesIO()
    pictures()[number].save(buffer, kind)
    return base64.b64encode(buffer.getvalue()).decode()


TALL, WIDE = encoded(0), encoded(1)


def part(data: str = TALL, **more: Any) -> Json:
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}", **more}}


def user(*content: Any) -> Json:
    return {
        "role": "user",
        "content": [{"type": "text", "text": one} if isinstance(one, str) else one for one in content],
    }


class Seeing:
    """A server in this process; `post` asks it."""

    def __init__(self, folder: Path, home: Path, parallel: int) -> None:
        opener = Opener(load_settings({}, {"MLXMTP_HOME": str(home), "HOME": str(home)}), tell=lambda _: None)
        told: list[str] = []
        models = models_of(opener, Settings(model=str(folder)))
        self.server = Server(models, Options(port=0, parallel=parallel), told.append)
        self.thread = Thread(target=self.server.run, args=({"image_tokens": 70},))
        self.thread.start()
        self.url = self.server.url
        wait_until(lambda: bool(told))
        assert "mlxmtp serves" in told[0]

    def post(self, path: str, **body: Any) -> Json:
        connection = HTTPConnection(self.url.removeprefix("http://"), timeout=60)
        connection.request("POST", path, json.dumps({"max_tokens": 8, "temperature": 0, **body}))
        response = connection.getresponse()
        answer: Json = {"http": response.status, **json.loads(response.read())}
        connection.close()
        return answer

    def chat(self, *content: Any, **body: Any) -> Json:
        return self.post("/v1/chat/completions", messages=[user(*content)], **body)


@contextmanager
def serving(folder: Path, home: Path, parallel: int = 1) -> Iterator[Seeing]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mlxmtp.decode.compile.Rounds.build", lambda *_: None)  # uncompiled, nothing is built
        running = Seeing(folder, home, parallel)
        try:
            yield running
        finally:
            running.server.stop()
            running.thread.join(20)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_seeing_pocket(tmp_path_factory.mktemp("models") / "seeing")
    (folder.parent / "seeing-assistant").symlink_to(POCKET.parent / "drafter")
    return folder


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seeing]:
    with serving(folder, tmp_path_factory.mktemp("home")) as running:
        yield running


def said(answer: Json) -> str:
    assert answer["http"] == 200, answer
    text: str = answer["choices"][0]["message"]["content"]
    return text


def test_every_client_sends_the_same_picture(server: Seeing) -> None:
    wanted = said(server.chat(part(), QUESTION))
    about: Json = {"base_url": f"{server.url}/v1", "api_key": "none", "max_retries": 0}
    with openai.OpenAI(**about) as client:
        chat = client.chat.completions.create(
            model="default", messages=[user(part(), QUESTION)], max_tokens=8, temperature=0
        )
        content: Any = [
            {"type": "input_image", "image_url": f"data:image/png;base64,{TALL}", "detail": "auto"},
            {"type": "input_text", "text": QUESTION},
        ]
        response = client.responses.create(
            model="default", input=[{"role": "user", "content": content}], max_output_tokens=8, temperature=0
        )
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        source = {"type": "base64", "media_type": "image/png", "data": TALL}
        blocks: Any = [{"type": "image", "source": source}, {"type": "text", "text": QUESTION}]
        messages: Any = [{"role": "user", "content": blocks}]
        message = client.messages.create(
            model="default", messages=messages, max_tokens=8, extra_body={"temperature": 0}
        )
        counted = client.messages.count_tokens(model="default", messages=messages)
    options = {"num_predict": 8, "temperature": 0}
    image = base64.b64decode(TALL)
    with ollama.Client(host=server.url) as client:
        messages = [{"role": "user", "content": QUESTION, "images": [image]}]
        told = client.chat(model="default", messages=messages, options=options)
        generated = client.generate(model="default", prompt=QUESTION, images=[image], options=options)
        assert "vision" in client.show("default").capabilities
    texts = [chat.choices[0].message.content, response.output_text, message.content[0].text]
    assert [*texts, told.message.content, generated.response] == [wanted] * 5
    assert counted.input_tokens == chat.usage.prompt_tokens > 60


def test_the_same_picture_is_not_read_again_and_another_is_no_prefix(server: Seeing) -> None:
    def cached(*content: Any) -> tuple[int, int]:
        usage = server.chat(*content)["usage"]
        return usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]

    long = "word " * 300
    prompt, _ = cached(part(), long, QUESTION)
    _, reused = cached(part(), long, "Hello!")
    assert reused > prompt - 20, "the other question is all that is read"
    _, shared = cached(part(WIDE), long, QUESTION)
    assert shared < 20


def test_a_request_says_how_closely_a_picture_is_looked_at(server: Seeing) -> None:
    square = io.BytesIO()
    pictures()[0].resize((64, 64)).save(square, "PNG")
    data = base64.b64encode(square.getvalue()).decode()

    def counted(data: str, detail: str = "auto", **body: Any) -> Any:
        answer = server.post("/v1/messages/count_tokens", messages=[user(part(data, detail=detail), "Hi")], **body)
        return answer.get("input_tokens", answer)

    usual = counted(data)
    assert counted(data, "low") == usual
    assert "has 99 patches in a line, and this model places 64" in counted(data, "high")["error"]["message"]
    assert counted(data, mlxmtp={"image_tokens": 140}) - usual == 121 - 64


def test_texts_side_by_side_are_those_of_each_alone(folder: Path, server: Seeing, tmp_path: Path) -> None:
    asked = [(part(), QUESTION), (part(WIDE), QUESTION), (part(), "and", part(WIDE), QUESTION), (QUESTION,)]
    alone = [said(server.chat(*one, seed=4, temperature=1.0, max_tokens=12)) for one in asked]
    with serving(folder, tmp_path, parallel=3) as beside, ThreadPoolExecutor(4) as pool:
        both = pool.map(lambda one: said(beside.chat(*one, seed=4, temperature=1.0, max_tokens=12)), asked * 2)
        assert list(both) == alone * 2


def test_tools_may_answer_with_pictures(server: Seeing) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    before: list[Json] = [user("Look!"), {"role": "assistant", "content": "", "tool_calls": [call]}]
    result = {"role": "tool", "tool_call_id": "1", "content": [part(), {"type": "text", "text": "Done."}]}
    answer = server.post("/v1/chat/completions", messages=[*before, result])
    assert answer["usage"]["prompt_tokens"] > 60


def test_a_result_that_is_an_error_may_hold_a_picture(server: Seeing) -> None:
    source = {"type": "base64", "media_type": "image/png", "data": TALL}
    picture: Json = {"type": "image", "source": source}

    def counted(*content: Json, wrong: bool = False) -> int:
        call = {"type": "tool_use", "id": "1", "name": "look", "input": {}}
        result = {"type": "tool_result", "tool_use_id": "1", "content": content, "is_error": wrong}
        messages = [{"role": "assistant", "content": [call]}, {"role": "user", "content": [result]}]
        answer = server.post("/v1/messages/count_tokens", messages=[user("Look!"), *messages])
        assert answer["http"] == 200, answer
        return int(answer["input_tokens"])

    assert counted(picture, wrong=True) == counted({"type": "text", "text": "Error:"}, picture) > counted(picture) > 60


CASES = [
    (part("AAAA"), "is no image that can be read"),
    (part("%%%"), "is not valid base64"),
    (part(TALL[:400]), "is damaged"),
    (part(detail="best"), "detail must be auto"),
    ({"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}, "nothing is fetched"),
    ({"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}, "nothing is fetched"),
    ({"type": "image_url", "image_url": {"url": "/etc/passwd"}}, "is no image"),
    ({"type": "image_url", "image_url": {"url": "data:image/png;base64"}}, "with a comma"),
    ({"type": "image_url", "image_url": {}}, "image_url.url must be a text"),
    ({"type": "video", "video": "x"}, "'video' cannot be read here"),
    ({"type": "image", "source": {"type": "file", "file_id": "1"}}, "type must be base64 or url"),
]


@pytest.mark.parametrize(("content", "sentence"), CASES)
def test_what_cannot_be_seen_is_refused_with_its_place(server: Seeing, content: Json, sentence: str) -> None:
    answer = server.chat("Look:", content)
    assert answer["http"] == 400
    assert sentence in answer["error"]["message"]
    assert "messages[0].content[1]" in answer["error"]["message"]


def test_too_many_and_misplaced_pictures_are_refused(server: Seeing) -> None:
    assert "at most 100" in server.chat(*[part()] * 101)["error"]["message"]
    system = {"role": "system", "content": [part()]}
    answer = server.post("/v1/chat/completions", messages=[system, user("Hi")])
    assert "messages[0].content[0].type: 'image_url' cannot be read here, only text" in answer["error"]["message"]
    answer = server.chat(part(), mlxmtp={"image_tokens": 100})
    assert "image_tokens must be one of 70, 140, 280, 560, 1120" in answer["error"]["message"]


def test_pictures_that_the_memory_never_holds_are_no_overload(server: Seeing, monkeypatch: pytest.MonkeyPatch) -> None:
    """Claude Code asks an overloaded server again, ten times."""
    monkeypatch.setattr(server.server._models.first, "refused", {"image": "Its tower does not fit the memory."})
    answer = server.post("/v1/messages", messages=[user({"type": "image", "source": {"type": "base64", "data": TALL}})])
    assert (answer["http"], answer["error"]["type"]) == (400, "invalid_request_error")
    assert answer["error"]["message"] == "Its tower does not fit the memory."


def test_a_terminal_asks_a_server_about_pictures(server: Seeing) -> None:
    def answered(kind: str) -> str:
        buffer = io.BytesIO()
        pictures()[0].save(buffer, kind)
        file = media_file(buffer.getvalue(), "tall")
        content = [{"type": "image", "image": file}, {"type": "text", "text": QUESTION}]
        model = ServedModel(Remote(server.url), "default")
        messages = [{"role": "user", "content": content}]
        counted = model.tokenizer.prompt_ids(model.media.prepared(messages, None))
        assert 280 < len(counted) < 310
        said = model.stream(messages, Params(temp=0, max_tokens=8, image_tokens=70))
        return "".join(one.text for one in said if isinstance(one, Text))

    wanted = said(server.chat(part(), QUESTION))
    assert [answered("PNG"), answered("TIFF")] == [wanted] * 2


def test_a_model_without_a_tower_refuses_pictures(tmp_path: Path) -> None:
    with serving(write_blind_pocket(tmp_path / "blind"), tmp_path) as blind:
        answer = blind.chat(part(), QUESTION)
        assert answer["http"] == 400
        assert "has no vision tower, so it cannot see" in answer["error"]["message"]
        assert "vision" not in blind.post("/api/show", model="default")["capabilities"]
