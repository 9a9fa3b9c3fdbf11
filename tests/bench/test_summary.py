"""From samples to summaries, words and comparisons."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mlxmtp.bench.compare import compare_reports
from mlxmtp.bench.samples import Case, Divergence, DrafterTiming, Sample
from mlxmtp.bench.summary import complete, summarize, verdict
from mlxmtp.errors import UsageError
from tests.bench.fake_harness import report, sample

TIE = Divergence(5, 1, 2, "a", "b", 1e-6, 1e-6)
CLEAR = Divergence(3, 1, 2, "a", "b", 2.0, 1e-6)


def run(gain: float, kinds: dict[str, float] | None = None, arms=(0, 3), repetitions=3, **more) -> list[Sample]:
    """Plain at 100 tok/s, drafting at `gain` times that (by kind where given), with 1 % between repetitions."""
    found = []
    for repetition in range(repetitions):
        for kind, factor in (kinds or {"code": gain}).items():
            for arm in arms:
                accepted = 0 if arm == 0 else 2
                speed = 100 * (1 if arm == 0 else factor) * (1 + repetition / 100)
                found.append(
                    sample(arm, repetition, kind=kind, accepted=accepted, seconds=(accepted + 1) / speed, **more)
                )
    return found


def words(samples: list[Sample], timings: tuple[DrafterTiming, ...] = ()) -> str:
    (case,) = summarize(samples, timings)
    return " ".join(verdict(case))


def test_speeds_pool_tokens_over_time_and_gains_pair_repetitions():
    slow, fast = sample(0, seconds=0.02, prompt="slow"), sample(0, seconds=0.005, prompt="fast", rounds=40)
    (case,) = summarize([slow, fast])
    assert case.rows[0].speed.generation_tps.median == pytest.approx(50 / (0.2 + 0.2))
    (case,) = summarize(run(2.5))
    row = case.row(3)
    assert row is not None
    assert row.speed.times_plain is not None
    assert (row.speed.times_plain.low, row.speed.times_plain.high) == pytest.approx((2.5, 2.5))
    assert row.speed.generation_tps.median == pytest.approx(252.5)
    assert row.speed.tokens_per_pass == 3
    assert row.speed.acceptance == pytest.approx(2 / 3)
    assert row.acceptance_by_position == (1, 1, 0)


def test_waits_are_between_rounds_and_prefill_is_apart():
    (case,) = summarize([sample(3, accepted=2, seconds=0.03), sample(0)])
    row = case.row(3)
    assert row is not None
    assert row.wait_seconds == pytest.approx({"p50": 0.03, "p95": 0.03, "p99": 0.03})
    assert row.prompt_tps.median == pytest.approx(100)
    assert (row.first_token_seconds.median, row.total_seconds.median) == pytest.approx((0.5, 0.8))


def test_what_an_interruption_left_half_done_does_not_count():
    whole = run(2, {"code": 2, "chat": 2}, repetitions=2)
    assert complete(whole) == whole
    assert complete(whole[:-1]) == whole[:4]  # the second repetition lacks a text
    assert complete(whole[:3]) == whole[:2]  # the first has one text in both ways
    assert complete(whole[:1]) == whole[:1]


@pytest.mark.parametrize(
    ("samples", "says"),
    [
        (run(2), "The drafter is worth it here: drafting 3 gives 202.0 tok/s against 101.0 plain, 2.00"),
        (run(0.8), "The drafter loses here: drafting 3 gives 80.8 tok/s against 101.0 plain, 0.80"),
        (run(0.8, arms=(0, 3, "auto")), "even drafting 3, the best of the lengths measured, gives"),
        (run(0.99, repetitions=1), "The drafter makes no difference here"),
        (run(1.01), "The drafter makes no difference here"),
        (run(2, repetitions=1), "no spread is known"),
        (run(1, {"code": 3, "chat": 1.5, "poem": 0.7}), "code 3.00, chat 1.50, poem 0.70. It loses on poem."),
        (run(2, arms=(0, 3, "auto")), "The automatic length reaches 100 % of the best fixed one (3 drafts)."),
        (run(2, arms=(0,)), "Only plain decoding was measured"),
        (run(2), "Every text is the same as plain (3 of 3)."),
        (
            run(2, divergence=TIE),
            "3 of 3 texts differ from plain, the first at token 5 ('b' for 'a', margin 1e-06); all at",
        ),
        ([replace(s, divergence=CLEAR) if s.num_draft_tokens else s for s in run(2)], "3 of them with a clear margin"),
    ],
)
def test_the_verdict_says_it_in_words(samples, says):
    found = words([replace(one, divergence=None) if one.num_draft_tokens == 0 else one for one in samples])
    assert says in found


def test_the_verdict_names_cost_best_length_and_limit():
    samples = run(2)
    found = words(samples, (DrafterTiming(Case("m", None), 3, (0.0149,) * 9, (0.0104,) * 9),))
    assert "A round costs 9.90 ms and 1.65 ms more for each draft token (1.50 drafter, 0.15 checking)" in found
    assert "with the acceptance seen here 2 drafts should be best" in found
    assert "What limits it most is" in found


def test_a_comparison_speaks_only_beyond_the_spread():
    before = report(run(2))
    same = compare_reports(before, report(run(2)), ("a", "b"))
    assert {line.verdict for line in same.lines} == {"same within spread"}
    assert same.verdict == ("2 of 2 are the same within their spread.",)
    faster = compare_reports(before, report(run(2.2)), ("a", "b"))
    decode = {line.num_draft_tokens: line.verdict for line in faster.lines if line.what == "decode"}
    assert decode == {0: "same within spread", 3: "faster"}
    assert faster.verdict[0] == "B is faster in 1 of 2 rows: m 3 drafts (+10.0%)."
    latency = next(line for line in faster.lines if line.what == "whole answer" and line.num_draft_tokens == 3)
    assert latency.verdict == "faster"
    assert latency.b_over_a < 1
    assert "B is slower" in compare_reports(report(run(2.2)), before, ("a", "b")).verdict[0]
    assert "nothing is certain" in compare_reports(report(run(2, repetitions=1)), before, ("a", "b")).verdict[0]


def test_a_comparison_warns_of_other_conditions_and_refuses_strangers():
    other = report(run(2), chip="M4", power_source="battery")
    other.settings = replace(other.settings, plan=replace(other.settings.plan, max_tokens=64))
    other.complete = False
    found = compare_reports(report(run(2), chip="M1", power_source="AC"), other, ("a", "b"))
    assert "Different new tokens: 31 in A, 64 in B." in found.warnings
    assert "Different chip: M1 in A, M4 in B." in found.warnings
    packed = report(run(2))
    packed.models = [replace(packed.models[0], drafter="d", drafter_quantization="4bit", kv_bits=8)]
    plain = replace(packed, models=[replace(packed.models[0], drafter_quantization="bf16", kv_bits=None)])
    assert compare_reports(packed, plain, ("a", "b")).warnings == (
        "m: different drafter quantization: 4bit in A, bf16 in B.",
        "m: different bits of keys and values: 8 in A, none in B.",
    )
    assert "B was interrupted, so it holds fewer samples than planned." in found.warnings
    with pytest.raises(UsageError, match="share no model"):
        compare_reports(report(run(2)), report(run(2, model="x")), ("a", "b"))


def test_a_comparison_names_other_seeds_and_image_budgets():
    other = report(run(2))
    other.settings = replace(other.settings, seed=7, image_tokens=70)
    assert compare_reports(report(run(2)), other, ("a", "b")).warnings == (
        "Different seed: 0 in A, 7 in B.",
        "Different image tokens: unknown in A, 70 in B.",
    )
