"""Runs that are held to a form: one document at every draft length, and its end is the end of the run."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlxmtp.bench.harness import Harness
from mlxmtp.engine.constraint import Constraint
from mlxmtp.engine.params import Params
from mlxmtp.engine.tokenizer import Tokenizer

POCKET = Path(__file__).parents[2] / "assets" / "pocket"

pytestmark = pytest.mark.skipif(
    not (POCKET / "drafter" / "model.safetensors").is_file(), reason="the built-in model has not been trained"
)


def test_a_run_ends_with_its_document() -> None:
    tokenizer = Tokenizer.load(POCKET / "target")
    params = Params(temp=0.0, constraint=Constraint("regex", "(yes|no), a drafter"))
    harness = Harness.load(POCKET / "target", POCKET / "drafter", params, tokenizer=tokenizer)
    prompt = tokenizer.prompt_ids([{"role": "user", "content": "What is speculative decoding?"}])
    texts = set()
    for length in (0, 3):
        *said, end = harness.run(prompt, 80, length).tokens
        assert end in tokenizer.end_ids
        texts.add(b"".join(map(tokenizer.token_bytes, said)).rpartition(b"<channel|>")[2])  # behind a thought
    assert texts <= {b"yes, a drafter", b"no, a drafter"}
    assert len(texts) == 1
