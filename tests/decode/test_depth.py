"""The draft length's controller on recorded and drawn texts and simulated machines (no clock is read).

Texts, machines and the noise of clocks are those of `scripts/benchmarks/simulate_depth.py`: its table shows more.
"""

import json
import math
import random
from collections.abc import Sequence
from typing import Any

import pytest

from mlxmtp.decode import draft_length
from mlxmtp.decode.acceptance import Acceptance
from mlxmtp.decode.draft_length import LENGTHS, DraftLength
from mlxmtp.limits import MAX_DRAFT
from scripts.benchmarks.simulation.material import (
    TRACE,
    Profile,
    Suite,
    chip_costs,
    chips,
    drawn,
    first_answers,
    ordinary,
    profiles,
    suites,
)
from scripts.benchmarks.simulation.replay import Fixed, Noise, best_fixed, play

PROFILES = profiles()
SUITES = suites()
HERE = Profile("two cores", [1 + 0.2 * k for k in range(9)], 0, "about what was measured when this was written")
EASY, HARD = [8] * 400, [0] * 400


def regret(
    texts: Sequence[Suite], profile: Profile, seeds: Sequence[int] = (0, 1), learned: dict[str, object] | None = None
) -> float:
    """Time above that of the best fixed lengths known afterwards, over all texts together, as a share."""
    spent = least = 0.0
    for text in texts:
        for seed in seeds:
            depth = DraftLength()
            depth.start_from(learned) if learned else None
            spent += play(depth, text.accepted, profile.costs, Noise(), seed, profile.ahead).per_token
            least += best_fixed(text.accepted, profile.costs)[1]
    return spent / least - 1


@pytest.mark.parametrize("profile", PROFILES, ids=lambda profile: profile.name)
def test_text_that_turns_in_mid_answer_costs_3_percent_at_most(profile):
    assert regret([suite for suite in SUITES if suite.switches], profile) < 0.03


@pytest.mark.parametrize("profile", PROFILES, ids=lambda profile: profile.name)
def test_hopeless_text_costs_2_percent_of_plain_at_most(profile):
    hopeless = Suite("hopeless", [0] * 1000, False)
    assert best_fixed(hopeless.accepted, profile.costs) == (0, 1.0)
    assert regret([hopeless], profile) < 0.02


@pytest.mark.parametrize("profile", PROFILES, ids=lambda profile: profile.name)
def test_luck_in_hard_text_is_not_followed(profile):
    """One draft in four is accepted, here and there two or three: never 3 % slower than plain."""
    for chance in (0.15, 0.28):
        for seed in (1, 2):
            text = drawn(chance, 800, seed)
            plain = play(Fixed(0), text, profile.costs, Noise(), 0).per_token
            auto = play(DraftLength(), text, profile.costs, Noise(), seed, profile.ahead).per_token
            assert auto < 1.03 * plain, (chance, seed)


@pytest.mark.parametrize("chance", [0.5, 0.8, 0.95])
def test_steady_text_comes_close_to_its_best_length(chance):
    """3 % behind it on average over the machines, 9 at most, where several lengths are about as good."""
    text = Suite("drawn", drawn(chance, 1500), False)
    found = [regret([text], profile) for profile in PROFILES]
    assert sum(found) / len(found) < 0.03, found
    assert max(found) < 0.09, found


def test_a_pause_in_the_first_round_that_is_timed_is_forgotten():
    """One length was timed only then; that the next ones are faster says nothing of their proportions."""
    depth = DraftLength()
    depth.observe(5, 5, 0.06)
    for _ in range(8):
        depth.observe(4, 4, 0.0225)
    assert depth._times.cost(5) / depth._times.cost(4) < 1.25


def test_what_was_learned_can_be_asked_for_while_a_text_grows(monkeypatch):
    """As `serve` does once a minute, from another thread than that of the rounds."""
    depth = DraftLength()
    for rows in (100, 3000):
        depth.attend_to(rows)
        play(depth, EASY, HERE.costs, Noise(), 1)
    write = draft_length._written

    def written(costs):
        depth.attend_to(10 * depth._rows)
        return write(costs)

    monkeypatch.setattr(draft_length, "_written", written)
    assert "3" in depth.learned()["elsewhere"]


