"""Several models behind one port: read when they are asked for, one in memory at a time, freed when nobody asks."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

from mlxmtp.app.open import Checkpoint, LearnedDrafting, OpenModel
from mlxmtp.engine.media import Media
from mlxmtp.engine.model import Model
from mlxmtp.engine.tokenizer import Tokenizer
from mlxmtp.errors import LoadError, TooLarge
from mlxmtp.models.config import read_config
from mlxmtp.serve.models import Served
from mlxmtp.serve.server import Options
from tests.fake_decoder import FakeDecoder
from tests.serve.running import Json, Running, running, wait_until
from tests.text_checkpoint import write_text_checkpoint

CHAT = "/v1/chat/completions"


class Other:
    """Another model; `decoders` has one for each time that it was read."""

    def __init__(self, folder: Path, answer: str) -> None:
        self.folder = write_text_checkpoint(folder / "other", context=2048)
        self.answer = answer
        self.decoders: list[FakeDecoder] = []
        self.broken = False

    def served(self) -> Served:
        tokenizer = Tokenizer.load(self.folder)
        sides: Any = {"read": self.read, "read_tokenizer": lambda: tokenizer, "media": Media(read_config(self.folder))}
        return Served("other", frozenset({"other"}), 2048, has_drafter=False, **sides)

    def read(self, tokenizer: Tokenizer) -> OpenModel:
        if self.broken:
            raise LoadError("Its weights are damaged.")
        self.decoders.append(FakeDecoder())
        self.decoders[-1].enqueue(tokenizer.encode(self.answer))
        model = Model(self.decoders[-1], read_config(self.folder), tokenizer)
        return OpenModel(model, Checkpoint("other", self.folder), None, LearnedDrafting(self.folder, None))


def said(server: Running, model: str, **more: Any) -> str:
    body: Json = {"model": model, "messages": [{"role": "user", "content": "Hi"}], **more}
    answer = server.post(CHAT, **body)
    assert answer["http"] == 200, answer
    assert answer["model"] == (model or "fake")
    return str(answer["choices"][0]["message"]["content"])


def too_large() -> Served:
    raise TooLarge("Model 'huge' needs 900 GB of memory.")


def test_a_model_is_read_when_it_is_asked_for_and_the_one_before_is_freed(tmp_path: Path) -> None:
    other = Other(tmp_path, "Other.<turn|>")
    with running(tmp_path, others={"other": other.served, "huge": too_large}) as server:
        server.say("First.<turn|>", "Again.<turn|>", "Back.<turn|>", "Last.<turn|>")
        assert [one["id"] for one in server.get("/v1/models")["data"]] == ["fake", "other"]
        assert said(server, "fake") == "First."
        assert other.decoders == []
        assert said(server, "other") == "Other."
        assert server.decoder.let_go
        assert [one["name"] for one in server.get("/api/ps")["models"]] == ["other:latest"]
        assert said(server, "fake") == "Again."
        assert other.decoders[0].let_go
        loaded = server.post("/api/chat", model="other")  # Ollama's way to have a model read before it is needed
        assert (loaded["done_reason"], server.get("/health")["loaded"]) == ("load", "other")
        kept = server.post("/api/generate", model="fake", keep_alive=0)  # another one than that in memory
        assert (kept["done_reason"], server.get("/health")["loaded"]) == ("unload", "other")
        freed = server.post("/api/chat", model="other", keep_alive="0s")
        assert (freed["done_reason"], server.get("/health")["loaded"]) == ("unload", None)
        refused = server.post(CHAT, model="huge", messages=[{"role": "user", "content": "Hi"}])
        error = refused["error"]
        assert (refused["http"], error["type"], error["param"]) == (400, "invalid_request_error", "model")
        assert "900 GB" in error["message"]
        missing = server.post(CHAT, model="/etc", messages=[{"role": "user", "content": "Hi"}])
        assert (missing["http"], missing["error"]["code"]) == (404, "model_not_found")
        assert said(server, "fake") == "Back."
        other.broken = True
        assert server.post("/api/generate", model="other")["http"] == 503
        broken = server.post(CHAT, model="other", messages=[{"role": "user", "content": "Hi"}])
        assert (broken["http"], broken["error"]["message"]) == (500, "Its weights are damaged.")
        assert said(server, "fake") == "Last."
        assert server.get("/health")["status"] == "ok"


def test_a_model_that_cannot_be_read_is_told_once_for_all_who_wait(tmp_path: Path) -> None:
    other, goes_on = Other(tmp_path, ""), Event()
    other.broken = True
    with running(tmp_path, others={"other": other.served}) as server, ThreadPoolExecutor(4) as pool:
        server.decoder.before_round = lambda _: wait_until(goes_on.is_set)
        server.say("First.<turn|>")
        first = pool.submit(said, server, "fake")
        wait_until(lambda: server.decoder.requests != [])
        body: Json = {"model": "other", "messages": [{"role": "user", "content": "Hi"}]}
        asked = [pool.submit(server.post, CHAT, **body) for _ in range(2)]
        asked.append(pool.submit(server.post, "/api/generate", model="other"))  # it is to be read, and no more
        wait_until(lambda: server.get("/health")["waiting"] == 3)
        goes_on.set()
        assert first.result(60) == "First."
        assert [one.result(60)["http"] for one in asked] == [500, 500, 503]
        assert server.told[1:] == ["Its weights are damaged."]
        assert b"mlxmtp_answers_failed_total 2\n" in server.request("GET", "/metrics")[2]


def test_a_model_whose_tokenizer_is_damaged_is_no_fault_of_the_request(tmp_path: Path) -> None:
    def damaged() -> Tokenizer:
        raise LoadError("Its tokenizer is damaged.")

    other = Other(tmp_path, "Other.<turn|>")
    sides: Any = {"read": other.read, "read_tokenizer": damaged, "media": Media(read_config(other.folder))}
    served = Served("other", frozenset({"other"}), 2048, has_drafter=False, **sides)
    with running(tmp_path, others={"other": lambda: served}) as server:
        asked = server.post(CHAT, model="other", messages=[{"role": "user", "content": "Hi"}])
        shown = server.post("/api/show", model="other")
    assert (asked["http"], asked["error"]["param"], asked["error"]["message"]) == (503, "model", str(shown["error"]))
    assert (shown["http"], shown["error"]) == (503, "Its tokenizer is damaged.")


def test_memory_is_freed_when_nobody_asks_and_the_model_comes_back(tmp_path: Path) -> None:
    with running(tmp_path, Options(port=0, keep_alive=0.2)) as server:
        server.say("One.<turn|>", "Two.<turn|>", "x" * 300 + "<turn|>")
        assert said(server, "fake") == "One."
        wait_until(lambda: server.get("/health")["loaded"] is None)
        wait_until(lambda: server.decoder.let_go)  # by another thread
        assert server.get("/health")["status"] == "ok"
        assert said(server, "") == "Two."
        server.decoder.let_go = False
        server.decoder.before_round = lambda _: time.sleep(0.005)
        assert said(server, "fake") == "x" * 300  # 0.5 s: an answer on its way is no idleness
        wait_until(lambda: server.decoder.let_go)
