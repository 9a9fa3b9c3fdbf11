"""softmax along an axis, on a CPU out of multiplications.

MLX's CPU backend asks the C library for one exponential after the other, 13 ns each on an x86 server: with 16,000 keys
that is half of what attention costs a round. The same number of multiplications goes four or eight at a time,

    e^d = (1 + y + y^2/2! + ... + y^7/7!)^32      y = d / 32,  -30 < d <= 0

to 4e-6 of e^d down to e^-10. Below e^-30 (1e-13) the weight is 0, which is what is left of it beside a weight of 1 in
float32. The steps are the same compiled or not, so both give the same bits.
"""

import math

import mlx.core as mx

_SQUARINGS, _DEGREE, _NOTHING = 5, 7, -30.0
_MANY = 2048
"""Scores in a slice from which on this pays in rounds that are not compiled, too: there each step is an operation."""


def softmax(x: mx.array, axis: int) -> mx.array:
    """x of any shape and floating type -> the same; -inf becomes 0. In every slice something must be finite."""
    if x.shape[axis] >= _MANY:
        return multiplied(x, axis)
    return mx.softmax(x, axis=axis, precise=True)


def multiplied(x: mx.array, axis: int) -> mx.array:
    """`softmax` out of multiplications."""
    below = x.astype(mx.float32) - mx.max(x, axis=axis, keepdims=True)
    weights = mx.where(below > _NOTHING, _exp(below), 0.0)
    return (weights / mx.sum(weights, axis=axis, keepdims=True)).astype(x.dtype)


def _exp(d: mx.array) -> mx.array:
    """e^d for -30 < d <= 0; anything for what lies below."""
    y = d * 2.0**-_SQUARINGS
    p = y / math.factorial(_DEGREE) + 1 / math.factorial(_DEGREE - 1)
    for i in reversed(range(_DEGREE - 1)):
        p = p * y + 1 / math.factorial(i)
    for _ in range(_SQUARINGS):
        p = p * p
    return p
