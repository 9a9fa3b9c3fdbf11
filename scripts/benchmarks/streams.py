"""Several answers at once: tokens per second of all together, beside the batch generators of mlx-lm and mlx-vlm.

    .venv/bin/python -m scripts.benchmarks.streams [--peers PYTHON] [--repetitions 2] [--write docs/benchmarks.md]
        [--plot assets/streams.svg] [--pair FOLDER --tokens 16]

Eight answers of the built-in pair, at most 1, 2, 4 or 8 at a time, greedy, in float32 on a CPU; every answer goes on to
its last token. Every engine is a process of its own, which stays; arms take turns. What is timed is the whole job,
prompts included. The first repetition, which makes kernels and traces, does not count; ours begins with what it learned
there. No repetition is begun that would end after `--minutes`. On a machine that does nothing else. `--pair`: a folder
with `target` and `drafter` in place of the built-in pair, such as one of random weights that cold_start.py makes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from scripts.benchmarks.harness.environment import environment
from scripts.benchmarks.harness.options import repeated, say
from scripts.benchmarks.harness.report import machine
from scripts.benchmarks.harness.section import write_section
from scripts.benchmarks.harness.stream_chart import chart

ROOT = Path(__file__).resolve().parents[2]
PAIR = ROOT / "assets" / "pocket"
TOKENS = 64
_FEW = 4  # of the peers in the first repetition: they trace nothing
_NEVER = 4095  # a token that does not come: no answer ends before its last token
STREAMS = (1, 2, 4, 8)
ARMS = {
    "ours": "mlxmtp, plain", "ours-mtp": "mlxmtp, drafted", "ours-alone": "mlxmtp, drafted, one after another",
    "mlx_lm": "mlx-lm, plain", "mlx_vlm": "mlx-vlm, plain", "mlx_vlm-mtp": "mlx-vlm, drafted",
}  # fmt: skip
QUESTIONS = (
    "What is a drafter?", "How do I install a model?", "What does mlxmtp bench measure?", "What is a KV cache?",
    "Explain speculative decoding.", "Which commands are there?", "How large is E2B?", "How do I stop an answer?",
)  # fmt: skip
_ABOUT = """\
One run of `scripts/benchmarks/streams.py`, {day}, {machine}: {count} answers of {pair}, {tokens} tokens
each, greedy, float32. Tokens per second of all answers together, prompts included, median of {repetitions} runs (least
to most). Answers of ours are the same in every arm: {same}.

