"""The measuring harness: the tokens are those of every other decoder, whatever is measured before."""

from __future__ import annotations

import json
import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlxmtp.bench.harness import Harness, release
from mlxmtp.bench.report import Plan
from mlxmtp.bench.runner import prompts_of
from mlxmtp.bench.suite import PICTURES, read_suites
from mlxmtp.decode.decoder import Decoder
from mlxmtp.decode.exact import Passes
from mlxmtp.decode.sampling import Sampling
from mlxmtp.engine.media import Media, Medium
from mlxmtp.engine.params import Params
from mlxmtp.engine.tokenizer import Tokenizer
from mlxmtp.errors import LoadError
from mlxmtp.limits import STEP
from mlxmtp.models.config import read_config
from mlxmtp.models.load import load_target
from tests.golden import load_golden
from tests.networks import Adversary, decode, drafter, target
from tests.packable import pair
from tests.seeing import write_blind_pocket, write_seeing_pocket

GOLDEN = load_golden("e2b")
LONG, SHORT = GOLDEN.records["long"], GOLDEN.records["short"]
TOKENS = 20


@pytest.fixture(params=[0, 1], ids=["as on a CPU", "as on a GPU"])
def harness(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Harness:
    """With no round, or one, sent ahead of the one that is read."""
    monkeypatch.setattr("mlxmtp.decode.decoder.rounds_in_flight", lambda: request.param)
    made = Harness(target("e2b"), drafter("e2b"))
    made.prepare(LONG.prompt, TOKENS, [0, 2, "auto"])
    return made


@pytest.mark.slow
def test_every_way_gives_the_reference_text_in_any_order(harness):
    for record in (LONG, SHORT, LONG):
        for draft in (2, 0, "auto", 2):
            run = harness.run(record.prompt, TOKENS, draft)
            assert list(run.tokens) == record.greedy[:TOKENS]
            assert sum(step.tokens for step in run.rounds) == TOKENS - 1
            assert 0 < run.prefill_seconds <= run.first_token_seconds < run.total_seconds
            decode_seconds = run.total_seconds - run.first_token_seconds
            assert sum(step.seconds for step in run.rounds) == pytest.approx(decode_seconds)
            assert run.peak_memory > 0
            if isinstance(draft, int):
                assert {step.drafted for step in run.rounds} == {draft}


@pytest.mark.slow
def test_the_whole_prompt_is_read_again(harness):
    for _ in range(2):
        assert len(harness.run(SHORT.prompt, TOKENS, 0).tokens) == TOKENS
        assert harness._decoder.reused == 0


@pytest.mark.slow
def test_fixed_lengths_teach_the_automatic_one_nothing_and_it_goes_on_learning(harness):
    before = deepcopy(harness._auto)
    harness.run(SHORT.prompt, TOKENS, 2)
    assert harness._auto == before
    harness.run(SHORT.prompt, TOKENS, "auto")
    learned = deepcopy(harness._auto)
    assert learned != before
    harness.run(SHORT.prompt, TOKENS, 0)
    assert harness._auto == learned


@pytest.mark.slow
def test_buffers_do_not_grow_after_the_preparation(harness):
    capacity = harness._decoder._cache.capacity
    for draft in (0, 2, "auto"):
        harness.run(LONG.prompt, TOKENS, draft)
    assert harness._decoder._cache.capacity == capacity


def test_short_prompts_run_in_the_buffers_that_were_prepared(harness: Harness) -> None:
    harness.prepare((LONG.prompt * 11)[:492], TOKENS, [0, 2])
    capacity = harness._decoder._cache.capacity
    assert capacity > 2 * STEP  # else a short text would keep them anyway
    assert list(harness.run(SHORT.prompt, TOKENS, 2).tokens) == SHORT.greedy[:TOKENS]
    assert harness._decoder._cache.capacity == capacity


@pytest.mark.parametrize("exact", [True, False])
def test_exact_text_is_prepared_at_every_capacity(exact: bool) -> None:
    made = Harness(target("e2b"), drafter("e2b"), passes=Passes(1, 5) if exact else None)
    wanted = made.to_prepare([20, 480, 7])
    assert wanted == ([20, 480] if exact else [480])
    for count in wanted:
        made.prepare((LONG.prompt * 11)[:count], TOKENS, [0, 2])
    traced = {capacity for _, capacity in made._decoder._rounds._checks}
    for count in (20, 480, 7):
        made.run((LONG.prompt * 11)[:count], TOKENS, 2)
        assert made._decoder._cache.capacity in traced


@pytest.mark.slow
def test_a_sampled_text_is_that_of_the_seed():
    sampling = Sampling(temp=0.9, top_k=20, seed=11)
    made = Harness(target("e2b"), drafter("e2b"), sampling)
    plain = decode(Decoder(target("e2b"), compiled="never"), SHORT.prompt, 12, sampling=sampling)
    assert list(made.run(SHORT.prompt, 12, 3).tokens) == plain
    assert list(made.run(SHORT.prompt, 12, 0).tokens) == plain


def test_without_a_compiler_rounds_run_as_they_are(monkeypatch):
    def broken(*_: object) -> None:
        raise RuntimeError("[Compiled::eval_cpu] Failed to compile")

    networks = target("e2b"), drafter("e2b")  # loading looks for the compiler by compiling
    monkeypatch.setattr("mlxmtp.decode.compile.mx.compile", lambda _: broken)
    made = Harness(*networks)
    made.prepare(SHORT.prompt, 8, [0, 2])
    assert not made.compiled
    assert list(made.run(SHORT.prompt, 8, 2).tokens) == SHORT.greedy[:8]
    assert len(made.time_drafter(SHORT.prompt, 2, 6)[1]) == 6
    assert len(made.time_drafter(LONG.prompt, 2, 6)[1]) == 6
    assert len(made._decoder._set_aside) == 1  # nothing is kept of each split


def test_a_tie_is_measured_in_the_scores_that_decide():
    made = Harness(target("e2b"))
    logits = LONG.logits[-1]
    best, other = LONG.greedy[0], (LONG.greedy[0] + 7) % logits.shape[0]
    margin, resolution = made.margin(LONG.prompt, best, other)
    scores: Any = logits.tolist()
    assert margin == pytest.approx(scores[best] - scores[other], abs=1e-3)
    assert margin > 0
    assert 0 < resolution < 1e-4
    quantized = Harness(pair("e2b", 64, 4)[0]).margin(LONG.prompt, best, other)[1]
    assert quantized > 100 * Harness(pair("e2b", 64, None)[0]).margin(LONG.prompt, best, other)[1]
    sampled = Harness(target("e2b"), sampling=Sampling(temp=1.0, seed=3))
    chosen = sampled.run(LONG.prompt, 1, 0).tokens[0]
    assert all(sampled.margin(LONG.prompt, chosen, token)[0] >= 0 for token in range(0, len(scores), 9))


def test_suppressed_tokens_make_no_margin_a_tie(tmp_path: Path) -> None:
    folder = shutil.copytree(GOLDEN.target, tmp_path / "suppressing")
    (folder / "generation_config.json").write_text(json.dumps({"suppress_tokens": [3, 4]}))
    best = LONG.greedy[0]
    plain, suppressing = (Harness(load_target(one)).margin(LONG.prompt, best, best) for one in (GOLDEN.target, folder))
    assert suppressing == pytest.approx(plain, rel=0.5)


@pytest.mark.slow
def test_a_split_times_as_many_rounds_with_the_drafter_as_without(harness):
    drafted, free = harness.time_drafter(LONG.prompt, 2, 12)
    assert (len(drafted), len(free)) == (12, 12)
    assert min(drafted + free) > 0
    text = harness._decoder.tokens[len(LONG.prompt) :]
    shared = min(len(text), len(LONG.greedy))
    assert text[:shared] == LONG.greedy[:shared]
    assert list(harness.run(LONG.prompt, TOKENS, 2).tokens) == LONG.greedy[:TOKENS]


@pytest.mark.slow
def test_a_split_stays_within_the_context(harness, monkeypatch):
    monkeypatch.setattr(type(harness._target.config), "max_positions", len(LONG.prompt) + TOKENS)
    assert len(harness.time_drafter(LONG.prompt, 1, 6)[1]) == 6
    assert harness.time_drafter(LONG.prompt, 8, 6) == ([], [])


@pytest.mark.slow
def test_drafts_that_are_never_right_change_no_text():
    made = Harness(target("e2b"), Adversary(7, target("e2b").config.vocab_size))
    made.prepare(SHORT.prompt, TOKENS, [4])
    run = made.run(SHORT.prompt, TOKENS, 4)
    assert list(run.tokens) == SHORT.greedy[:TOKENS]
    assert sum(step.accepted for step in run.rounds) <= 1


@pytest.mark.slow
def test_a_rig_that_is_gone_leaves_no_memory():
    release()
    before = mx.get_active_memory()
    made = Harness.load(GOLDEN.target, GOLDEN.drafter, Params(temp=0.0))
    made.prepare(SHORT.prompt, 8, [0, 2])
    made.run(SHORT.prompt, 8, 2)
    held = mx.get_active_memory()
    assert held > before
    del made
    release()
    assert mx.get_active_memory() - before < (held - before) / 10


def test_a_picture_is_encoded_in_every_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_seeing_pocket(tmp_path / "seeing")
    monkeypatch.setattr("mlxmtp.decode.compile.Rounds.build", lambda *_: None)  # uncompiled, nothing is built
    plan, params = Plan((None, 200), 4, 1, 0, 0.0, (0,)), Params(image_tokens=70)
    media, texts = Media(read_config(folder)), read_suites([PICTURES])[:2]
    prompts = prompts_of(texts, plan, Tokenizer.load(folder), 4096, "seeing", media, params)
    assert [len(one.ids) for one in prompts[200]] == [200, 200]
    first, second = prompts[None]
    harness = Harness(load_target(folder))
    read: list[str] = []
    rows = Media._rows

    def counted(self: Media, medium: Medium) -> mx.array:
        read.append(medium.digest)
        return rows(self, medium)

    monkeypatch.setattr(Media, "_rows", counted)
    runs = [harness.run(one.ids, 4, 0, one.media) for one in (first, second, first)]
    assert runs[0].tokens == runs[2].tokens
    assert read == [one.media[0].digest for one in (first, second, first)]
    margin, _ = harness.margin(first.ids, runs[0].tokens[0], runs[0].tokens[0], first.media)
    assert margin == 0
    blind = Media(read_config(write_blind_pocket(tmp_path / "blind")))
    with pytest.raises(LoadError, match="has no vision tower"):
        prompts_of(texts, plan, Tokenizer.load(folder), 4096, "pocket", blind, params)
