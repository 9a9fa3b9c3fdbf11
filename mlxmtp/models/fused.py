"""Norm, sum and norm: three launches of a layer on Metal, in one kernel of ours where it proves itself at load.

The plain operations are the reference. The kernel has not run on Metal: `usable` compares it with them on the machine
it is to run on, and where it fails, or differs by more than rounding, the plain ones stay.
"""

from functools import cache
from typing import Any

import mlx.core as mx

from mlxmtp.models import device

_THREADS = 512  # of a row: sixteen groups of 32, whose sums meet in threadgroup memory
_NEAR = 8  # units of the last place that a result may differ by: sums have another order
_SOURCE = """
    const uint row = threadgroup_position_in_grid.x;
    const uint thread_ = thread_position_in_threadgroup.x;
    const uint lane = thread_index_in_simdgroup;
    const uint group = simdgroup_index_in_threadgroup;
    threadgroup float sums[2][32];
    const size_t at = size_t(row) * WIDTH;

    float sum = 0.0f;
    for (uint i = thread_; i < WIDTH; i += THREADS) {
        const float value = float(x[at + i]);
        sum += value * value;
    }
    sum = simd_sum(sum);
    if (lane == 0) { sums[0][group] = sum; }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    sum = simd_sum(lane < THREADS / 32 ? sums[0][lane] : 0.0f);
    const float scale_x = metal::precise::rsqrt(sum / WIDTH + EPS);

    float again = 0.0f;
    for (uint i = thread_; i < WIDTH; i += THREADS) {
        const T normed_x = T(float(weight[i]) * float(T(float(x[at + i]) * scale_x)));
        T value = T(float(h[at + i]) + float(normed_x));
        if (SCALED) { value = T(float(value) * float(scale[i])); }
        summed[at + i] = value;
        again += float(value) * float(value);
    }
    if (FOLLOWED) {
        again = simd_sum(again);
        if (lane == 0) { sums[1][group] = again; }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        again = simd_sum(lane < THREADS / 32 ? sums[1][lane] : 0.0f);
        const float scale_h = metal::precise::rsqrt(again / WIDTH + EPS);
        for (uint i = thread_; i < WIDTH; i += THREADS) {
            normed[at + i] = T(float(following[i]) * float(T(float(summed[at + i]) * scale_h)));
        }
    }
"""


def add_norm(
    h: mx.array,
    x: mx.array,
    weight: mx.array,
    eps: float,
    *,
    scale: mx.array | None = None,
    following: mx.array | None = None,
) -> tuple[mx.array, mx.array]:
    """Return ``y = (h + norm(x) * weight) * scale`` [L, H], and ``norm(y) * following``, or y again without it."""
    if usable(h.dtype, h.shape[-1], eps):
        return in_one_kernel(h, x, weight, eps, scale, following)
    y = h + mx.fast.rms_norm(x, weight, eps)
    y = y if scale is None else y * scale
    return y, y if following is None else mx.fast.rms_norm(y, following, eps)


@cache
def usable(dtype: mx.Dtype, width: int, eps: float) -> bool:
    """Return True if the kernel runs here and computes what the plain operations do."""
    if device.on_cpu() or not mx.metal.is_available():
        return False
    return computes_alike(dtype, width, eps)


def computes_alike(dtype: mx.Dtype, width: int, eps: float) -> bool:
    """Compare the kernel with the plain operations on a few rows, large and small ones among them."""
    keys = mx.random.split(mx.random.key(5), 5)
    sizes = mx.array([[1e-3], [1.0], [50.0]])
    h, x = (mx.random.normal((3, width), key=key) * sizes for key in keys[:2])
    vectors = [mx.random.uniform(0.5, 2.0, (width,), key=key) for key in keys[2:]]
    h, x, weight, scale, following = (one.astype(dtype) for one in (h, x, *vectors))
    for scaled, followed in ((None, None), (None, following), (scale, following)):
        y = h + mx.fast.rms_norm(x, weight, eps)
        y = y if scaled is None else y * scaled
        wanted = [y, y if followed is None else mx.fast.rms_norm(y, followed, eps)]
        try:
            found = in_one_kernel(h, x, weight, eps, scaled, followed)
            near = [_near(one, other) for one, other in zip(found, wanted, strict=True)]
        except (RuntimeError, ValueError):  # it does not compile, or cannot be launched with so many threads
            return False
        if not all(near):
            return False
    return True


def _near(found: mx.array, wanted: mx.array) -> bool:
    rows = mx.abs(wanted.astype(mx.float32)).max(axis=-1, keepdims=True)
    far = mx.abs(found.astype(mx.float32) - wanted.astype(mx.float32)) / rows
    return bool((far.max() <= _NEAR * mx.finfo(wanted.dtype).eps).item())  # not so for a NaN


def in_one_kernel(
    h: mx.array, x: mx.array, weight: mx.array, eps: float, scale: mx.array | None, following: mx.array | None
) -> tuple[mx.array, mx.array]:
    """Compute what `add_norm` returns in one launch."""
    rows, width = h.shape
    followed = following is not None
    inputs = [h, x, weight, *(one for one in (scale, following) if one is not None)]
    found = _kernel(eps, scale is not None, followed)(
        inputs=inputs,
        template=[("T", h.dtype), ("WIDTH", width), ("THREADS", _THREADS)],
        grid=(rows * _THREADS, 1, 1),
        threadgroup=(_THREADS, 1, 1),
        output_shapes=[h.shape] * (1 + followed),
        output_dtypes=[h.dtype] * (1 + followed),
    )
    return found[0], found[-1]


@cache
def _kernel(eps: float, scaled: bool, followed: bool) -> Any:
    scale, following = ["scale"] * scaled, ["following"] * followed
    constants = f"constexpr float EPS = {eps!r}f;\n"
    parts = _SOURCE
    if not scaled:
        parts = parts.replace("        if (SCALED) { value = T(float(value) * float(scale[i])); }\n", "")
    if not followed:
        parts = parts[: parts.index("    if (FOLLOWED) {")]
    return mx.fast.metal_kernel(
        name=f"add_norm{'_scaled' * scaled}{'_followed' * followed}",
        input_names=["h", "x", "weight", *scale, *following],
        output_names=["summed", *["normed"] * followed],
        source=constants + parts.replace("if (SCALED) ", "").replace("if (FOLLOWED) ", ""),
    )