def test_what_was_learned_makes_the_next_start_better():
    """A short first answer where answers are easy: fewer rounds are spent on finding that out, and what rounds cost."""
    short = [Suite("short", EASY[:120], False)]
    first_start = second_start = 0.0
    for profile in PROFILES:
        first = DraftLength()
        for seed in range(4):
            first.begin()
            play(first, drawn(0.95, 150, seed), profile.costs, Noise(), seed, profile.ahead)
        first_start += regret(short, profile)
        second_start += regret(short, profile, learned=json.loads(json.dumps(first.learned())))
    assert second_start < 0.8 * first_start


@pytest.mark.parametrize("profile", PROFILES[:5], ids=lambda profile: profile.name)
def test_it_stops_drafting_within_30_tokens(profile):
    history = play(DraftLength(), EASY + HARD, profile.costs, Noise(), 1, profile.ahead).rounds
    parked = next(token for token, k in history if token >= 400 and k == 0)
    assert parked < 430


@pytest.mark.parametrize("profile", PROFILES[:5], ids=lambda profile: profile.name)
def test_it_drafts_again_within_about_30_tokens(profile):
    waits = []
    for begin in range(200, 240, 5):  # the probe comes sooner or later by where it stood
        text = [*EASY[:100], *HARD[:begin], *EASY]
        history = play(DraftLength(), text, profile.costs, Noise(), begin, profile.ahead).rounds
        waits.append(next(token for token, k in history if token >= 100 + begin and k >= 2) - 100 - begin)
    assert sum(waits) / len(waits) <= 30
    assert max(waits) <= 60


@pytest.mark.parametrize("profile", [PROFILES[0], PROFILES[2]], ids=lambda profile: profile.name)
def test_a_short_first_answer_is_near_the_best_fixed_length_although_lengths_cost_a_trace(profile):
    """Each in a process of its own, the first round of a length twice as long: 10 % at most, 7 on all three kinds."""
    shares = []
    for chance, tokens in ((0.5, 64), (0.7, 64), (0.8, 128)):
        spent, least = 0.0, {0: 0.0, 3: 0.0, 8: 0.0}
        for seed in range(10):
            text = drawn(chance, tokens, seed)
            spent += play(DraftLength(), text, profile.costs, Noise(), seed, profile.ahead, 1.0).spent
            for k in least:
                least[k] += play(Fixed(k), text, profile.costs, Noise(), seed, profile.ahead, 1.0).spent
        shares.append(spent / min(least.values()))
    assert max(shares) < 1.10, shares
    assert sum(shares) / len(shares) < 1.07, shares


def test_first_answers_as_recorded_are_near_the_best_fixed_length():
    """One answer a process, after some others: within 5 % of the best of 0, 3 and 8 on average; 14 at most, on those
    that begin hard and turn easy, where another length is traced for a few rounds."""
    texts = [suite.accepted for suite in first_answers()]
    costs, learned, spent = PROFILES[0].costs, None, []
    for turn in range(4):
        for at, text in enumerate(texts):
            depth = DraftLength()
            depth.start_from(learned) if learned else None
            depth.begin()
            seed = 10 * turn + at
            took = play(depth, text, costs, Noise(), seed, trace=TRACE).spent
            least = min(play(Fixed(k), text, costs, Noise(), seed, trace=TRACE).spent for k in (0, 3, 8))
            learned = json.loads(json.dumps(depth.learned()))
            spent += [took / least] if turn else []
    by_text = [sum(spent[at :: len(texts)]) * len(texts) / len(spent) for at in range(len(texts))]
    assert max(by_text) < 1.14, by_text
    assert sum(by_text) < 1.05 * len(by_text), by_text


def test_first_answers_of_ordinary_text_beat_every_fixed_length():
    """A pair that nothing is known of, each answer in a process of its own: a twentieth faster than the best of 0, 3
    and 8 for all of them together, and no answer a third slower than its own best."""
    costs, spent, least, worst = PROFILES[0].costs, 0.0, {0: 0.0, 3: 0.0, 8: 0.0}, 0.0
    for seed, suite in enumerate(ordinary()):
        took = play(DraftLength(), suite.accepted, costs, Noise(), seed, trace=TRACE).spent
        fixed = {k: play(Fixed(k), suite.accepted, costs, Noise(), seed, trace=TRACE).spent for k in least}
        spent, least = spent + took, {k: least[k] + fixed[k] for k in least}
        worst = max(worst, took / min(fixed.values()))
    assert spent < 0.95 * min(least.values()), (spent, least)
    assert worst < 1.33, worst


