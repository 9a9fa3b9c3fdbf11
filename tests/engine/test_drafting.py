"""The controller's numbers in words."""

from types import SimpleNamespace
from typing import Any

import pytest

from mlxmtp.engine.drafting import explain


@pytest.mark.parametrize(
    ("limit", "fixed", "best", "gain", "words"),
    [
        (0, None, 0, None, "no drafter"),
        (8, 4, 2, 1.5, "drafting 4, as asked"),
        (8, 0, 2, 1.5, "not drafting, as asked"),
        (8, None, 2, None, "drafting 2 so far"),
        (8, None, 3, 1.617, "drafting 3 gives 1.62 times the plain speed"),
        (8, None, 0, 0.8, "drafting is off: here it would give 0.80 times the plain speed"),
    ],
)
def test_every_state_has_its_phrase(limit, fixed, best, gain, words):
    depth: Any = SimpleNamespace(limit=limit, fixed=fixed, best=lambda: best, gain=lambda: gain)
    assert explain(depth) == words
