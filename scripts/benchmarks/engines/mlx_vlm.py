"""mlx-vlm as it is: its loaders, its `generate_step`, its MTP rounds with the block size it chooses or a given one.

Its block size counts the bonus token: a draft of 3 is a block of 4, which is its default for Gemma 4's drafters.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_vlm.generate import generate_step, generation_stream
from mlx_vlm.speculative.drafters import load_drafter
from mlx_vlm.utils import load_model

from scripts.benchmarks.engines.job import Counts, Emit, Engine, Enough, Job


class MlxVlm(Engine):
    """Plain and MTP decoding."""

    def __init__(self, model: Any, drafter: Any, kind: str) -> None:
        self._model, self._drafter, self._kind = model, drafter, kind

    def describe(self) -> dict[str, Any]:
        """Versions and the draft length it would choose."""
        return {
            "mlx-vlm": version("mlx-vlm"),
            "mlx": version("mlx"),
            "device": str(mx.default_device()),
            "default draft": int(self._drafter.config.block_size) - 1,
        }

    def run(self, job: Job, emit: Emit) -> Counts:
        """`generate_step`, sampling as its command line does (one generator) or, keyed, as its server does."""
        mx.random.seed(job.seed)
        options: dict[str, Any] = {}
        if job.draft != 0:
            options = {"draft_model": self._drafter, "draft_kind": self._kind}
            if isinstance(job.draft, int):
                options["draft_block_size"] = job.draft + 1
        steps = generate_step(
            mx.array([job.prompt]),
            self._model,
            None,
            None,
            max_tokens=job.tokens,
            temperature=job.temp,
            top_p=1.0,
            top_k=0,
            seed=job.seed if job.keyed else None,
            **options,
        )
        try:
            for token, _ in steps:
                emit([int(token)])
        except Enough:
            pass
        steps.close()
        mx.synchronize(generation_stream)  # what is still running must not run in the next arm's time
        mx.synchronize()
        if job.draft == 0:
            return Counts()
        accepted, drafted = list(self._drafter.accept_lens), list(self._drafter.draft_lens)
        return Counts(len(accepted), int(sum(drafted)), int(sum(accepted)))


def load(target: Path, drafter: Path) -> MlxVlm:
    """Load the pair in float32 on the CPU, as stored elsewhere."""
    model = load_model(target)
    draft_model, kind = load_drafter(str(drafter))
    if mx.default_device() == mx.Device(mx.cpu):
        for network in (model, draft_model):
            network.set_dtype(mx.float32)
            mx.eval(network.parameters())
    return MlxVlm(model, draft_model, kind)
