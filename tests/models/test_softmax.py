"""Attention's softmax on a CPU beside MLX's own in float64."""

import mlx.core as mx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlxmtp.models.linear import multiplied, softmax

slices = st.integers(1, 70).flatmap(
    lambda n: st.lists(
        st.tuples(st.floats(-200, 200, width=32), *[st.floats(-200, 200, width=32) | st.just(float("-inf"))] * (n - 1)),
        min_size=1,
        max_size=5,
    )
)
"""Scores by slice; the first of each is finite, the others may be masked."""


def exact(x: mx.array, axis: int) -> mx.array:
    return mx.softmax(x.astype(mx.float64), axis=axis)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a loaded machine makes examples slowly
@given(slices, st.booleans())
def test_it_is_softmax_to_the_last_digits_of_float32(scores, upright):
    x = mx.array(scores)
    x, axis = (x.T, 0) if upright else (x, 1)
    found = multiplied(x, axis=axis)
    assert mx.all(mx.abs(found - exact(x, axis)) < 4e-6).item()
    assert not mx.any((x == -mx.inf) & (found != 0)).item()


@settings(deadline=None)  # the first example builds a kernel
@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 30, 300]))
def test_compiled_or_not_the_bits_are_the_same(seed, scale):
    x = mx.random.normal((4, 33, 3), key=mx.random.key(seed)) * scale
    assert mx.array_equal(mx.compile(lambda x: multiplied(x, axis=1))(x), multiplied(x, axis=1)).item()


def test_the_result_has_the_type_of_the_scores():
    x = mx.array([[0.0, 5.0, -mx.inf]], mx.bfloat16)
    found = multiplied(x, axis=1)
    assert found.dtype == mx.bfloat16
    assert mx.all(mx.abs(found - exact(x, 1)) < 1 / 256).item()


def test_few_scores_and_many_are_weighed_alike():
    for rows in (100, 2047, 2048, 5000):
        x = mx.random.normal((1, rows, 3), key=mx.random.key(rows)) * 5
        assert mx.all(mx.abs(softmax(x, axis=1) - exact(x, 1)) < 2e-5).item()
