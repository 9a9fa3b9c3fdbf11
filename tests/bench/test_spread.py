"""Statistics: properties that hold for all values."""

from __future__ import annotations

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxmtp.bench.summary import compare, quantile, spread

values = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=40)
shares = st.floats(0, 1)


@given(values, shares, shares)
def test_quantiles_lie_within_the_values_and_grow_with_the_share(found, one, other):
    low, high = sorted((one, other))
    a, b = quantile(found, low), quantile(found, high)
    assert min(found) <= a or math.isclose(min(found), a)
    assert b <= max(found) or math.isclose(max(found), b)
    assert a <= b or math.isclose(a, b)


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=60), st.integers(1, 99))
def test_percentiles_are_those_of_the_standard_library(found, percent):
    expected = statistics.quantiles(found, n=100, method="inclusive")[percent - 1]
    assert quantile(found, percent / 100) == pytest.approx(expected, rel=1e-9, abs=1e-6)


@pytest.mark.parametrize(("found", "share"), [([], 0.5), ([1.0], -0.1), ([1.0], 1.1)])
def test_a_quantile_of_nothing_is_refused(found, share):
    with pytest.raises(ValueError, match="quantile"):
        quantile(found, share)


@given(values)
def test_a_spread_holds_its_median(found):
    made = spread(found)
    assert made is not None
    assert made.low <= made.median <= made.high
    assert (made.low, made.high, made.count) == (min(found), max(found), len(found))


def test_no_values_have_no_spread_and_one_value_shows_alone():
    assert spread([]) is None
    one, three = spread([2.0]), spread([1.0, 2.0, 3.5])
    assert one is not None
    assert three is not None
    assert (one.text(1), three.text(1)) == ("2.0", "2.0 (1.0–3.5)")


@given(st.lists(st.floats(1, 100), min_size=2, max_size=9), st.lists(st.floats(1, 100), min_size=2, max_size=9))
def test_a_comparison_says_the_opposite_from_the_other_side(before, after):
    a, b = spread(before), spread(after)
    assert a is not None
    assert b is not None
    opposite = {"faster": "slower", "slower": "faster", "same within spread": "same within spread"}
    assert compare(b, a) == opposite[compare(a, b)]
    assert compare(a, b, more_is_better=False) == opposite[compare(a, b)]
    assert (compare(a, b) == "faster") == (min(after) > max(before))


@given(st.lists(st.floats(1, 100), min_size=2, max_size=9))
def test_a_run_is_the_same_as_itself_and_one_repetition_says_nothing(found):
    whole, single = spread(found), spread(found[:1])
    assert whole is not None
    assert single is not None
    assert compare(whole, whole) == "same within spread"
    assert compare(single, whole) == "unclear"
