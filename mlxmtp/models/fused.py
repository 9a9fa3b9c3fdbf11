"""Operations of a layer that are several launches on Metal, in one kernel of ours where it proves itself at load.

The plain operations are the reference. No kernel has run on Metal: each is compared with them on the machine it is to
run on, and where it fails, or differs by more than rounding, the plain ones stay.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import mlx.core as mx

from mlxmtp.models import device

_LANES = 32  # threads of a group that exchange numbers without memory
_THREADS = 512  # of a row: sixteen groups of 32, whose sums meet in threadgroup memory
_NEAR = 8  # units of the last place that a result may differ by: sums have another order

_SOURCE = """
    const uint thread_ = thread_position_in_threadgroup.x;
    const uint lane = thread_index_in_simdgroup;
    const uint group = simdgroup_index_in_threadgroup;
    threadgroup float sums[3][32];
    const size_t at = size_t(threadgroup_position_in_grid.x) * WIDTH;

    float sum_x = 0.0f, sum_h = 0.0f;
    for (uint i = thread_; i < WIDTH; i += THREADS) {
        const float value = float(x[at + i]), other = float(h[at + i]);
        sum_x += value * value;
        sum_h += other * other;
    }
    sum_x = simd_sum(sum_x);
    sum_h = simd_sum(sum_h);
    if (lane == 0) { sums[0][group] = sum_x; sums[1][group] = sum_h; }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    sum_x = simd_sum(lane < THREADS / 32 ? sums[0][lane] : 0.0f);
    sum_h = simd_sum(lane < THREADS / 32 ? sums[1][lane] : 0.0f);
    const float scale_x = metal::precise::rsqrt(sum_x / WIDTH + EPS);
    const float scale_h = metal::precise::rsqrt(sum_h / WIDTH + EPS);

    float sum = 0.0f;
    for (uint i = thread_; i < WIDTH; i += THREADS) {
        const T normed_x = T(float(weight[i]) * float(T(float(x[at + i]) * scale_x)));
        const T beside = BESIDE;
        T value = T(float(beside) + float(normed_x));
        SCALED
        summed[at + i] = value;
        sum += float(value) * float(value);
    }
"""
"""The sum; ``h`` is taken as it is or normed, too, and its own sum of squares then comes for nothing."""

_NORMS = """
    sum = simd_sum(sum);
    if (lane == 0) { sums[2][group] = sum; }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    sum = simd_sum(lane < THREADS / 32 ? sums[2][lane] : 0.0f);
    const float scale_sum = metal::precise::rsqrt(sum / WIDTH + EPS);
    for (uint i = thread_; i < WIDTH; i += THREADS) {
        const float value = float(T(float(summed[at + i]) * scale_sum));
        WRITTEN
    }
"""

_CHOOSE = """
    const uint row = threadgroup_position_in_grid.x;
    const uint lane = thread_index_in_simdgroup;
    float mine[EXPERTS / 32];
    for (uint i = 0; i < EXPERTS / 32; i++) {
        mine[i] = float(scores[row * EXPERTS + 32 * i + lane]);
    }
    float highest = 0.0f, sum = 0.0f, weight = 0.0f;
    uint chosen = 0;
    for (uint n = 0; n < CHOSEN; n++) {
        float best = mine[0];
        uint at = lane;
        for (uint i = 1; i < EXPERTS / 32; i++) {
            if (mine[i] > best) { best = mine[i]; at = 32 * i + lane; }
        }
        const float found = simd_max(best);
        uint expert = simd_min(best == found ? at : EXPERTS - 1);
        if (expert % 32 == lane) { mine[expert / 32] = -INFINITY; }
        highest = n == 0 ? found : highest;
        const float power = metal::precise::exp(found - highest);
        sum += power;
        if (n == lane) { chosen = expert; weight = power; }
    }
    if (lane < CHOSEN) {
        indices[row * CHOSEN + lane] = chosen;
        weights[row * CHOSEN + lane] = T(float(T(weight / sum)) * float(scale[chosen]));
    }
"""
"""The k highest scores of a row and their softmax by 32 threads, each of which looks after every 32nd expert."""


def add_norm(
    h: mx.array,
    x: mx.array,
    weight: mx.array,
    eps: float,
    *,
    before: mx.array | None = None,
    scale: mx.array | None = None,
    following: Sequence[mx.array] = (),
) -> tuple[mx.array, list[mx.array]]:
    """Return ``y = (h + norm(x) * weight) * scale`` [L, H], and ``norm(y) * w`` for each w of ``following``.

    ``before``: h is normed with that weight, too.
    """
    if usable(h.dtype, h.shape[-1], eps):
        return in_one_kernel(h, x, weight, eps, before, scale, following)
    return in_several(h, x, weight, eps, before, scale, following)


def in_several(
    h: mx.array,
    x: mx.array,
    weight: mx.array,
    eps: float,
    before: mx.array | None,
    scale: mx.array | None,
    following: Sequence[mx.array],
) -> tuple[mx.array, list[mx.array]]:
    """Compute what `add_norm` returns by MLX's own operations."""
    y = (h if before is None else mx.fast.rms_norm(h, before, eps)) + mx.fast.rms_norm(x, weight, eps)
    y = y if scale is None else y * scale
    return y, [mx.fast.rms_norm(y, one, eps) for one in following]


@cache
def usable(dtype: mx.Dtype, width: int, eps: float) -> bool:
    """Return True if the kernel runs here and computes what the plain operations do."""
    if device.on_cpu() or not mx.metal.is_available():
        return False
    return computes_alike(dtype, width, eps)


