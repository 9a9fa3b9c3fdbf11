"""mlx-lm as it is: its loader, its Gemma 4, its pipelined `generate_step`. It has no MTP drafters."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm.generate import generate_step, generation_stream
from mlx_lm.sample_utils import make_sampler
from mlx_lm.utils import load_model

from scripts.benchmarks.engines.job import Counts, Emit, Engine, Enough, Job


class MlxLm(Engine):
    """Plain decoding only."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def describe(self) -> dict[str, Any]:
        """Versions."""
        return {"mlx-lm": version("mlx-lm"), "mlx": version("mlx"), "device": str(mx.default_device())}

    def run(self, job: Job, emit: Emit) -> Counts:
        """`generate_step`, which dispatches one step ahead."""
        mx.random.seed(job.seed)
        sampler = make_sampler(temp=job.temp) if job.temp else None
        steps = generate_step(mx.array(job.prompt), self._model, max_tokens=job.tokens, sampler=sampler)
        try:
            for token, _ in steps:
                emit([int(token)])
        except Enough:
            pass
        steps.close()
        mx.synchronize(generation_stream)  # it leaves one step behind, which must not run in the next arm's time
        return Counts()


def load(target: Path, drafter: Path) -> MlxLm:
    """Load the target in float32 on the CPU, as stored elsewhere."""
    del drafter
    model, _ = load_model(target)
    if mx.default_device() == mx.Device(mx.cpu):
        model.set_dtype(mx.float32)
        mx.eval(model.parameters())
    return MlxLm(model)
