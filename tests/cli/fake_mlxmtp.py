"""`mlxmtp` with a queue instead of a network: everything else is the real program.

FAKE_ANSWERS is a JSON list; each answer is a text, and `{sleep 0.5}` or `{never}` in it pauses there.
FAKE_INTERRUPT_AT names the moment of a Ctrl-C: the import of a module, `load` or `prefill`.
FAKE_LOAD_SECONDS makes loading last, FAKE_PREFILL_SECONDS the reading of every prompt, in ten steps.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

from mlxmtp.decode.round import Round
from mlxmtp.engine.model import Model
from mlxmtp.engine.tokenizer import Tokenizer
from mlxmtp.models.config import read_config
from tests.fake_decoder import FakeDecoder

_PAUSE = re.compile(r"\{(sleep [\d.]+|never)\}")


class SlowReader(FakeDecoder):
    """Reads prompts in steps that last."""

    def rounds(self, prompt_ids: Sequence[int], **options: Any) -> Generator[Round, None, None]:
        seconds = float(os.environ.get("FAKE_PREFILL_SECONDS", "0"))
        for step in range(10 if seconds else 0):
            options["on_prefill"](step * len(prompt_ids) // 10, len(prompt_ids))
            pause(seconds / 10)
        yield from super().rounds(prompt_ids, **options)


def load_fake(folder: Path, drafter: Path | None = None, *, name: str = "", tokenizer: Tokenizer, **_: object) -> Model:
    decoder = SlowReader()
    pauses: dict[int, float] = {}
    for text in json.loads(os.environ["FAKE_ANSWERS"]):
        tokens: list[int] = []
        for part in _PAUSE.split(text):
            if part == "never" or part.startswith("sleep "):
                pauses[1 + (len(tokens) + 1) // 3] = 3600.0 if part == "never" else float(part[6:])
            else:
                tokens += tokenizer.encode(part)
        decoder.enqueue(tokens)

    def before_round(number: int) -> None:
        interrupt_at("prefill")
        pause(pauses.get(number, 0.0))

    decoder.before_round = before_round
    interrupt_at("load")
    pause(float(os.environ.get("FAKE_LOAD_SECONDS", "0")))
    return Model(decoder, read_config(folder), tokenizer, name=name, drafter=None if drafter is None else str(drafter))


def pause(seconds: float) -> None:
    """Sleep in steps: a signal that another thread took (BLAS starts one) does not end the sleep of this one."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(left, 0.05))


def interrupt_at(moment: str) -> None:
    if os.environ.get("FAKE_INTERRUPT_AT") == moment:
        os.kill(os.getpid(), signal.SIGINT)


class InterruptingFinder:
    """Sees every import before anyone else does."""

    @staticmethod
    def find_spec(name: str, *_: object) -> None:
        interrupt_at(name)


if __name__ == "__main__":
    from mlxmtp.__main__ import main

    Model.load = load_fake  # type: ignore[assignment, method-assign]
    for name in [name for name in sys.modules if name.startswith(("mlxmtp.settings", "tokenizers", "jinja2"))]:
        del sys.modules[name]  # so that the program imports it itself
    sys.meta_path.insert(0, InterruptingFinder())
    sys.exit(main())