def computes_alike(dtype: mx.Dtype, width: int, eps: float) -> bool:
    """Compare the kernel with the plain operations on a few rows, large and small ones among them."""
    keys = mx.random.split(mx.random.key(5), 6)
    sizes = mx.array([[1e-3], [1.0], [50.0]])
    h, x = (mx.random.normal((3, width), key=key) * sizes for key in keys[:2])
    vectors = [mx.random.uniform(0.5, 2.0, (width,), key=key) for key in keys[2:]]
    h, x, weight, scale, following, other = (one.astype(dtype) for one in (h, x, *vectors))
    for options in (
        (None, None, ()),
        (None, None, (following,)),
        (None, scale, (following,)),
        (None, None, (following, other, weight)),
        (other, None, ()),
    ):
        y, normed = in_several(h, x, weight, eps, *options)
        try:
            found_y, found = in_one_kernel(h, x, weight, eps, *options)
            near = [_near(one, wanted) for one, wanted in zip([found_y, *found], [y, *normed], strict=True)]
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
    h: mx.array,
    x: mx.array,
    weight: mx.array,
    eps: float,
    before: mx.array | None,
    scale: mx.array | None,
    following: Sequence[mx.array],
) -> tuple[mx.array, list[mx.array]]:
    """Compute what `add_norm` returns in one launch."""
    rows, width = h.shape
    outputs = 1 + len(following)
    found = _kernel(eps, before is not None, scale is not None, len(following))(
        inputs=[h, x, weight, *(one for one in (before, scale) if one is not None), *following],
        template=[("T", h.dtype), ("WIDTH", width), ("THREADS", _THREADS)],
        grid=(rows * _THREADS, 1, 1),
        threadgroup=(_THREADS, 1, 1),
        output_shapes=[h.shape] * outputs,
        output_dtypes=[h.dtype] * outputs,
    )
    return found[0], found[1:]


@cache
def _kernel(eps: float, before: bool, scaled: bool, following: int) -> Any:
    norm_h = "T(float(before[i]) * float(T(float(h[at + i]) * scale_h)))" if before else "h[at + i]"
    scaling = "value = T(float(value) * float(scale[i]));" if scaled else ""
    source = _SOURCE.replace("BESIDE", norm_h).replace("SCALED", scaling)
    if following:
        written = (f"normed{n}[at + i] = T(float(following{n}[i]) * value);" for n in range(following))
        source += _NORMS.replace("WRITTEN", "\n        ".join(written))
    return mx.fast.metal_kernel(
        name=f"add_norm{'_normed' * before}{'_scaled' * scaled}_{following}",
        input_names=["h", "x", "weight", *["before"] * before, *["scale"] * scaled]
        + [f"following{n}" for n in range(following)],
        output_names=["summed", *(f"normed{n}" for n in range(following))],
        source=f"constexpr float EPS = {eps!r}f;\n{source}",
    )


def choose_experts(scores: mx.array, k: int, scale: mx.array) -> tuple[mx.array, mx.array]:
    """Return the experts [L, k] with the highest ``scores`` [L, E], uint32, and the softmax over these times ``scale``.

    They come in any order.
    """
    if chooses(scores.dtype, scores.shape[-1], k):
        return chosen_in_one_kernel(scores, k, scale)
    return chosen_in_several(scores, k, scale)


def chosen_in_several(scores: mx.array, k: int, scale: mx.array) -> tuple[mx.array, mx.array]:
    """Compute what `choose_experts` returns by MLX's own operations."""
    indices = mx.argpartition(scores, kth=-k, axis=-1)[..., -k:]
    chosen = mx.softmax(mx.take_along_axis(scores, indices, axis=-1), axis=-1, precise=True)
    return indices, chosen * scale[indices]


@cache
def chooses(dtype: mx.Dtype, experts: int, k: int) -> bool:
    """Return True if the kernel of `choose_experts` runs here and chooses what the plain operations do."""
    if device.on_cpu() or not mx.metal.is_available() or experts % _LANES or k > _LANES:
        return False
    return chooses_alike(dtype, experts, k)


def chooses_alike(dtype: mx.Dtype, experts: int, k: int) -> bool:
    """Compare the kernel with the plain operations on rows without equal scores."""
    places = mx.argsort(mx.random.uniform(shape=(4, experts), key=mx.random.key(6)), axis=-1)
    scores = (places.astype(mx.float32) / 16 - experts / 32).astype(dtype)
    scale = mx.random.uniform(0.5, 2.0, (experts,), key=mx.random.key(7)).astype(dtype)
    wanted, wanted_weights = _sorted(*chosen_in_several(scores, k, scale))
    try:
        found, weights = _sorted(*chosen_in_one_kernel(scores, k, scale))
        return bool(mx.array_equal(found, wanted).item()) and _near(weights, wanted_weights)
    except (RuntimeError, ValueError):
        return False


def _sorted(indices: mx.array, weights: mx.array) -> tuple[mx.array, mx.array]:
    order = mx.argsort(indices, axis=-1)
    return mx.take_along_axis(indices, order, axis=-1), mx.take_along_axis(weights, order, axis=-1)


def chosen_in_one_kernel(scores: mx.array, k: int, scale: mx.array) -> tuple[mx.array, mx.array]:
    """Compute what `choose_experts` returns in one launch."""
    rows, experts = scores.shape
    indices, weights = _chooser()(
        inputs=[scores, scale],
        template=[("T", scores.dtype), ("EXPERTS", experts), ("CHOSEN", k)],
        grid=(rows * _LANES, 1, 1),
        threadgroup=(_LANES, 1, 1),
        output_shapes=[(rows, k)] * 2,
        output_dtypes=[mx.uint32, scores.dtype],
    )
    return indices, weights


@cache
def _chooser() -> Any:
    reads, writes = ["scores", "scale"], ["indices", "weights"]
    return mx.fast.metal_kernel(name="choose_experts", input_names=reads, output_names=writes, source=_CHOOSE)
