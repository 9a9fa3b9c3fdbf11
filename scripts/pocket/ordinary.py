"""Make a pair of middling acceptance: the built-in one trained on ordinary text, for benchmarks of drafting.

    build/training/bin/python -m scripts.pocket.ordinary build/ordinary [--texts FOLDER] [--ending .py]

Its answers go on with a file whose beginning it is given. What it was trained on is by default Python's own library
(license of the Python Software Foundation), which every machine has; nothing of it is shipped. One file in sixteen is
kept out: their beginnings are the `prompts.json` beside the pair. On two cores it takes about ten minutes and goes on
where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import sysconfig
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from scripts.pocket import start, tokenizer
from scripts.pocket.batches import Conversations
from scripts.pocket.drafter import DrafterJob
from scripts.pocket.publish import publish
from scripts.pocket.sizes import Scale
from scripts.pocket.target import TargetJob
from scripts.pocket.tasks.task import Ask, Say, Task
from scripts.pocket.train import Plan, run

if TYPE_CHECKING:
    from torch import Tensor

    from scripts.pocket.tasks.task import Medium

ROOT = Path(__file__).resolve().parents[2]
SCALE = Scale(1536, 128, 24)
STEPS = {"target": 400, "drafter": 250}
_BEFORE, _AFTER = 400, 1000  # characters that are given, and that are learned
_KEPT_OUT = 16
_LEFT_OUT = frozenset({"test", "tests", "site-packages"})
_PROMPTS = 24


@dataclass(frozen=True, slots=True)
class Files:
    """Draws pieces of files: what stands before a place, and what follows there."""

    trained: list[str]
    kept_out: list[str]
    seed: int
    subjects: tuple[str, ...] = ("text",)

    @classmethod
    def of(cls, folder: Path, ending: str, seed: int) -> Files:
        """Read the files of a folder that are long enough."""
        paths = (path for path in sorted(folder.rglob(f"*{ending}")) if not _LEFT_OUT.intersection(path.parts))
        found = [path.read_text(encoding="utf-8", errors="replace") for path in paths]
        long = [text for text in found if len(text) > 2 * (_BEFORE + _AFTER)]
        kept_out = long[::_KEPT_OUT]
        return cls([text for text in long if text not in kept_out], kept_out, seed)

    def draw(self, index: int, *, held_out: bool = False) -> Task:
        """Return a piece as a task: the same for the same index."""
        draw = Random(f"{self.seed}/{index}/{held_out}")
        text = draw.choice(self.kept_out if held_out else self.trained)
        place = draw.randrange(_BEFORE, len(text) - _AFTER)
        return Task((Ask(text[place - _BEFORE : place]), Say(text[place : place + _AFTER])))

    def prompts(self) -> list[str]:
        """Return beginnings of pieces from files that were kept out."""
        steps = [self.draw(index, held_out=True).steps[0] for index in range(1000, 1000 + _PROMPTS)]
        return [step.text for step in steps if isinstance(step, Ask)]


class NoSenses:
    """Text has neither pictures nor sounds."""

    def count(self, medium: Medium) -> int:
        """Raise: there is none."""
        raise NotImplementedError(medium.kind)

    def soft(self, medium: Medium) -> Tensor:
        """Raise: there is none."""
        raise NotImplementedError(medium.kind)


def data(texts: Path, ending: str, folder: Path, seed: int, scale: Scale) -> Conversations:
    """Return what the jobs of a training folder learn."""
    return Conversations(Files.of(texts, ending, seed), tokenizer.load(folder / "tokenizer.json"), NoSenses(), scale)


def main() -> None:
    """Train target and drafter, and write the pair."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="checkpoints, and the pair at the end")
    parser.add_argument("--texts", type=Path, default=Path(sysconfig.get_paths()["stdlib"]), metavar="FOLDER")
    parser.add_argument("--ending", default=".py", help="of the files in it (default: .py)")
    parser.add_argument("--target-steps", type=int, default=STEPS["target"])
    parser.add_argument("--drafter-steps", type=int, default=STEPS["drafter"])
    options = parser.parse_args()
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    start.keep(ROOT / "assets/pocket", work)
    tokenizer.renewed(start.folder(work) / "target/tokenizer.json").save(str(work / "tokenizer.json"))
    make = partial(data, options.texts, options.ending)
    run(partial(TargetJob, work, 1, SCALE, make), Plan(work, (0, options.target_steps)))
    run(partial(DrafterJob, work, 1, SCALE, make), Plan(work, (0, options.drafter_steps)))
    publish(work, work / "pair")
    prompts = Files.of(options.texts, options.ending, 1).prompts()
    (work / "pair/prompts.json").write_text(json.dumps(prompts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
