"""`mlxmtp` with a queue instead of a network: everything else is the real program.

FAKE_ANSWERS is a JSON list; each answer is a text, and the model pauses at `{sleep 0.5}` in it, at `{wait}`, which a
file `waits` in its folder tells (`Program.wait_for_wait`), until the test says so (`Program.go_on`), at `{stop}` until
Ctrl+C has reached the conversation, at `{never}` for good, which a file `never` tells (`Program.wait_for_never`).
FAKE_INTERRUPT_AT names the moment of a Ctrl-C: the import of a module, `load` or `prefill`.
FAKE_LOAD is such a mark without its braces for loading, FAKE_PREFILL a JSON list of them for the prompts, one each, in
the middle of their reading. FAKE_SOON are the seconds until a person hears that a model does not stop; with it, each
stop of an answer is a byte in a file `stops` (`Program.wait_for_stops`).
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from threading import Event
from typing import Any

from mlxmtp.app.worker import Worker
from mlxmtp.decode.round import Round
from mlxmtp.engine.model import Model
from mlxmtp.engine.tokenizer import Tokenizer
from mlxmtp.models.config import read_config
from tests.fake_decoder import FakeDecoder

_PAUSE = re.compile(r"\{(sleep [\d.]+|wait|stop|never)\}")
_PATIENCE = 300.0  # seconds until what is waited for comes no more
stopped = Event()  # the answer that is being made


class SlowReader(FakeDecoder):
    """Reads prompts in steps, and may pause there."""

    def __init__(self) -> None:
        super().__init__()
        self.marks: list[str] = json.loads(os.environ.get("FAKE_PREFILL", "[]"))

    def rounds(self, prompt_ids: Sequence[int], **options: Any) -> Generator[Round, None, None]:
        stopped.clear()
        if self.marks:
            for done, mark in ((0, ""), (len(prompt_ids) // 2, self.marks.pop(0)), (len(prompt_ids) - 1, "")):
                options["on_prefill"](done, len(prompt_ids))
                pause_at(mark)
        yield from super().rounds(prompt_ids, **options)


def load_fake(folder: Path, drafter: Path | None = None, *, name: str = "", tokenizer: Tokenizer, **_: object) -> Model:
    decoder = SlowReader()
    pauses: dict[tuple[int, int], str] = {}  # by answer and round
    for answer, text in enumerate(json.loads(os.environ["FAKE_ANSWERS"]), 1):
        tokens: list[int] = []
        for part in _PAUSE.split(text):
            if part in ("wait", "stop", "never") or part.startswith("sleep "):
                pauses[answer, 1 + (len(tokens) + 1) // 3] = part
            else:
                tokens += tokenizer.encode(part)
        decoder.enqueue(tokens)

    def before_round(number: int) -> None:
        interrupt_at("prefill")
        pause_at(pauses.get((len(decoder.requests), number), ""))

    decoder.before_round = before_round
    if soon := os.environ.get("FAKE_SOON"):
        from mlxmtp.cli.repl import turns

        turns._SOON = float(soon)
    interrupt_at("load")
    pause_at(os.environ.get("FAKE_LOAD", ""))
    return Model(decoder, read_config(folder), tokenizer, name=name, drafter=None if drafter is None else str(drafter))


def pause_at(mark: str) -> None:
    if mark == "wait":
        Path("waits").touch()
        pause(_PATIENCE, until=Path("go on").exists)
        Path("go on").unlink(missing_ok=True)
    elif mark == "stop":
        pause(_PATIENCE, until=stopped.is_set)
    elif mark:
        if mark == "never":
            Path("never").touch()
        pause(3600.0 if mark == "never" else float(mark.removeprefix("sleep ")))


def pause(seconds: float, until: Callable[[], bool] = lambda: False) -> None:
    """Sleep in steps: a signal that another thread took (BLAS starts one) does not end the sleep of this one."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0 and not until():
        time.sleep(min(left, 0.02))


def interrupt_at(moment: str) -> None:
    if os.environ.get("FAKE_INTERRUPT_AT") == moment:
        os.kill(os.getpid(), signal.SIGINT)


class InterruptingFinder:
    """Sees every import before anyone else does."""

    @staticmethod
    def find_spec(name: str, *_: object) -> None:
        interrupt_at(name)


def replace_networks() -> None:
    Model.load = load_fake  # type: ignore[assignment, method-assign]
    stop = Worker.stop

    def told(self: Worker) -> None:
        stop(self)
        stopped.set()  # at `{stop}` the model goes on, and has to find that it is stopped
        if "FAKE_SOON" in os.environ:
            with Path("stops").open("ab") as file:
                file.write(b".")

    Worker.stop = told  # type: ignore[method-assign]


if __name__ == "__main__":
    from mlxmtp.__main__ import main

    replace_networks()
    for name in [name for name in sys.modules if name.startswith(("mlxmtp.settings", "tokenizers", "jinja2"))]:
        del sys.modules[name]  # so that the program imports it itself
    sys.meta_path.insert(0, InterruptingFinder())
    sys.exit(main())
