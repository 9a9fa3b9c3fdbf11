"""mlxmtp through its decoder, compiled from the start, with a decoder of its own for every draft length."""

from __future__ import annotations

import bisect
import cProfile
import itertools
import pstats
import random
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mlxmtp.decode.decoder import Decoder
from mlxmtp.decode.draft_length import DraftLength
from mlxmtp.decode.sampling import Sampling
from mlxmtp.engine.tokenizer import Tokenizer
from mlxmtp.models.load import load_drafter, load_target
from scripts.benchmarks.engines.host import Stopwatch
from scripts.benchmarks.engines.job import TOP_DRAFT, Counts, Emit, Enough, Job

_WITHOUT_TOKENIZER = 40  # tokens of the random prompt that stands for a text


class Ours:
    """Plain, fixed and automatic draft lengths on one pair."""

    def __init__(self, target: Any, folder: Path, tokenizer: Tokenizer | None) -> None:
        self._target, self._folder, self._tokenizer = target, folder, tokenizer
        self._drafters = {False: load_drafter(folder, target)}
        self._decoders: dict[tuple[int | str, bool], Decoder] = {}

    def describe(self) -> dict[str, Any]:
        """Versions, and what the driver needs to know of the checkpoint."""
        import mlx.core as mx

        return {
            "mlxmtp": _version("mlxmtp"),
            "mlx": version("mlx"),
            "device": str(mx.default_device()),
            "dtype": str(self._target.dtype).removeprefix("mlx.core."),
            "stop": sorted(self._target.config.stop_ids) if self._tokenizer else [],
        }

    def warm(self, jobs: Sequence[Job]) -> None:
        """Run them, and for the automatic length every length it may choose."""
        for job in jobs:
            self.run(job, lambda _: None)  # first at full length: that settles the buffers' size
            for draft in range(TOP_DRAFT + 1) if job.draft == "auto" else ():
                self._rounds(job, draft, 3 * (draft + 1))
        for decoder in self._decoders.values():
            decoder.depth = DraftLength()  # what it learned while kernels were built says nothing

    def run(self, job: Job, emit: Emit) -> Counts:
        """`Decoder.rounds`, with nothing left in the cache from before."""
        rounds = drafted = accepted = 0
        steps = self._begin(job)
        try:
            for index, step in enumerate(steps):
                rounds += index > 0
                drafted += len(step.draft)
                accepted += step.accepted
                emit(step.tokens)
        except Enough:
            pass
        steps.close()
        return Counts(rounds, drafted, accepted)

    def prompt_ids(self, text: str, answer: str = "") -> tuple[int, ...]:
        """The prompt of a question, and of an answer that has begun already."""
        return tuple(self._prompt(text, answer))

    def control(self, job: Job, depth: DraftLength) -> None:
        """Let `depth` choose the automatic length of `job` from now on."""
        self._decoder(job).depth = depth

    def ask(self, what: str, request: dict[str, Any]) -> Any:
        """`prompts`: texts to token ids. `conversation`: as many turns as fit before a question, to token ids. `host`:
        where a round's time goes. `profile`: the Python part in detail."""
        if what == "prompts":
            return [self._prompt(**item) for item in request["prompts"]]
        if what == "conversation":
            return self._conversation(request["turns"], request["text"], request["length"])
        job = Job(**{**request["job"], "prompt": tuple(request["job"]["prompt"])})
        if what == "host":
            return self.host(job)
        if what == "profile":
            return self._profile(job)
        raise NotImplementedError(what)

    def _begin(self, job: Job) -> Any:
        decoder = self._decoder(job)
        decoder.tokens, decoder.rows = [], 0  # read the whole prompt, as the others do
        return decoder.rounds(
            job.prompt,
            max_tokens=job.tokens,
            num_draft_tokens=job.draft if isinstance(job.draft, int) else "auto",
            sampling=Sampling(temp=job.temp, seed=job.seed),
            stop=job.stop,
        )

    def _decoder(self, job: Job) -> Decoder:
        if job.blind not in self._drafters:
            self._drafters[job.blind] = _untrained(self._folder, self._target)
        key = (job.draft, job.blind)
        if key not in self._decoders:
            self._decoders[key] = Decoder(self._target, self._drafters[job.blind], compiled="always")
        return self._decoders[key]

    def _rounds(self, job: Job, draft: int, tokens: int) -> None:
        """A few rounds of a fixed length on the decoder of `job.draft`."""
        decoder = self._decoder(job)
        sampling = Sampling(temp=job.temp, seed=job.seed)
        for _ in decoder.rounds(job.prompt, max_tokens=tokens, num_draft_tokens=draft, sampling=sampling):
            pass

    def _prompt(self, text: str, answer: str = "") -> list[int]:
        if self._tokenizer is None:
            numbers = random.Random(text)
            return [2, *(numbers.randrange(300, self._target.config.vocab_size) for _ in range(_WITHOUT_TOKENIZER))]
        ids = self._tokenizer.prompt_ids([{"role": "user", "content": text}])
        return ids + self._tokenizer.encode(answer) if answer else ids

    def _conversation(self, turns: Sequence[Sequence[str]], text: str, length: int) -> list[int]:
        """The question `text` after as many of `turns` (question and answer, over and over) as `length` tokens hold."""

        def prompt(count: int) -> list[int]:
            past = itertools.islice(itertools.cycle(turns), count)
            said = [message for turn in past for message in zip(("user", "assistant"), turn, strict=True)]
            messages = [{"role": role, "content": content} for role, content in [*said, ("user", text)]]
            assert self._tokenizer is not None
            return self._tokenizer.prompt_ids(messages)

        return prompt(bisect.bisect_right(range(1, length), length, key=lambda count: len(prompt(count))))

    def host(self, job: Job) -> dict[str, float]:
        """Where the time of the rounds of `job` goes, see `Stopwatch.figures`."""
        self.run(replace(job, tokens=8), lambda _: None)
        with Stopwatch(self._decoder(job)) as watch:
            self.run(job, lambda _: None)
        return watch.figures()

    def _profile(self, job: Job) -> list[list[Any]]:
        """[function, calls, own seconds] of the most expensive ones while `job` runs."""
        self.run(replace(job, tokens=8), lambda _: None)
        with cProfile.Profile() as profile:
            self.run(job, lambda _: None)
        table: Any = pstats.Stats(profile).stats  # type: ignore[attr-defined]
        rows = [
            [f"{Path(file).name}:{line} {name}" if line else name, calls, own]
            for (file, line, name), (_, calls, own, _, _) in table.items()
        ]
        return sorted(rows, key=lambda row: -row[2])[:12]


def load(target: Path, drafter: Path) -> Ours:
    """Load the pair; a checkpoint without a tokenizer gets random prompts."""
    network = load_target(target)
    tokenizer = Tokenizer.load(target) if (target / "tokenizer.json").is_file() else None
    return Ours(network, drafter, tokenizer)


def _untrained(folder: Path, target: Any) -> Any:
    """The drafter of `folder` with noise of the same size for every matrix: the worst guesses at the same cost."""
    import mlx.core as mx

    tensors: Any = mx.load(str(folder / "model.safetensors"))
    mx.random.seed(0)
    for name, value in tensors.items():
        if value.ndim == 2:
            size = mx.std(value.astype(mx.float32))
            tensors[name] = (mx.random.normal(value.shape) * size).astype(value.dtype)
    with tempfile.TemporaryDirectory() as temporary:
        shutil.copyfile(folder / "config.json", Path(temporary, "config.json"))
        mx.save_safetensors(str(Path(temporary, "model.safetensors")), tensors, {"format": "pt"})
        return load_drafter(Path(temporary), target)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from the checkout
        return "checkout"
