"""Repositories for the test hub: the goldens as they are, and one with weights of a chosen size that nothing loads."""

from __future__ import annotations

import random

from tests.golden import FOLDER
from tests.hub.hub_server import Hub, folder_files


def publish_family(hub: Hub, family: str, name: str | None = None) -> str:
    """A golden pair as org/FAMILY and org/FAMILY-assistant, among files that nobody needs."""
    repo = name or f"org/{family}"
    litter = {"README.md": b"words", "onnx/model.onnx": bytes(30_000), "pytorch_model.bin": bytes(30_000)}
    hub.publish(repo, {**folder_files(FOLDER / family / "target"), **litter})
    hub.publish(f"{repo}-assistant", folder_files(FOLDER / family / "drafter"))
    return repo


def publish_large(hub: Hub, repo: str = "org/large", size: int = 400_000, seed: int = 0) -> bytes:
    """A target without a drafter whose weights are `size` random bytes; returns them."""
    weights = random.Random(seed).randbytes(size)
    files = folder_files(FOLDER / "e2b" / "target")
    hub.publish(repo, {**files, "model.safetensors": weights})
    return weights
