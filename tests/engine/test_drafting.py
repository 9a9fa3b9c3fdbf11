"""The controller's numbers in words."""

from types import SimpleNamespace
from typing import Any

import pytest

from mlxmtp.decode.compile import BatchRounds
from mlxmtp.decode.draft_length import DraftLength
from mlxmtp.decode.lane import Lane
from mlxmtp.engine.stats import explain
from mlxmtp.limits import EXACT_DRAFT
from tests.networks import drafter, target


@pytest.mark.parametrize(
    ("limit", "fixed", "best", "gain", "words"),
    [
        (0, None, 0, None, "no drafter"),
        (8, 4, 2, 1.5, "drafting 4, as asked"),
        (8, 0, 2, 1.5, "not drafting, as asked"),
        (8, None, 2, None, "drafting 2 so far"),
        (8, None, 3, 1.617, "drafting 3 gives 1.62 times the plain speed"),
        (8, None, 0, 0.8, "drafting is off, at best it would give 0.80 times the plain speed"),
    ],
)
def test_every_state_has_its_phrase(limit, fixed, best, gain, words):
    depth: Any = SimpleNamespace(
        limit=limit,
        fixed=fixed,
        copying=None,
        best=lambda: best,
        gain=lambda: gain,
        accepted=lambda: None,
        price=lambda: None,
    )
    assert explain(depth) == words
    depth.accepted = lambda: 0.823
    known = f"{words} (82 % of first drafts accepted)"
    assert explain(depth) == (known if limit and fixed is None else words)


def test_a_controller_says_what_it_has_seen():
    depth = DraftLength()
    assert explain(depth) == "drafting 3 so far"
    for _ in range(40):
        for k in (0, 2):
            depth.observe(k, min(k, 1), 0.01 * (1 + 0.25 * k))
    said = explain(depth)
    assert said.startswith("drafting 1 gives 1.")
    assert "% of first drafts accepted" in said
    assert said.endswith("a draft token costs 0.25 of a plain pass)")


@pytest.mark.parametrize(
    ("depth", "words"),
    [
        (Lane(BatchRounds(target("e2b"), drafter("e2b"), "never"))._depth(2), "drafting 3, the most in shared rounds"),
        (DraftLength(limit=EXACT_DRAFT), "drafting 4, the most in exact text"),
    ],
)
def test_more_drafts_than_there_can_be_are_said_to_be_fewer_and_why(depth, words):
    depth.fixed = 5
    assert explain(depth) == words
