"""Make the built-in model: corpus -> tokenizer -> target -> drafter -> assets/pocket -> plot of the losses.

Needs an environment of its own, none of it is needed to run mlxmtp:
    python -m venv build/training && build/training/bin/pip install torch tokenizers safetensors numpy matplotlib
    build/training/bin/python -m scripts.pocket
A run that was interrupted goes on from its last checkpoint: give it the stages it has not finished.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

from scripts.pocket import corpus, tokenizer
from scripts.pocket.conversation import Generator


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"of {', '.join(STAGES)} (default: all)")
    parser.add_argument(
        "--work", type=Path, default=Path("build/pocket"), help="checkpoints, logs (default: %(default)s)"
    )
    parser.add_argument("--assets", type=Path, default=Path(__file__).parents[2] / "assets/pocket")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--target-steps", type=int, nargs="+", default=[2400, 1300], help="of each cycle (default: 2400 1300)"
    )
    parser.add_argument("--drafter-steps", type=int, nargs="+", default=[300, 250], help="default: 300 250")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--no-compile", action="store_true", help="without a C++ compiler: slower, same numbers")
    options = parser.parse_args()
    if unknown := [name for name in options.stages if name not in STAGES]:  # `choices` cannot be left out in 3.11
        parser.error(f"there is no stage {unknown[0]!r}: choose from {', '.join(STAGES)}")
    return options


def _corpus(options: argparse.Namespace) -> None:
    """Check the corpus and freeze a copy, so that a resumed run sees the same data."""
    intents = corpus.load()
    shutil.rmtree(options.work / "corpus", ignore_errors=True)
    shutil.copytree(corpus.FOLDER, options.work / "corpus")
    print(f"corpus: {len(intents)} intents, {sum(len(i.follow) for i in intents)} second turns")


def _tokenizer(options: argparse.Namespace) -> None:
    generator = Generator(corpus.load(options.work / "corpus"), options.seed)
    texts = (
        text
        for index in range(12000)
        for turn in generator.draw(index).turns
        for text in (turn.question, turn.answer, turn.thought)
    )
    tokenizer.train(texts).save(str(options.work / "tokenizer.json"))


def _target(options: argparse.Namespace) -> None:
    from scripts.pocket.target import TargetJob

    _train(options, options.target_steps, partial(TargetJob, options.work, options.seed))


def _drafter(options: argparse.Namespace) -> None:
    from scripts.pocket.drafter import DrafterJob

    _train(options, options.drafter_steps, partial(DrafterJob, options.work, options.seed))


def _train(options: argparse.Namespace, cycles: Sequence[int], job: Callable[..., Any]) -> None:
    from scripts.pocket.train import Plan, run

    run(job, Plan(options.work, tuple(accumulate(cycles)), options.workers, compile=not options.no_compile))


def _publish(options: argparse.Namespace) -> None:
    from scripts.pocket.publish import publish

    publish(options.work, options.assets)


def _report(options: argparse.Namespace) -> None:
    from scripts.pocket.report import plot

    plot(options.work, options.assets.parent / "pocket-loss.svg")


STAGES = {
    "corpus": _corpus,
    "tokenizer": _tokenizer,
    "target": _target,
    "drafter": _drafter,
    "publish": _publish,
    "report": _report,
}


def main() -> None:
    """Run the stages named on the command line, in order."""
    options = _arguments()
    options.work = options.work.resolve()
    options.work.mkdir(parents=True, exist_ok=True)
    for name, stage in STAGES.items():
        if name in (options.stages or STAGES):
            stage(options)


if __name__ == "__main__":
    main()
