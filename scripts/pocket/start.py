"""Begin with a published model instead of drawn weights: its towers, target, drafter, centroids and tokenizer.

The tokenizer stays the published one, with today's special tokens at their ids. So every row of the embeddings, and the
wording of every answer that the network knows by heart, keeps its meaning. The files are copied into the work folder:
a run that was stopped goes on from the same ones, even when the model they came from has been replaced.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import safe_open

from scripts.pocket import conversation, corpus

if TYPE_CHECKING:
    from torch import nn

    from scripts.pocket.train import M

_FILES = ("target/model.safetensors", "target/tokenizer.json", "drafter/model.safetensors")
_PLACES = {
    "vision": ("target", "model."),
    "hearing": ("target", "model."),
    "target": ("target", "model.language_model."),
    "drafter": ("drafter", ""),
}
"""The file of each network, and what its names have before them there."""
_TOWERS = {"vision": "model.vision_tower.", "hearing": "model.audio_tower."}
_TASK_SHARE = 0.4
"""Share of tasks among the rows: the conversations are known already."""
_DRILL_SHARE = 0.75
"""Share of drills among the conversations: the answers are known by heart already."""
_NEW_SHARE = 4.0
"""How often a new subject is drawn for every other one."""


def folder(work: Path) -> Path:
    """Return where the work folder keeps the model that it began with."""
    return work / "start"


def begun(work: Path) -> bool:
    """Return whether the work folder began with a published model."""
    return folder(work).exists()


def generator(work: Path, seed: int, clips: int) -> conversation.Generator:
    """Return what draws the rows of a work folder; `clips` sounds have been synthesized there."""
    shares = (_TASK_SHARE, _NEW_SHARE, _DRILL_SHARE) if begun(work) else ()
    return conversation.Generator(corpus.load(work / "corpus"), seed, clips, *shares)


def keep(published: Path, work: Path) -> None:
    """Copy a published model into the work folder, unless one is there. Raises SystemExit with a reason."""
    if begun(work):
        return
    if (work / "tokenizer.json").exists():
        raise SystemExit(f"{work} was begun without --start: name another folder with --work")
    missing = [name for name in _FILES if not (published / name).is_file()]
    if missing:
        raise SystemExit(f"{published} has no {missing[0]}: --start takes a folder like assets/pocket")
    half = work / "start.tmp"
    shutil.rmtree(half, ignore_errors=True)
    for name in _FILES:
        (half / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(published / name, half / name)
    half.rename(folder(work))


def has(work: Path, part: str) -> bool:
    """Return whether the work folder began with a published network of that kind; 0.1 had no towers."""
    if not begun(work):
        return False
    with safe_open(folder(work) / _PLACES[part][0] / "model.safetensors", "np") as file:
        return any(name.startswith(_TOWERS.get(part, "")) for name in file.keys())  # noqa: SIM118  (no mapping)


def load(module: nn.Module, work: Path, part: str) -> None:
    """Give a network its published weights, buffers included."""
    from safetensors.torch import load_file  # torch is in the training environment alone

    place, prefix = _PLACES[part]
    tensors = load_file(folder(work) / place / "model.safetensors")
    module.load_state_dict({name: tensors[prefix + name] for name in module.state_dict()})


def trained(module: M, work: Path, part: str) -> M:
    """Return a network, frozen: as it was trained in the work folder, else as it was published."""
    from scripts.pocket.train import load_module

    if has(work, part) and not (work / f"{part}.pt").exists():
        load(module, work, part)
        module.requires_grad_(requires_grad=False)
        return module
    return load_module(module, work / f"{part}.pt")