| at a time | {heads} |
|---|{rules}"""

Run = Callable[[list[list[int]], int, bool, int], list[list[int]]]
"""(prompts, how many at a time, whether to draft, tokens of an answer) -> answers"""


def _ours(pair: Path) -> Run:
    import mlxmtp
    from mlxmtp.engine.params import Params
    from mlxmtp.engine.streams import Streams

    model = mlxmtp.load(pair / "target", pair / "drafter")
    kept: dict[tuple[int, bool], Streams] = {}

    def run(prompts: list[list[int]], streams: int, drafted: bool, tokens: int) -> list[list[int]]:
        if (streams, drafted) not in kept:  # arms that shared one would learn from each other
            kept[streams, drafted] = model.streams(streams)
        many = kept[streams, drafted]
        params = Params(max_tokens=tokens, temp=0.0, num_draft_tokens="auto" if drafted else 0, stop=())
        asked = [many.begin(lambda seat, ids=ids: model.seated(seat).stream_ids(ids, params)) for ids in prompts]
        while many.running:
            many.step()
        return [one.answer.tokens for one in asked]

    return run


def _ours_alone(pair: Path) -> Run:
    import mlxmtp
    from mlxmtp.engine.params import Params

    model = mlxmtp.load(pair / "target", pair / "drafter")

    def run(prompts: list[list[int]], streams: int, drafted: bool, tokens: int) -> list[list[int]]:
        del streams, drafted
        answers = []
        for ids in prompts:
            answer = model.stream_ids(ids, Params(max_tokens=tokens, temp=0.0, stop=()))
            list(answer)
            answers.append(answer.tokens)
        return answers

    return run


def _mlx_lm(pair: Path, stop: list[int]) -> Run:
    import mlx.core as mx
    from mlx_lm.generate import BatchGenerator
    from mlx_lm.utils import load_model

    model, _ = load_model(pair / "target")
    model.set_dtype(mx.float32)
    mx.eval(model.parameters())

    def run(prompts: list[list[int]], streams: int, drafted: bool, tokens: int) -> list[list[int]]:
        del drafted
        sizes = {"completion_batch_size": streams, "prefill_batch_size": streams}
        many = BatchGenerator(model, stop_tokens=[[one] for one in stop], **sizes)
        answers: dict[int, list[int]] = {uid: [] for uid in many.insert(prompts, [tokens] * len(prompts))}
        while responses := many.next_generated():
            for one in responses:
                answers[one.uid].append(one.token)
        many.close()
        return list(answers.values())

    return run


class _Stops:
    """What mlx-vlm asks of a tokenizer."""

    def __init__(self, stop: list[int]) -> None:
        self._stop = stop
        self.stopping_criteria = self

    def add_eos_token_ids(self, _: object) -> None:
        """They are known."""

    def __call__(self, token: int) -> bool:
        return token in self._stop


def _mlx_vlm(pair: Path, stop: list[int]) -> Run:
    import mlx.core as mx
    from mlx_vlm.generate.ar import BatchGenerator
    from mlx_vlm.speculative.drafters import load_drafter
    from mlx_vlm.utils import load_model

    model = load_model(pair / "target")
    drafter, kind = load_drafter(str(pair / "drafter"))
    for network in (model, drafter):
        network.set_dtype(mx.float32)
        mx.eval(network.parameters())

    def run(prompts: list[list[int]], streams: int, drafted: bool, tokens: int) -> list[list[int]]:
        more: dict[str, Any] = {"draft_model": drafter, "draft_kind": kind} if drafted else {}
        more |= {"completion_batch_size": streams, "prefill_batch_size": streams, "compute_logprobs": False}
        many = BatchGenerator(model.language_model, _Stops(stop), greedy_sampling=True, **more)
        known = [model.get_input_embeddings(mx.array([ids]), None).to_dict() for ids in prompts]
        kwargs = [{name: value for name, value in one.items() if value is not None} for one in known]
        answers: dict[int, list[int]] = {uid: [] for uid in many.insert(prompts, tokens, prompt_kwargs=kwargs)}
        while many.has_work:
            _, responses = many.next()
            for one in responses:
                answers[one.uid].append(one.token)
        return list(answers.values())

    return run


def work(engine: str, pair: Path) -> None:
    """Answer requests on stdin as one engine: a line of JSON each."""
    request = json.loads(sys.stdin.readline())
    prompts, stop = request["prompts"], request["stop"]
    makers = {"ours": partial(_ours, pair), "ours-alone": partial(_ours_alone, pair)}
    makers |= {"mlx_lm": partial(_mlx_lm, pair, stop), "mlx_vlm": partial(_mlx_vlm, pair, stop)}
    run = makers[engine]()
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        began = time.perf_counter()
        answers = run(prompts, asked["streams"], asked["drafted"], asked["tokens"])
        seconds = time.perf_counter() - began
        cut = [[token for token in answer if token not in stop] for answer in answers]
        print(json.dumps({"seconds": seconds, "answers": cut}), flush=True)


class Worker:
    """An engine in a process of its own."""

    def __init__(self, python: Path, engine: str, pair: Path, prompts: list[list[int]], stop: list[int]) -> None:
        self._process = subprocess.Popen(
            [str(python), "-m", "scripts.benchmarks.streams", "--work", engine, "--pair", str(pair)],
            cwd=ROOT,
            env={**environment(), "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.ask(prompts=prompts, stop=stop)

    def ask(self, **request: Any) -> dict[str, Any]:
        """Return the answer to a request."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer


