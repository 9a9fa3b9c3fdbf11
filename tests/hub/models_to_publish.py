"""Repositories for the test hub: the goldens as they are, and one with weights of a chosen size that nothing loads."""

from __future__ import annotations

import json
import random
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.golden import FOLDER
from tests.hub.hub_server import Hub, folder_files
from tests.text_checkpoint import write_text_checkpoint


def publish_family(hub: Hub, family: str, name: str | None = None) -> str:
    """A golden pair as org/FAMILY and org/FAMILY-assistant, among files that nobody needs."""
    repo = name or f"org/{family}"
    litter = {"README.md": b"words", "onnx/model.onnx": bytes(30_000), "pytorch_model.bin": bytes(30_000)}
    hub.publish(repo, {**target_files(family), **litter})
    hub.publish(f"{repo}-assistant", folder_files(FOLDER / family / "drafter"))
    return repo


def target_files(family: str) -> dict[str, bytes]:
    """A golden target with a tokenizer and a chat template, without which nothing is pulled."""
    return {**folder_files(FOLDER / family / "target"), **text_side()}


def publish_large(hub: Hub, repo: str = "org/large", size: int = 400_000, seed: int = 0) -> bytes:
    """A target without a drafter whose weights have `size` bytes, most of them random; returns them."""
    files = folder_files(FOLDER / "e2b" / "target")
    whole = files["model.safetensors"]
    start = 8 + int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8:start])
    end, name = len(whole) - start, "model.vision_tower.filler.weight"
    header[name] = {"dtype": "U8", "shape": [size], "data_offsets": [end, end + size]}
    room = len(json.dumps(header)) + 8
    filler = size - 8 - room - end
    header[name] = {"dtype": "U8", "shape": [filler], "data_offsets": [end, end + filler]}
    text = json.dumps(header).encode().ljust(room)
    weights = len(text).to_bytes(8, "little") + text + whole[start:] + random.Random(seed).randbytes(filler)
    assert len(weights) == size
    hub.publish(repo, {**files, **text_side(), "model.safetensors": weights})
    return weights


@cache
def _text_files() -> tuple[tuple[str, bytes], ...]:
    with TemporaryDirectory() as folder:
        files = folder_files(write_text_checkpoint(Path(folder)))
    return tuple((name, files[name]) for name in ("tokenizer.json", "chat_template.jinja"))


def text_side() -> dict[str, bytes]:
    """A tokenizer and a chat template."""
    return dict(_text_files())
