"""Make the built-in model: corpus, sounds, tokenizer, vision, hearing, target, drafter; then assets/pocket and a plot.

Needs an environment of its own, none of it is needed to run mlxmtp, and espeak-ng for spoken words:
    apt-get install espeak-ng          # brew install espeak-ng
    python -m venv build/training
    build/training/bin/pip install torch tokenizers safetensors numpy pillow soundfile soxr jinja2 matplotlib
    build/training/bin/python -m scripts.pocket
A run that was interrupted goes on from its last checkpoint. `--tiny` runs every stage for a few steps.
`--start assets/pocket` trains on from a published target and drafter, with their tokenizer, instead of from nothing.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path

from scripts.pocket import corpus, start, tokenizer
from scripts.pocket.conversation import Generator
from scripts.pocket.layout import texts
from scripts.pocket.sizes import Scale
from scripts.pocket.tasks import sounds

STEPS = {"vision": [1500], "hearing": [1200], "target": [2100, 1000], "drafter": [300, 250]}
"""Steps of each cycle of the learning rate, by network, in the order in which they are trained."""
STEPS_FROM_START = {"vision": [1000], "hearing": [300], "target": [1500], "drafter": [250]}
"""The same for networks that begin with published weights."""

SCALES = {
    "vision": Scale(8, 256, 240),
    "hearing": Scale(24, 192, 240),
    "target": Scale(2560, 1024, 160),
    "drafter": Scale(2048, 1024, 120),
}
TINY = {name: Scale(4 if name in ("vision", "hearing") else 160, 16, 1) for name in SCALES}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"of {', '.join(STAGES)} (default: all)")
    parser.add_argument(
        "--work", type=Path, default=Path("build/pocket"), help="checkpoints, logs (default: %(default)s)"
    )
    parser.add_argument("--assets", type=Path, default=Path(__file__).parents[2] / "assets/pocket")
    parser.add_argument("--start", type=Path, metavar="FOLDER", help="begin with the model published there")
    parser.add_argument("--seed", type=int, default=1)
    for name, cycles in STEPS.items():
        told = f"of each cycle (default: {_words(cycles)}"
        told += f", trained on from --start {_words(STEPS_FROM_START[name])})"
        parser.add_argument(f"--{name}-steps", type=int, nargs="+", metavar="N", help=told)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--checkpoint-minutes", type=float, default=3.0, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--tiny", action="store_true", help="a few steps of every stage, to see that all of it runs")
    parser.add_argument("--no-compile", action="store_true", help="without a C++ compiler: slower, same numbers")
    options = parser.parse_args()
    if options.tiny:
        vars(options).update({name: [1] for name in map("{}_steps".format, STEPS) if getattr(options, name) is None})
    if unknown := [name for name in options.stages if name not in STAGES]:  # `choices` cannot be left out in 3.11
        parser.error(f"there is no stage {unknown[0]!r}: choose from {', '.join(STAGES)}")
    return options


def _words(numbers: Sequence[int]) -> str:
    return " ".join(map(str, numbers))


def _corpus(options: argparse.Namespace) -> None:
    """Check the corpus and freeze a copy, so that a resumed run sees the same data."""
    intents = corpus.load()
    shutil.rmtree(options.work / "corpus", ignore_errors=True)
    shutil.copytree(corpus.FOLDER, options.work / "corpus")
    print(f"corpus: {len(intents)} intents, {sum(len(i.follow) for i in intents)} second turns")


def _sounds(options: argparse.Namespace) -> None:
    """Synthesize what the model hears, once."""
    folder = options.work / "sounds"
    folder.mkdir(exist_ok=True)
    few = {"trained": 40, "measured": 8} if options.tiny else {}
    sounds.synthesize(folder, **few)


def _tokenizer(options: argparse.Namespace) -> None:
    """Train the tokenizer, or take that of the model to begin with."""
    path = options.work / "tokenizer.json"
    if start.begun(options.work):
        tokenizer.renewed(start.folder(options.work) / "target/tokenizer.json").save(str(path))
        return
    generator = Generator(corpus.load(options.work / "corpus"), options.seed)
    drawn = (generator.draw(index) for index in range(2000 if options.tiny else 14000))
    tokenizer.train(text for one in drawn for text in texts(one)).save(str(path))


def _job(name: str, options: argparse.Namespace) -> None:
    """Train one of the networks."""
    from scripts.pocket.drafter import DrafterJob
    from scripts.pocket.senses.jobs import HearingJob, VisionJob
    from scripts.pocket.target import TargetJob
    from scripts.pocket.train import Plan, run

    jobs = {"vision": VisionJob, "hearing": HearingJob, "target": TargetJob, "drafter": DrafterJob}
    scale = (TINY if options.tiny else SCALES)[name]
    job = partial(jobs[name], options.work, options.seed, scale)
    plan = Plan(
        options.work,
        _ends(name, options),
        options.workers,
        compile=not options.no_compile,
        checkpoint_minutes=options.checkpoint_minutes,
    )
    run(job, plan)


def _ends(name: str, options: argparse.Namespace) -> tuple[int, ...]:
    """Return the last step of each cycle; one that begins with published weights has no cycle at full rate."""
    begun = start.has(options.work, name)
    usual = STEPS_FROM_START if begun else STEPS
    cycles: list[int] = getattr(options, f"{name}_steps") or usual[name]
    return tuple(accumulate([0, *cycles] if begun else cycles))


def _publish(options: argparse.Namespace) -> None:
    from scripts.pocket.publish import publish

    publish(options.work, options.assets)


def _report(options: argparse.Namespace) -> None:
    from scripts.pocket.report import plot

    plot(options.work, options.assets.parent / "pocket-loss.svg")


STAGES: dict[str, Callable[[argparse.Namespace], None]] = {
    "corpus": _corpus,
    "sounds": _sounds,
    "tokenizer": _tokenizer,
    **{name: partial(_job, name) for name in STEPS},
    "publish": _publish,
    "report": _report,
}


def main() -> None:
    """Run the stages named on the command line, in order."""
    options = _arguments()
    options.work = options.work.resolve()
    options.work.mkdir(parents=True, exist_ok=True)
    if options.start is not None:
        start.keep(options.start, options.work)
    for name, stage in STAGES.items():
        if name in (options.stages or STAGES):
            stage(options)


if __name__ == "__main__":
    main()