def measure(given: argparse.Namespace) -> dict[tuple[str, int], list[float]]:
    """Return tokens per second by arm and number of streams."""
    from mlxmtp import load

    model = load("pocket")
    prompts = [model.tokenizer.prompt_ids([{"role": "user", "content": one}]) for one in QUESTIONS]
    stop = [_NEVER]
    if not given.peers.exists():
        say(f"{given.peers} is not there, so mlx-lm and mlx-vlm are left out")
        given.arms = [arm for arm in given.arms if arm.startswith("ours")]
    engines = {arm: arm.removesuffix("-mtp") for arm in given.arms}
    workers = {
        engine: Worker(
            Path(sys.executable) if engine.startswith("ours") else given.peers, engine, given.pair, prompts, stop
        )
        for engine in dict.fromkeys(engines.values())
    }
    speeds: dict[tuple[str, int], list[float]] = {}
    texts: dict[str, set[str]] = {}
    began = time.perf_counter()
    for repetition in range(-1, given.repetitions):  # the first one is for traces and kernels
        if repetition > 0 and time.perf_counter() - began > 60 * given.minutes * repetition / (repetition + 1):
            say(f"no repetition after {repetition}: it would not end within {given.minutes:g} minutes")
            break
        for streams in given.streams:
            for arm in given.arms:
                if arm == "ours-alone" and streams > 1:
                    continue
                tokens = given.tokens if repetition >= 0 or arm.startswith("ours") else _FEW
                got = workers[engines[arm]].ask(streams=streams, drafted=arm.endswith("-mtp"), tokens=tokens)
                if repetition >= 0:
                    texts.setdefault(engines[arm].partition("-")[0], set()).add(json.dumps(got["answers"]))
                    tokens = sum(map(len, got["answers"]))
                    speeds.setdefault((arm, streams), []).append(tokens / got["seconds"])
                    say(f"{arm} {streams} {speeds[arm, streams][-1]:.3g} tok/s")
    speeds["same", 0] = [len(texts.get("ours", {""}))]
    return speeds


def main() -> None:
    """Measure, and write a section."""
    parser = repeated(__doc__, 2)
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="draw a chart")
    parser.add_argument("--minutes", type=float, default=9.0, help="no repetition that would end later (default: 9)")
    parser.add_argument("--peers", type=Path, default=ROOT / ".venv-peers/bin/python", help="with mlx-lm and mlx-vlm")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--streams", type=int, nargs="+", default=list(STREAMS), help="at a time (default: 1 2 4 8)")
    parser.add_argument("--pair", type=Path, default=PAIR, metavar="FOLDER", help="with `target` and `drafter`")
    parser.add_argument("--tokens", type=int, default=TOKENS, help=f"of an answer (default: {TOKENS})")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        work(given.work, given.pair)
        return
    speeds = measure(given)
    same = "yes" if speeds.pop(("same", 0)) == [1] else "no"
    if given.json:
        given.json.write_text(json.dumps({f"{arm} {streams}": found for (arm, streams), found in speeds.items()}))
    lines = [
        _ABOUT.format(
            day=datetime.now(UTC).date(), machine=machine(), count=len(QUESTIONS), tokens=given.tokens,
            pair="the built-in pair" if given.pair == PAIR else given.pair.name,
            repetitions=max(map(len, speeds.values())), same=same, heads=" | ".join(ARMS[arm] for arm in given.arms),
            rules="---:|" * len(given.arms),
        )
    ]  # fmt: skip
    for streams in given.streams:
        cells = []
        for arm in given.arms:
            found = speeds.get((arm, streams))
            cells.append(f"{median(found):.3g} ({min(found):.3g} to {max(found):.3g})" if found else "")
        lines.append(f"| {streams} | {' | '.join(cells)} |")
    text = "\n".join(lines)
    print(text)
    if given.plot:
        given.plot.write_text(chart(speeds, ARMS), encoding="utf-8")
        if given.write:
            where = os.path.relpath(given.plot.resolve(), given.write.resolve().parent)
            text = f"![Tokens per second by the number of answers at a time]({where})\n\n{text}"
    if given.write:
        write_section(given.write, "streams", text, script="streams.py", heading="Several answers at once")


if __name__ == "__main__":
    main()
