"""mlxmtp on prompts with pictures, through `Model.rounds`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from mlxmtp.engine.model import Model
from scripts.benchmarks.engines.job import Counts, Emit, Engine, Job


class Ours(Engine):
    """One model; nothing of a picture or a text is kept from one request to the next, but where `turn` says so."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def describe(self) -> dict[str, Any]:
        """Versions."""
        from importlib.metadata import version

        return {"mlx": version("mlx")}

    def run(self, job: Job, emit: Emit) -> Counts:
        """Nothing: these engines are only asked."""
        raise NotImplementedError

    def ask(self, what: str, request: dict[str, Any]) -> Any:
        """`encode`: seconds and a few numbers of a picture. `read`: a prompt and, with `after`, the turn behind it."""
        import mlx.core as mx

        media = self._model.media
        media.forget()
        media._prepared.clear()
        if what == "encode":
            begin = time.perf_counter()
            medium = media.prepare(Path(request["picture"]), request["budget"])
            soft = media._rows(medium)
            mx.eval(soft)
            return {"seconds": time.perf_counter() - begin, "soft": soft[:, :4].astype(mx.float32).tolist()}
        self._model._decoder.forget()
        mx.clear_cache()
        mx.reset_peak_memory()
        prompt, pictures = request["prompt"], [Path(one) for one in request["pictures"]]
        first, said = self._answer(prompt, pictures, request)
        found = {"first": first, "tokens": said, "peak": int(mx.get_peak_memory())}
        if request["after"]:
            found["second"], _ = self._answer([*prompt, *said, *request["after"]], pictures, request)
        return found

    def _answer(self, prompt: list[int], pictures: list[Path], request: dict[str, Any]) -> tuple[float, list[int]]:
        begin, first, said = time.perf_counter(), 0.0, list[int]()
        budget, count = request["budget"], request["tokens"]
        for one in self._model.rounds(
            prompt, max_tokens=count, num_draft_tokens=0, stop=(), media=pictures, image_tokens=budget
        ):
            first = first or time.perf_counter() - begin
            said += one.tokens
        return first, said


def load(target: Path, drafter: Path) -> Ours:
    """Load the target."""
    return Ours(Model.load(target))
