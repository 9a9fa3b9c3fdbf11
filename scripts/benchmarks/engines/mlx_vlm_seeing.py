"""mlx-vlm on prompts with pictures: its image processor, `encode_image` and `generate_step` with one prompt cache."""

from __future__ import annotations

import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_vlm.generate import generate_step, generation_stream
from mlx_vlm.models.cache import make_prompt_cache
from mlx_vlm.models.gemma4.processing_gemma4 import Gemma4ImageProcessor
from mlx_vlm.utils import load_model
from PIL import Image, ImageOps

from scripts.benchmarks.engines.job import Counts, Emit, Engine, Job


class MlxVlm(Engine):
    """The network without a tokenizer: placeholders are expanded as its processor does."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def describe(self) -> dict[str, Any]:
        """Versions."""
        return {"mlx-vlm": version("mlx-vlm"), "mlx": version("mlx")}

    def run(self, job: Job, emit: Emit) -> Counts:
        """Nothing: these engines are only asked."""
        raise NotImplementedError

    def ask(self, what: str, request: dict[str, Any]) -> Any:
        """As `ours_seeing` answers."""
        if what == "encode":
            begin = time.perf_counter()
            pixels, _ = self._pixels([request["picture"]], request["budget"])
            soft = self._model.encode_image(pixels)[0]
            mx.eval(soft)
            return {"seconds": time.perf_counter() - begin, "soft": soft[:, :4].astype(mx.float32).tolist()}
        mx.clear_cache()
        mx.reset_peak_memory()
        cache = make_prompt_cache(self._model.language_model)
        first, said = self._answer(cache, request["prompt"], request["pictures"], request)
        found = {"first": first, "tokens": said, "peak": int(mx.get_peak_memory())}
        if request["after"]:  # its cache holds all but the last token
            found["second"], _ = self._answer(cache, [said[-1], *request["after"]], [], request)
        return found

    def _pixels(self, pictures: list[str], budget: int) -> tuple[Any, list[int]]:
        opened = [ImageOps.exif_transpose(Image.open(one)) for one in pictures]
        data, counts = Gemma4ImageProcessor(max_soft_tokens=budget)(opened)
        return data["pixel_values"], counts

    def _answer(
        self, cache: list[Any], prompt: list[int], pictures: list[str], request: dict[str, Any]
    ) -> tuple[float, list[int]]:
        begin, pixels = time.perf_counter(), None
        if pictures:
            pixels, counts = self._pixels(pictures, request["budget"])
            prompt = self._expanded(prompt, counts)
            pixels = pixels if isinstance(pixels, list) else mx.array(pixels)
        first, said = 0.0, list[int]()
        steps = generate_step(
            mx.array([prompt]), self._model, pixels, None, max_tokens=request["tokens"], temperature=0.0,
            prompt_cache=cache,
        )  # fmt: skip
        for token, _ in steps:
            first = first or time.perf_counter() - begin
            said.append(int(token))
            if len(said) == request["tokens"]:
                break
        steps.close()
        mx.synchronize(generation_stream)
        return first, said

    def _expanded(self, prompt: list[int], counts: list[int]) -> list[int]:
        config, left = self._model.config, iter(counts)
        made: list[int] = []
        for token in prompt:
            image = token == config.image_token_id
            made += [config.boi_token_id, *[token] * next(left), config.eoi_token_id] if image else [token]
        return made


def load(target: Path, drafter: Path) -> MlxVlm:
    """Load the target in float32 on the CPU, as stored elsewhere."""
    model = load_model(target)
    if mx.default_device() == mx.Device(mx.cpu):
        model.set_dtype(mx.float32)
        mx.eval(model.parameters())
    return MlxVlm(model)