@pytest.mark.parametrize("generation", chips())
def test_known_cliffs_of_a_chip_bring_a_first_answer_near_the_best_fixed_length(generation: int) -> None:
    """A machine whose further rows and drafts cost more than is known of its kind; each answer in a new process, 9 %
    behind the best fixed lengths on average. What is known makes no kind of text 5 % slower, all together faster."""
    costs, behind, shares = chip_costs(generation, drafter=0.06, stretch=1.1), [], []
    for chance in (0.5, 0.7, 0.8, 0.9):
        spent, least = {True: 0.0, False: 0.0}, dict.fromkeys(LENGTHS, 0.0)
        for seed in range(16):
            text = drawn(chance, 64, seed)
            for known in spent:
                depth = DraftLength()
                if known:
                    depth.expect(dict(enumerate(chip_costs(generation))))
                spent[known] += play(depth, text, costs, Noise(), seed, 1, 1.0).spent
            for k in least:
                least[k] += play(Fixed(k), text, costs, Noise(), seed, 1, 1.0).spent
        assert spent[True] < 1.05 * spent[False], chance
        behind.append(spent[True] / min(least.values()))
        shares.append(spent[True] / spent[False])
    assert sum(behind) / len(behind) < 1.09, behind
    assert sum(shares) / len(shares) < 1, shares


@pytest.mark.parametrize("profile", PROFILES, ids=lambda profile: profile.name)
def test_a_wrong_guess_about_the_chip_is_corrected_by_the_clock(profile: Profile) -> None:
    """Rows that should be dear are cheap, or the other way round: a long answer loses next to nothing by it."""
    for generation in (1, 3):
        depth = DraftLength()
        depth.expect(dict(enumerate(chip_costs(generation))))
        text = drawn(0.7, 1500)
        spent = play(depth, text, profile.costs, Noise(), 1, profile.ahead).per_token
        assert spent < 1.09 * best_fixed(text, profile.costs)[1]


def test_few_lengths_are_used_in_a_short_answer():
    for chance in (0.3, 0.6, 0.9):
        history = play(DraftLength(), drawn(chance, 64), HERE.costs, Noise(), 1, trace=2.0).rounds
        assert len({k for _, k in history}) <= 3


def test_what_a_trace_costs_is_learned():
    """Where traces are dear, a length that would gain a little is not worth one."""
    depth = DraftLength()
    for _ in range(20):
        depth.observe(3, 3, 0.02)
    assert depth.choose(500, {3}) > 3
    for _ in range(4):
        depth.observe(3, 3, 0.5, timed=False, traced=7)
    assert depth.choose(60, {3}) == 3


def test_a_fixed_length_is_kept_whatever_happens():
    depth = DraftLength(fixed=5)
    assert {k for _, k in play(depth, HARD, HERE.costs, Noise(), 1).rounds} == {5}
    depth.fixed = 4  # not a length that is chosen from
    assert {k for _, k in play(depth, EASY, HERE.costs, Noise(), 1).rounds} == {4}


def test_the_limit_is_kept():
    for limit in (0, 1, 4):
        depth = DraftLength(limit=limit)
        history = play(depth, EASY, HERE.costs, Noise(), 1).rounds
        assert max(k for _, k in history) == max(k for k in LENGTHS if k <= limit)
        assert depth.best() <= limit
    assert DraftLength(limit=0, fixed=4).choose() == 0
    assert DraftLength(limit=0).gain() is None


def test_it_knows_its_gain_and_its_loss():
    winning, losing = DraftLength(), DraftLength()
    play(winning, drawn(0.6, 600), HERE.costs, Noise(), 1)
    play(losing, HARD, HERE.costs, Noise(), 1)
    assert winning.best() > 0
    assert (winning.gain() or 0) > 1.15
    assert winning.accepted() == pytest.approx(0.6, abs=0.2)
    assert winning.price() == pytest.approx(HERE.costs[1] - 1, abs=0.1)
    assert losing.best() == 0
    assert (losing.gain() or 2) < 1
    assert DraftLength().gain() is DraftLength().accepted() is DraftLength().price() is None


def test_plain_is_not_measured_where_drafting_surely_pays():
    """With nearly every draft accepted no clock is needed to know; its two rounds would cost a short answer most."""
    history = play(DraftLength(), EASY[:120], HERE.costs, Noise(pauses=0, busy=0), 1).rounds
    assert 0 not in {k for _, k in history}


