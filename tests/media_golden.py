"""Golden targets that see and hear: text networks of `tests/goldens`, towers and records of `tests/goldens/media`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
from PIL import Image

from scripts.goldens.pictures import PICTURES
from tests.golden import FOLDER

FAMILIES = ("e2b", "12b", "26b", "31b")
BUDGET = 70
IMAGE, AUDIO = 122, 125


@dataclass(frozen=True, slots=True)
class MediaGolden:
    """A checkpoint folder, its drafter's, and what the reference computed from two pictures and some text."""

    family: str
    target: Path
    drafter: Path
    arrays: dict[str, mx.array]
    facts: dict[str, Any]

    def ids(self, name: str) -> list[int]:
        return cast("list[int]", self.arrays[name].tolist())


def build(family: str, dest: Path, *, window: int | None = None, record: str = "golden") -> MediaGolden:
    """Put text network and towers together in the folder ``dest``, by an index that leaves the stand-ins out.

    ``record``: "golden" of two pictures, "hearing" of two sounds and the first picture.
    """
    golden = FOLDER / "media" / family
    dest.mkdir()
    config = json.loads((golden / "config.json").read_text())
    if window is not None:
        config["text_config"]["sliding_window"] = window
    (dest / "config.json").write_text(json.dumps(config))
    (dest / "generation_config.json").write_bytes((golden / "generation_config.json").read_bytes())
    weight_map: dict[str, str] = {}
    files = [*sorted((FOLDER / family / "target").glob("*.safetensors")), *sorted(golden.glob("*towers.safetensors"))]
    for i, file in enumerate(files, 1):
        name = f"model-{i:05d}-of-{len(files):05d}.safetensors"
        (dest / name).symlink_to(file)
        stored = cast("dict[str, mx.array]", mx.load(str(file)))
        weight_map |= {one: name for one in stored if "language_model" in one or "towers" in file.stem}
    (dest / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    arrays = cast("dict[str, mx.array]", mx.load(str(golden / f"{record}.safetensors")))
    facts = json.loads((golden / f"{record}.json").read_text())
    return MediaGolden(family, dest, FOLDER / family / "drafter", arrays, facts)


def pictures() -> list[Image.Image]:
    return [Image.fromarray(one) for one in PICTURES]
