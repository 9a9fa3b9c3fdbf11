"""A conversation without terminal and network: lines from a list, answers from a queue, the rest is real."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path

from mlxmtp.app.open import LearnedDrafting, Opener, OpenModel
from mlxmtp.app.worker import Worker
from mlxmtp.chat.conversation import Conversation
from mlxmtp.chat.sessions import Sessions
from mlxmtp.cli.repl.actions import run
from mlxmtp.cli.repl.chat import Chat, ChosenModel
from mlxmtp.cli.repl.slash import Line, Reader
from mlxmtp.cli.terminal.keyboard import Keyboard
from mlxmtp.cli.terminal.output import Look, Output
from mlxmtp.engine.model import Model
from mlxmtp.engine.tokenizer import Tokenizer
from mlxmtp.hub.store import Checkpoint
from mlxmtp.models.config import read_config
from mlxmtp.settings import load_settings
from tests.fake_decoder import FakeDecoder
from tests.text_checkpoint import write_text_checkpoint

_FIGURES = [
    (re.compile(r"\d+\.\d tok/s"), "S tok/s"),
    (re.compile(r"(\d tok(?: \(\d+ reused\))?) \d+\.\d s"), r"\1 T s"),
    (re.compile(r" · [\d.]+ [kMG]?B$", re.MULTILINE), ""),  # of all tests in this process
    (re.compile(r"[\d.]+ [kMG]?B\b"), "M"),
]


class Paper(StringIO):
    """A stream that a person reads."""

    def isatty(self) -> bool:
        return True


class WideOutput(Output):
    """So wide that no line depends on how many digits a figure has."""

    def size(self) -> tuple[int, int]:
        return 200, 24


class Script(Reader):
    """Lines for the conversation; what is typed appears on paper behind the prompt, as on a terminal."""

    def __init__(self, paper: Paper) -> None:
        self.lines: list[str | Line | type[BaseException]] = []
        self.answers: list[bool] = []
        self.given: list[str] = []
        self._paper = paper

    def read(self, given: str = "", *, literal: bool = False, edits: bool = False, thought: str = "") -> Line:
        self.given.append(given)
        if not self.lines:
            raise EOFError
        line = self.lines.pop(0)
        if isinstance(line, type):
            raise line
        line = Line(line) if isinstance(line, str) else line
        self._paper.write(f"> {line.text}\n")
        return line

    def agree(self, question: str) -> bool:
        self._paper.write(f"{question} [Y/n]\n")
        return self.answers.pop(0)


class Conversing:
    """Say lines, get the transcript; `{stop}` in an answer is a Ctrl+C there."""

    def __init__(self, folder: Path, *, context: int = 400, model: Path | None = None) -> None:
        self.folder = folder
        model_folder = model or write_text_checkpoint(folder / "model", context=context)
        self.paper = Paper()
        self.script = Script(self.paper)
        self.tokenizer = Tokenizer.load(model_folder)
        self.decoder = FakeDecoder()
        self.model = Model(self.decoder, read_config(model_folder), self.tokenizer, name="fake")
        loaded = load_settings({"seed": 1}, {"HOME": str(folder), "MLXMTP_HOME": str(folder / "home")})
        out = WideOutput(self.paper, self.paper, Look(dumb=True))
        self.sessions = Sessions(loaded.places.sessions)
        conversation = Conversation(journal=self.sessions.create())
        self.now = 0.0
        self.worker = Worker()
        chosen = ChosenModel(Opener(loaded, tell=out.note), self.worker)
        chosen.target = Checkpoint("fake", model_folder)
        self.talk = Chat(loaded, out, conversation, chosen, Keyboard(), self.script, clock=lambda: self.now)
        learned = LearnedDrafting(loaded.places.data, None)
        self.worker.load(lambda: OpenModel(self.model, Checkpoint("fake", model_folder), None, learned))
        while self.worker.model is None:
            self.worker.wait(seconds=10)
        self.decoder.before_round = self._before_round
        self._stops: dict[int, set[int]] = {}

    def say(self, *lines: str | Line | type[BaseException], answers: Sequence[str] = ()) -> str:
        """What the paper shows after these lines, figures that differ from run to run replaced."""
        for answer in answers:
            self._enqueue(answer)
        start = len(self.paper.getvalue())
        self.script.lines = list(lines)
        run(self.talk)
        return masked(self.paper.getvalue()[start:])

    @property
    def given(self) -> str:
        """What stood in the last line when it was offered."""
        return self.script.given[-1]

    @property
    def prompts(self) -> list[str]:
        """What the model was given to read, as text with its marks."""
        texts = []
        for request in self.decoder.requests:
            inner = self.tokenizer.detokenizer()
            texts.append("".join(self._spelled(token) or inner.add(token) for token in request.prompt))
        return texts

    def change(self, **settings: object) -> None:
        self.talk.loaded = replace(self.talk.loaded, settings=replace(self.talk.loaded.settings, **settings))  # type: ignore[arg-type]

    def _spelled(self, token: int) -> str:
        return {2: "<bos>", 98: "<|think|>", 105: "<|turn>", 106: "<turn|>"}.get(token, "")

    def _enqueue(self, answer: str) -> None:
        number = len(self.decoder.requests) + len(self.decoder.answers)
        tokens: list[int] = []
        for part in re.split(r"(\{stop\})", answer):
            if part == "{stop}":
                self._stops.setdefault(number, set()).add(1 + (len(tokens) + 1) // 3)
            else:
                tokens += self.tokenizer.encode(part)
        self.decoder.enqueue(tokens)

    def _before_round(self, number: int) -> None:
        if number in self._stops.get(len(self.decoder.requests) - 1, ()):
            os.kill(os.getpid(), signal.SIGINT)
            deadline = time.monotonic() + 120
            while not self.worker._stop.is_set() and time.monotonic() < deadline:
                time.sleep(0.001)


def masked(text: str) -> str:
    for pattern, replacement in _FIGURES:
        text = pattern.sub(replacement, text)
    return text