def test_only_a_few_lengths_are_tried():
    for chance in (0.2, 0.7, 0.99):
        history = play(DraftLength(), drawn(chance, 500), HERE.costs, Noise(), 1).rounds
        assert {k for _, k in history} <= set(LENGTHS)


def test_a_slower_machine_does_not_make_stale_times_look_good():
    """Parked on text that cannot be drafted, the machine slows down by half: nothing but plain rounds says so."""
    depth = DraftLength()
    play(depth, HARD, [1 + 0.3 * k for k in range(9)], Noise(), 1)
    slow = play(depth, HARD, [1.5 * (1 + 0.3 * k) for k in range(9)], Noise(), 2).rounds
    assert sum(k > 0 for _, k in slow) / len(slow) < 0.06


@pytest.mark.parametrize("seconds", [None, 0.0, -1.0, math.inf, math.nan, 1e-12, 1e9])
def test_no_clock_makes_it_stumble(seconds):
    depth = DraftLength()
    numbers = random.Random(5)
    for _ in range(300):
        k = depth.choose()
        assert k in LENGTHS
        depth.observe(k, numbers.randint(0, k), seconds if numbers.random() < 0.5 else 0.01 * (1 + 0.2 * k))
    gain = depth.gain()
    assert gain is None or math.isfinite(gain)
    assert json.loads(json.dumps(depth.learned(), allow_nan=False)) == depth.learned()


def test_extreme_luck_leaves_every_number_finite():
    for text in (EASY * 5, HARD * 5):
        depth = DraftLength()
        play(depth, text, HERE.costs, Noise(), 1)
        shares = [share for _, shares in depth.learned()["kinds"] for share in shares]
        numbers = [*shares, *(x for pair in depth.learned()["costs"].values() for x in pair)]
        assert all(map(math.isfinite, numbers))
        assert 0 <= (depth.accepted() or 0) <= 1


def test_nothing_is_learned_from_nothing():
    depth = DraftLength()
    assert depth.learned() == {}
    play(DraftLength(fixed=0), EASY, HERE.costs, Noise(), 1)
    plain = DraftLength(fixed=0)
    play(plain, EASY, HERE.costs, Noise(), 1)
    assert plain.learned() == {}


@pytest.mark.parametrize(
    "learned",
    [
        {"kinds": []}, {"kinds": "no"}, {"kinds": None}, {"kinds": [[1, [0.5] * 7]]}, {"kinds": [[1, 0.5]]},
        *({"kinds": [[1, [share] * 8]]} for share in (2.0, 0, -0.1, math.nan, None)),
        *({"kinds": [[texts, [0.5] * 8]]} for texts in (-1, 0, math.inf, math.nan, "many")),
        {"elsewhere": []}, {"elsewhere": {"x": {}}}, {"elsewhere": {"5": []}}, {"elsewhere": {"5": {"1": [-9, 0.1]}}},
        {"costs": []}, {"costs": {"1": 3}}, {"costs": {"1": [-9, 0.1]}}, {"costs": {"1": [0.2, math.inf]}},
        *({"rows": rows} for rows in (-1, math.inf, math.nan, "many", None)),
        *({"price": price} for price in (-1, math.inf, math.nan, "dear", None)),
    ],
)  # fmt: skip
def test_what_nobody_learned_is_refused_and_changes_nothing(learned):
    depth = DraftLength()
    with pytest.raises(ValueError, match="learned"):
        depth.start_from({"kinds": [[2, [0.5] * 8]], "costs": {}, "price": 1, "rows": 512, **learned})
    assert depth == DraftLength()


@pytest.mark.parametrize("profile", PROFILES, ids=lambda profile: profile.name)
def test_answers_that_are_easy_and_hard_by_turns_cost_3_percent_at_most(profile):
    """Each asked anew: what was easy before must not make the next one slow."""
    answers = [drawn(chance, 60, seed) for seed in range(4) for chance in (0.95, 0.1)]
    text = [digit for answer in answers for digit in answer]
    least = best_fixed(text, profile.costs)[1] * len(text)
    spent = []
    for seed in range(6):
        depth, total = DraftLength(), 0.0
        for at, answer in enumerate(answers):
            depth.begin()
            total += play(depth, answer, profile.costs, Noise(), 10 * seed + at, profile.ahead).spent
        spent.append(total)
    assert sum(spent) / len(spent) < 1.03 * least


