"""Starts the workers and measures the arms in turn. Standard library only."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scripts.benchmarks.harness.arms import KINDS, MIXED, PER_REPETITION, TEXTS, WHOLE, Arm, random_words, rotated
from scripts.benchmarks.harness.options import say

ROOT = Path(__file__).resolve().parents[3]
_RANDOM_CANDIDATES = 10
_RACE = ("ours", "ours-mtp", "ours-blind")
_LAPS, _LAP = 12, 128
_TUNE_TOKENS = 64


class WorkerError(Exception):
    """A worker cannot be started or has failed."""


class Worker:
    """The driver's end of one `engines.worker`."""

    def __init__(self, python: Path, engine: str, target: Path, drafter: Path) -> None:
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115  (lives as long as the worker)
        self._process = subprocess.Popen(
            [str(python), "-m", "scripts.benchmarks.engines.worker", engine, str(target), str(drafter)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        self.hello: dict[str, Any] = self._receive()["hello"]

    def ask(self, what: str, **request: Any) -> dict[str, Any]:
        """One request, one answer. Raises WorkerError."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": what, **request}) + "\n")
        self._process.stdin.flush()
        return self._receive()

    def close(self) -> None:
        """End the worker."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._log.close()

    def _receive(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        message: dict[str, Any] = json.loads(line) if line else {"error": "it ended"}
        if "error" in message:
            self._log.seek(0)
            tail = self._log.read().strip().splitlines()[-1:]
            raise WorkerError(": ".join([message["error"], *tail]))
        return message


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids and how many new tokens every arm makes from them when it decodes greedily."""

    kind: str
    ids: tuple[int, ...]
    tokens: int
    text: str


@dataclass(frozen=True, slots=True)
class Sample:
    """One generation. `decoded` tokens took `seconds` after the first batch of tokens had come at `first` seconds."""

    phase: str
    repetition: int
    kind: str
    text: str
    arm: str
    tokens: tuple[int, ...]
    first: float
    decoded: int
    seconds: float
    rounds: int | None
    drafted: int | None
    accepted: int | None


@dataclass(frozen=True, slots=True)
class Options:
    """How much to measure. `tokens` is the most per prompt."""

    repetitions: int = 5
    tokens: int = WHOLE
    minutes: float = 6.0
    kinds: tuple[str, ...] = KINDS
    sampled: bool = True
    whole: bool = False


class Session:
    """Workers, prompts and the samples so far."""

    def __init__(self, arms: Sequence[Arm], workers: dict[str, Worker], options: Options) -> None:
        self.arms, self.workers, self.options = list(arms), workers, options
        self.stop: list[int] = workers["ours"].hello["stop"]
        self.notes: list[str] = []
        self.samples: list[Sample] = []
        self._started = time.monotonic()
        self._turn = 0

    def prepare(self) -> dict[str, list[Prompt]]:
        """Warm every arm up and choose the prompts of every kind."""
        say("building kernels and warming up")
        first = self._ids([{"text": TEXTS["code"][0]}])[0]
        for engine, worker in self.workers.items():
            jobs = [
                {
                    "prompt": first,
                    "tokens": self._warm_tokens(arm),
                    "draft": arm.draft,
                    "temp": temp,
                    "blind": arm.blind,
                }
                for arm in self.arms
                if arm.engine == engine
                for temp in ((0.0, 1.0) if arm.sampled and self.options.sampled else (0.0,))
            ]
            worker.ask("warm", jobs=jobs)
        prompts = {kind: self._texts(kind) for kind in self.options.kinds if kind != "random"}
        if "random" in self.options.kinds:
            prompts["random"] = self._undraftable()
        return prompts

    def tune(self, prompts: dict[str, list[Prompt]], temp: float) -> None:
        """Find mlx-vlm's fastest setting on one prompt of each kind, and give it to its second MTP arm."""
        best = next((arm for arm in self.arms if arm.key == "vlm-best"), None)
        if best is None:
            return
        say(f"looking for mlx-vlm's best setting at temperature {temp:g}")
        trials = [
            replace(best, draft=k, keyed=keyed) for k in (1, 2, 3, 4) for keyed in ((False, True) if temp else (False,))
        ]
        speeds: dict[str, tuple[float, Arm]] = {}
        for trial in trials:
            label = f"{best.label}: draft {trial.draft}{', keyed noise' if trial.keyed else ''}"
            runs = [
                self._run("tune", 0, replace(items[0], tokens=min(items[0].tokens, _TUNE_TOKENS)), trial, temp)
                for kind, items in prompts.items()
                if kind != "random"
            ]
            seconds = sum(run.seconds for run in runs)
            speeds[label] = (sum(run.decoded for run in runs) / seconds if seconds else 0.0, trial)
        label, (_, chosen) = max(speeds.items(), key=lambda item: item[1][0])
        phase = "sampled" if temp else "greedy"
        self.notes.append(f"{label} was its fastest when {phase}, of drafts of 1 to 4 tokens.")
        self.arms[self.arms.index(best)] = chosen

    def measure(self, prompts: dict[str, list[Prompt]], temp: float, until: float) -> None:
        """Repetitions of all kinds and arms, arms in turn on each prompt, until `until` of the time is used."""
        phase = "sampled" if temp else "greedy"
        last = 0.0
        for repetition in range(self.options.repetitions):
            begin = self._minutes()
            if repetition and begin + last > until * self.options.minutes:
                self.notes.append(f"{phase}: {repetition} repetitions fitted into the time.")
                break
            say(f"{phase}, repetition {repetition + 1} of {self.options.repetitions}")
            for kind, items in prompts.items():
                if temp and kind == "random":
                    continue
                count = PER_REPETITION[kind]
                for offset in range(count):
                    prompt = items[(repetition * count + offset) % len(items)]
                    for arm in self._order(phase, kind, repetition):
                        self.samples.append(self._run(phase, repetition, prompt, arm, temp))
            last = self._minutes() - begin

    def race(self, prompts: Sequence[Prompt]) -> None:
        """mlxmtp's own arms alone, in turn at every prompt, for differences smaller than how a machine's pace changes
        while all arms have their turn.
        """
        say("random words once more, mlxmtp's own arms in close turns")
        arms = [arm for arm in self.arms if arm.key in _RACE]
        for lap in range(_LAPS if len(arms) > 1 else 0):
            prompt = replace(prompts[lap % len(prompts)], tokens=min(_LAP, self.options.tokens))
            self.samples += [self._run("race", lap, prompt, arm, 0.0) for arm in rotated(arms, lap)]

    def host(self, prompts: dict[str, list[Prompt]]) -> list[dict[str, Any]]:
        """Where the time of mlxmtp's rounds goes, by draft length, on the first prompt of each kind."""
        say("timing the host's part of a round")
        figures = []
        for draft in (0, 3, "auto"):
            total: dict[str, float] = {}
            for kind, items in prompts.items():
                if kind != "random":
                    for name, value in self._inside("host", items[0], draft).items():
                        total[name] = total.get(name, 0.0) + value
            figures.append({"draft": draft, **total})
        return figures

    def profile(self, prompt: Prompt) -> list[list[Any]]:
        """The Python functions that cost most in a run with drafting."""
        rows: list[list[Any]] = self._inside("profile", prompt, 3)
        return rows

    def _inside(self, what: str, prompt: Prompt, draft: int | str) -> Any:
        job = {"prompt": prompt.ids, "tokens": prompt.tokens, "draft": draft}
        return self.workers["ours"].ask(what, job=job)["answer"]

    def _warm_tokens(self, arm: Arm) -> int:
        return 8 if arm.engine == "transformers" else self.options.tokens if arm.engine == "ours" else 24

    def _ids(self, prompts: list[dict[str, str]]) -> list[list[int]]:
        ids: list[list[int]] = self.workers["ours"].ask("prompts", prompts=prompts)["answer"]
        return ids

    def _texts(self, kind: str) -> list[Prompt]:
        """The kind's prompts with the lengths of their greedy answers (the whole number of tokens without an end)."""
        texts = TEXTS[kind][: PER_REPETITION[kind] * self.options.repetitions]
        prompts = []
        for text, ids in zip(texts, self._ids([{"text": text} for text in texts]), strict=True):
            tokens = self.options.tokens
            if not self.options.whole and self.stop:
                request = {"prompt": ids, "tokens": tokens, "draft": 0, "stop": self.stop}
                tokens = max(2, len(self.workers["ours"].ask("run", **request)["tokens"]))
            prompts.append(Prompt(kind, tuple(ids), tokens, text))
        return prompts

    def _undraftable(self) -> list[Prompt]:
        """The random-word prompts of which the drafter guesses least, by a trial with one draft token a round."""
        say("looking for random words that cannot be drafted")
        words = [random_words(index) for index in range(_RANDOM_CANDIDATES)]
        found = []
        prompts = self._ids([{"text": said, "answer": begun} for said, begun in words])
        for (said, _), ids in zip(words, prompts, strict=True):
            run = self.workers["ours"].ask("run", prompt=ids, tokens=self.options.tokens, draft=1)
            found.append(
                (run["accepted"] / max(1, run["drafted"]), Prompt("random", tuple(ids), self.options.tokens, said))
            )
        found.sort(key=lambda item: item[0])
        self.notes.append(
            f"Random words: of {len(found)} prompts the ones with the lowest share of accepted single drafts "
            f"({found[0][0]:.0%} and up; the others reach {found[-1][0]:.0%})."
        )
        return [prompt for _, prompt in found[: max(1, min(3, self.options.repetitions))]]

    def _order(self, phase: str, kind: str, repetition: int) -> list[Arm]:
        """The arms that take part, beginning with another one each time."""
        arms = [
            arm
            for arm in self.arms
            if repetition % arm.every == 0
            and (arm.sampled or phase == "greedy")
            and (arm.random_words or kind != "random")
        ]
        self._turn += 1
        return rotated(arms, self._turn)

    def _run(self, phase: str, repetition: int, prompt: Prompt, arm: Arm, temp: float) -> Sample:
        natural = temp > 0 and bool(self.stop) and not self.options.whole  # a sampled text has an end of its own
        answer = self.workers[arm.engine].ask(
            "run",
            prompt=prompt.ids,
            tokens=self.options.tokens if natural else prompt.tokens,
            draft=arm.draft,
            temp=temp,
            seed=1000 * repetition + sum(prompt.ids) % 1000,
            stop=self.stop if natural else [],
            keyed=arm.keyed,
            blind=arm.blind,
        )
        (first_count, first), (count, last) = answer["marks"][0], answer["marks"][-1]
        return Sample(
            phase, repetition, prompt.kind, prompt.text, arm.key, tuple(answer["tokens"]), first,
            count - first_count, last - first, answer["rounds"], answer["drafted"], answer["accepted"],
        )  # fmt: skip

    def _minutes(self) -> float:
        return (time.monotonic() - self._started) / 60


def mixed(kinds: Sequence[str]) -> tuple[str, ...]:
    """The kinds that make up the mixed suite."""
    return tuple(kind for kind in MIXED if kind in kinds)
