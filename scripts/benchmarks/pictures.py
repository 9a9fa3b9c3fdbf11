"""Measure pictures beside mlx-vlm: encoding, first token, a second turn, peak memory of many; one random checkpoint.

    .venv/bin/python -m scripts.benchmarks.pictures --peers .venv-peers/bin/python --write docs/benchmarks.md

A published tower's sizes (`--tower`) before a small text network, so the tower takes most of the time. Both read the
same file and the same token ids, each in a process of its own, in turn, float32 on the CPU, OpenBLAS on one thread. A
second turn has what the first one had and a short question more; `text` is the same with words in the picture's place.
`--small` is over in a minute and says that all of it works; the whole takes about ten minutes on a CPU. On a machine
that does nothing else.
"""

from __future__ import annotations

import json
import random
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any

from scripts.benchmarks.harness.drive import Worker
from scripts.benchmarks.harness.options import comparison, say
from scripts.benchmarks.harness.report import machine
from scripts.benchmarks.harness.section import write_section

ROOT = Path(__file__).resolve().parents[2]
ENGINES = {"mlxmtp": "ours_seeing", "mlx-vlm": "mlx_vlm_seeing"}
WHAT = {
    "encode": "file to soft tokens",
    "first": "first token, with the picture",
    "text": "first token, words instead",
    "second": "second turn, about the picture",
    "second text": "second turn, words instead",
}
BEFORE, AFTER, ANSWER = 32, 24, 8
_WIDTH, _HEIGHT = 1200, 900
_CLOSE = 1e-3  # of soft tokens, relative: both compute the same


def main() -> None:
    """Measure and report."""
    options = _arguments()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "target")
        _write_model(options, folder)
        pictures = [_picture(Path(temporary, f"{i}.png"), i) for i in range(options.many)]
        workers: dict[str, Worker] = {}
        try:
            for name, engine in ENGINES.items():
                say(f"loading {name}")
                workers[name] = Worker(options.ours if name == "mlxmtp" else options.peers, engine, folder, folder)
            samples, error = _measure(workers, pictures, options)
            peaks = {name: worker.ask("read", **_request(pictures, options, tokens=1))["answer"]["peak"]
                     for name, worker in workers.items()}  # fmt: skip
        finally:
            for worker in workers.values():
                worker.close()
    text = _report(samples, peaks, error, options)
    print(text)
    if options.json:
        options.json.write_text(json.dumps({"samples": samples, "peaks": peaks}) + "\n", encoding="utf-8")
    if options.write:
        write_section(options.write, "pictures", text, script="pictures.py", heading="Pictures")


def _write_model(options: Namespace, folder: Path) -> None:
    from scripts.benchmarks.harness.seeing import write

    write(options.tower, options.layers, folder)


def _picture(path: Path, seed: int) -> str:
    from PIL import Image

    from scripts.goldens.pictures import picture

    Image.fromarray(picture(_WIDTH, _HEIGHT, seed)).save(path)
    return str(path)


def _request(pictures: Sequence[str], options: Namespace, *, words: int = 0, tokens: int = ANSWER) -> dict[str, Any]:
    """A prompt with `pictures` in it, or so many `words` in the place of one."""
    from scripts.benchmarks.harness.seeing import IDS

    draw = random.Random(1)

    def text(count: int) -> list[int]:
        return [draw.randrange(10, 3900) for _ in range(count)]

    prompt = [2, *text(BEFORE)]
    for _ in pictures:
        prompt += [IDS["image_token_id"], *text(4)]
    if words:
        prompt += text(words + 2 + 4)  # the marks around a picture, too
    return {
        "prompt": prompt, "pictures": list(pictures), "budget": options.budget, "tokens": tokens,
        "after": text(AFTER) if tokens > 1 else [],
    }  # fmt: skip


def _measure(
    workers: dict[str, Worker], pictures: Sequence[str], options: Namespace
) -> tuple[dict[str, dict[str, list[float]]], float]:
    """Return seconds by what and engine, and the largest difference of soft tokens."""
    samples: dict[str, dict[str, list[float]]] = {what: {name: [] for name in workers} for what in WHAT}
    soft: dict[str, Any] = {}
    for repetition in range(-1, options.repetitions):
        names = list(workers) if repetition % 2 else list(reversed(workers))
        for name in names:
            ask = workers[name].ask
            encoded = ask("encode", picture=pictures[0], budget=options.budget)["answer"]
            soft[name] = encoded["soft"]
            seen = ask("read", **_request(pictures[:1], options))["answer"]
            read = ask("read", **_request([], options, words=len(soft[name])))["answer"]
            seconds = encoded["seconds"], seen["first"], read["first"], seen["second"], read["second"]
            say(f"{name}: " + ", ".join(f"{what} {one:.3f}" for what, one in zip(WHAT, seconds, strict=True)))
            if repetition >= 0:
                for what, one in zip(WHAT, seconds, strict=True):
                    samples[what][name].append(one)
    ours, theirs = (list(chain.from_iterable(soft[name])) for name in workers)
    largest = max(map(abs, theirs))
    return samples, max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) / largest


def _report(samples: dict[str, dict[str, list[float]]], peaks: dict[str, int], error: float, options: Namespace) -> str:
    layers = "" if options.layers is None else f", {options.layers} layers of it"
    lines = [
        f"One run of `scripts/benchmarks/pictures.py`, {datetime.now(UTC):%Y-%m-%d}, {machine()}. The tower of "
        f"{options.tower.upper()}{layers}, random weights, a small text network, float32 on the CPU; a picture of "
        f"{_WIDTH} x {_HEIGHT} at {options.budget} tokens; medians of {options.repetitions} in turn (lowest to "
        f"highest), seconds. Soft tokens differ by {error:.1e} of the largest"
        f"{'.' if error < _CLOSE else ': they are NOT the same.'}",
        "",
        "| | mlxmtp | mlx-vlm | times as long |",
        "|---|---:|---:|---:|",
    ]
    for what, title in WHAT.items():
        cells = [f"{median(one):.3f} ({min(one):.3f}-{max(one):.3f})" for one in samples[what].values()]
        ratio = median(a / b for a, b in zip(*samples[what].values(), strict=True))
        lines.append(f"| {title} | {' | '.join(cells)} | {ratio:.2f} |")
    ours, theirs = (peaks[name] / 1e9 for name in ENGINES)
    lines.append(f"| peak memory, {options.many} pictures, GB | {ours:.2f} | {theirs:.2f} | {ours / theirs:.2f} |")
    return "\n".join(lines)


def _arguments() -> Namespace:
    from scripts.benchmarks.harness.seeing import TOWERS

    parser = comparison(__doc__, ROOT)
    add = parser.add_argument
    add("--tower", choices=TOWERS, default="e2b")
    add("--layers", type=int, help="of the tower (default: all)")
    add("--budget", type=int, default=280, help="soft tokens of a picture")
    add("--many", type=int, default=20, help="pictures of the prompt whose memory is measured")
    add("-r", "--repetitions", type=int, default=5)
    add("--small", action="store_true", help="two layers, 70 tokens, four pictures, two repetitions")
    add("--json", type=Path, metavar="FILE", help="every figure")
    add("--write", type=Path, metavar="FILE.md", help="replace the section “Pictures” there")
    options = parser.parse_args()
    if options.small:
        options.layers, options.budget, options.many, options.repetitions = 2, 70, 4, 2
    return options


if __name__ == "__main__":
    main()
