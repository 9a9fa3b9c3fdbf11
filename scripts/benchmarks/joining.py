"""A long prompt that joins answers under way: how long do their readers wait meanwhile?

    .venv/bin/python -m scripts.benchmarks.joining [--tokens 10000] [--repetitions 3] [--write docs/benchmarks.md]

Three answers of the built-in pair run, greedy, without an end. A prompt of so many tokens comes beside them and is read
in pieces between their rounds. Waits are those between two rounds that gave tokens of one answer, in units of the
median wait before the prompt came. Takes about two minutes; on a machine that does nothing else.
"""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from statistics import median

import mlxmtp
from mlxmtp.bench.summary import quantile
from mlxmtp.engine.params import Params
from mlxmtp.engine.streams import Streams
from scripts.benchmarks.harness.options import repeated, say
from scripts.benchmarks.harness.report import machine
from scripts.benchmarks.harness.section import write_section

RUNNING = 3
BEFORE = 100  # steps before the prompt comes: traces are made, and the median wait is known
QUESTIONS = ("What is a drafter?", "How do I install a model?", "Explain speculative decoding.")


def main() -> None:
    """Measure, and write a section."""
    parser = repeated(__doc__, 3)
    parser.add_argument("--tokens", type=int, default=10_000, help="of the prompt (default: 10000)")
    given = parser.parse_args()
    model = mlxmtp.load("pocket")
    streams = model.streams(RUNNING + 1)
    found = []
    for repetition in range(given.repetitions):
        found.append(_measure(model, streams, given.tokens, repetition))
        say(" ".join(f"{name} {value:.2f}" for name, value in found[-1].items()))
    streams.close()
    if given.json:
        given.json.write_text(json.dumps(found))
    middle = {name: median(one[name] for one in found) for name in found[0]}
    text = (
        f"One run of `scripts/benchmarks/joining.py`, {datetime.now(UTC).date()}, {machine()}: {RUNNING} answers of "
        f"the built-in pair, greedy, and a prompt of {given.tokens:,} tokens that joins them; medians of "
        f"{given.repetitions} runs.\nBefore it came, a reader waited {middle['round']:.1f} ms between two pieces of "
        f"an answer (median). While it was read, {middle['seconds']:.1f} s in {middle['rounds']:.0f} rounds of the "
        f"others, p50 was {middle['p50']:.2f}, p95 {middle['p95']:.2f} and the longest {middle['most']:.2f} times that."
    )
    print(text)
    if given.write:
        write_section(given.write, "joining", text, script="joining.py", heading="A long prompt joins")


def _measure(model: mlxmtp.Model, streams: Streams, tokens: int, repetition: int) -> dict[str, float]:
    endless = Params(max_tokens=20_000, temp=0.0, stop=())
    for question in QUESTIONS:
        ids = model.tokenizer.prompt_ids([{"role": "user", "content": question}])
        streams.begin(lambda seat, ids=ids: model.seated(seat).stream_ids(ids, endless), question)
    last: dict[str, tuple[int, float]] = {}  # tokens, and when the latest came
    waits: list[float] = []

    def step() -> set[str]:
        found = streams.step()
        now = time.perf_counter()
        for running in streams.running:  # by tokens: what follows the end of an answer is not always text
            count = len(running.answer.tokens)
            if running.tag in QUESTIONS and count > last.get(running.tag, (0, now))[0]:
                if running.tag in last:
                    waits.append(now - last[running.tag][1])
                last[running.tag] = count, now
        return {running.tag for running, _ in found}

    while len(waits) < BEFORE * RUNNING:
        step()
    usual = median(waits[len(waits) // 2 :])
    waits.clear()
    long = [2, *((31 * i + repetition) % 3000 + 100 for i in range(tokens - 1))]
    streams.begin(lambda seat: model.seated(seat).stream_ids(long, Params(max_tokens=2, temp=0.0, stop=())), "long")
    began, rounds = time.perf_counter(), 0
    while "long" not in step():
        rounds += 1
    seconds = time.perf_counter() - began
    for running in streams.running:
        streams.cancel(running)
    shares = {f"p{percent}": quantile(waits, percent / 100) / usual for percent in (50, 95)}
    return {"round": 1000 * usual, "seconds": seconds, "rounds": rounds, **shares, "most": max(waits) / usual}


if __name__ == "__main__":
    main()
