"""transformers as it is: `generate`, plain and with `assistant_model`, float32 on the CPU."""

from __future__ import annotations

import contextlib
import json
import os
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Gemma4ForCausalLM, Gemma4TextConfig

from scripts.benchmarks.engines.job import Counts, Emit, Engine, Enough, Job

_PROBE = Job(prompt=tuple(range(300, 316)), tokens=24)


class _Streamer:
    """Receives tokens as `generate` accepts them. The first call brings the prompt."""

    def __init__(self, emit: Emit) -> None:
        self._emit, self.calls = emit, -1

    def put(self, value: torch.Tensor) -> None:
        """Tokens of one pass."""
        self.calls += 1
        if self.calls:
            self._emit(value.reshape(-1).tolist())

    def end(self) -> None:
        """Nothing is held back."""


class Transformers(Engine):
    """The reference implementation, whose speed is nobody's aim; here for scale and to check texts."""

    def __init__(self, target: Any, drafter: Any) -> None:
        self._target, self._drafter = target, drafter
        self._threads = self._best_threads()

    def describe(self) -> dict[str, Any]:
        """Versions, and the number of threads that was faster."""
        return {"transformers": version("transformers"), "torch": version("torch"), "torch threads": self._threads}

    def run(self, job: Job, emit: Emit) -> Counts:
        """`generate` with a streamer."""
        torch.manual_seed(job.seed)
        prompt = torch.tensor([job.prompt])
        streamer = _Streamer(emit)
        sampling: dict[str, Any] = {"do_sample": False}
        if job.temp:
            sampling = {"do_sample": True, "temperature": job.temp, "top_k": 0, "top_p": 1.0}
        with torch.no_grad(), contextlib.suppress(Enough):
            self._target.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=job.tokens,
                assistant_model=self._drafter if job.draft != 0 else None,
                streamer=streamer,
                **sampling,
            )
        return Counts(rounds=streamer.calls - 1 if job.draft != 0 else None)

    def _best_threads(self) -> int:
        cores = os.cpu_count() or 1
        seconds: dict[int, float] = {}
        for threads in {1, cores}:
            torch.set_num_threads(threads)
            self.run(_PROBE, lambda _: None)
            start = time.perf_counter()
            self.run(_PROBE, lambda _: None)
            seconds[threads] = time.perf_counter() - start
        best = min(seconds, key=lambda threads: seconds[threads])
        torch.set_num_threads(best)
        return best


def load(target: Path, drafter: Path) -> Transformers:
    """Load the pair with stop tokens off on both sides: the drafter would end a draft at one."""
    logging: Any = transformers.logging
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    networks = []
    for network in (_text_side(target), AutoModelForCausalLM.from_pretrained(drafter, dtype=torch.float32).eval()):
        config = network.generation_config
        config.eos_token_id = None
        config.do_sample = False
        config.temperature = config.top_k = config.top_p = None
        networks.append(network)
    return Transformers(*networks)


def _text_side(folder: Path) -> Any:
    """Return the network of a target without its towers: the reference takes the channels of a convolution of sounds
    for the number of their bands, which the built-in model has not."""
    text = json.loads((folder / "config.json").read_text(encoding="utf-8"))["text_config"]
    weights, prefix = load_file(folder / "model.safetensors"), "model.language_model."
    network = Gemma4ForCausalLM(Gemma4TextConfig(**text)).float().eval()
    own = {name.removeprefix(prefix): one.float() for name, one in weights.items() if name.startswith(prefix)}
    network.model.load_state_dict(own)
    network.tie_weights()
    return network