def test_what_was_learned_at_a_short_context_is_doubted_at_a_long_one():
    """Draft tokens cost twice as much there, which is known after a few rounds if it was told of, after many if not."""
    text, deep = drawn(0.4, 150, 4), [1 + 2 * (cost - 1) for cost in HERE.costs]
    spent = {}
    for told in (False, True):
        spent[told] = 0.0
        for seed in range(8):
            depth = DraftLength()
            depth.attend_to(512)
            play(depth, drawn(0.8, 300, seed), HERE.costs, Noise(), seed)
            depth.begin()
            if told:
                depth.attend_to(65536)
            spent[told] += play(depth, text, deep, Noise(), 50 + seed).per_token
    assert spent[True] < 0.98 * spent[False]


def test_what_drafts_cost_in_short_and_long_contexts_is_remembered_apart():
    """Few rows make seven drafts the best and many rows three: each start goes on with what its own rows taught."""
    costs = {512: [1 + 0.03 * k for k in range(MAX_DRAFT + 1)], 4096: [1 + 0.25 * k for k in range(MAX_DRAFT + 1)]}
    learned: dict[str, Any] = {}
    for start in range(6):  # six processes, an answer each
        rows = (512, 4096)[start % 2]
        depth = DraftLength()
        depth.start_from(learned) if learned else None
        depth.attend_to(rows)
        for k in (0, 1, 3, 5, 7) * 6:
            depth.observe(k, min(k, 3), 0.01 * costs[rows][k])
        learned = json.loads(json.dumps(depth.learned()))
    for rows, spent in costs.items():
        again = DraftLength()
        again.start_from(learned)
        again.attend_to(rows)
        assert again._times.cost(7) == pytest.approx(spent[7], rel=0.05)
    del learned["elsewhere"]  # as version 0.1 kept it
    DraftLength().start_from(learned)


def test_compiled_rounds_taking_over_keep_the_proportions():
    depth = DraftLength()
    play(depth, drawn(0.6, 300), HERE.costs, Noise(), 1)
    before = depth.price() or 0
    depth.forget_times()
    assert depth.gain() is None
    for k in (0, 2, 0, 2):
        depth.observe(k, 1 if k else 0, 0.004 * HERE.costs[k])
    assert depth.price() == pytest.approx(before, abs=0.1)
    assert LENGTHS[-1] == MAX_DRAFT


def test_what_texts_agreed_on_does_not_fade_from_start_to_start():
    first = Acceptance(8)
    for _ in range(5):
        first.begin()
        for _ in range(20):
            first.observe(8, 8)
    learned = first.learned()
    for _ in range(3):
        again = Acceptance(8)
        again.start_from(learned)
        assert again.learned() == learned
    assert again.tokens()[8] > 6


def test_a_text_of_another_kind_does_not_undo_what_many_agreed_on():
    acceptance = Acceptance(8)
    for accepted in (8, 8, 8, 8, 8, 8, 0):
        acceptance.begin()
        for _ in range(20):
            acceptance.observe(8, accepted)
    again = Acceptance(8)
    again.start_from(acceptance.learned())
    assert 0.6 < again.tokens()[1] - 1 < 0.9, "of eight texts one was hopeless"
    again.observe(8, 8)
    assert again.tokens()[8] > 8, "this one is not"


def test_texts_are_easy_or_hopeless_and_the_first_rounds_tell_of_which_kind():
    """Half of them accept all, half nothing: 8 drafts are worth more than the mean share of accepted drafts says."""
    acceptance = Acceptance(8)
    for accepted in (8, 0) * 8:
        acceptance.begin()
        for _ in range(12):
            acceptance.observe(8, accepted)
    again = Acceptance(8)
    again.start_from(acceptance.learned())
    assert again.tokens()[8] > 4
    again.observe(8, 0)
    assert again.tokens()[8] < 2


def test_costs_learned_of_short_drafts_tell_of_longer_ones():
    """A process that used few lengths teaches the next one what a draft token costs."""
    for price in (0.05, 0.5):
        first = DraftLength()
        for _ in range(30):
            for k in (0, 1, 2, 3):
                first.observe(k, k, 0.01 * (1 + price * k))
        again = DraftLength()
        again.start_from(json.loads(json.dumps(first.learned())))
        wrong, untaught = (abs(math.log(one._times.cost(8) / (1 + 8 * price))) for one in (again, DraftLength()))
        assert wrong < 0.4 * untaught
