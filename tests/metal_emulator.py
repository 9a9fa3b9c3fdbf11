"""`mx.fast.metal_kernel` without Metal: a kernel's source compiled as C++, each thread of a threadgroup a real one.

Only what our kernels use is there. What it shows is that a source compiles and computes; that Metal's compiler takes it
and how fast it is there it cannot show.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

_TYPES = {mx.float32: "float", mx.bfloat16: "bf16", mx.uint32: "uint", mx.int32: "int"}

_LANGUAGE = """
#include <math.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef unsigned int uint;
struct bf16 {
    uint16_t bits;
    bf16() {}
    explicit bf16(float value) {
        uint32_t all;
        memcpy(&all, &value, 4);
        bits = (all + 0x7fff + ((all >> 16) & 1)) >> 16;
    }
    operator float() const { uint32_t all = uint32_t(bits) << 16; float value; memcpy(&value, &all, 4); return value; }
};
struct uint3 { uint x, y, z; };
static __thread uint3 thread_position_in_threadgroup, threadgroup_position_in_grid;
static __thread uint thread_index_in_simdgroup, simdgroup_index_in_threadgroup;
static pthread_barrier_t everyone, simdgroups[32];
static float lanes[32][32];

namespace metal {
namespace precise {
static float rsqrt(float x) { return 1 / sqrtf(x); }
static float exp(float x) { return expf(x); }
}
}
#define threadgroup static
#define threadgroup_barrier(flags) pthread_barrier_wait(&everyone)

template <typename F> static float across(float value, F both) {
    const uint group = simdgroup_index_in_threadgroup;
    lanes[group][thread_index_in_simdgroup] = value;
    pthread_barrier_wait(&simdgroups[group]);
    float found = lanes[group][0];
    for (uint i = 1; i < 32; i++) found = both(found, lanes[group][i]);
    pthread_barrier_wait(&simdgroups[group]);
    return found;
}
static float simd_sum(float value) { return across(value, [](float a, float b) { return a + b; }); }
static float simd_max(float value) { return across(value, [](float a, float b) { return a > b ? a : b; }); }
static uint simd_min(uint value) { return uint(across(float(value), [](float a, float b) { return a < b ? a : b; })); }
"""

_PROGRAM = """
static void kernel() {{ {source} }}

static void* run(void* number) {{
    const uint at = uint(uintptr_t(number)), thread = at % {threads}, row = at / {threads};
    thread_position_in_threadgroup = {{thread, 0, 0}};
    threadgroup_position_in_grid = {{row, 0, 0}};
    thread_index_in_simdgroup = thread % 32;
    simdgroup_index_in_threadgroup = thread / 32;
    kernel();
    return 0;
}}

template <typename A> static A* read_array(size_t size) {{
    A* found = (A*) malloc(size * sizeof(A));
    if (fread(found, sizeof(A), size, stdin) != size) exit(1);
    return found;
}}

int main() {{
    {reading}
    pthread_barrier_init(&everyone, 0, {threads});
    for (auto& one : simdgroups) pthread_barrier_init(&one, 0, 32);
    for (uint row = 0; row < {groups}; row++) {{
        pthread_t threads[{threads}];
        const uintptr_t at = row * {threads};
        for (uint i = 0; i < {threads}; i++) pthread_create(&threads[i], 0, run, (void*) (at + i));
        for (auto& one : threads) pthread_join(one, 0);
    }}
    {writing}
}}
"""


def metal_kernel(folder: Path) -> Callable[..., Callable[..., list[mx.array]]]:
    """Return what stands for `mx.fast.metal_kernel`; programs are built in ``folder``."""

    def make(*, name: str, input_names: list[str], output_names: list[str], source: str) -> Any:
        def call(
            *,
            inputs: Sequence[mx.array],
            template: Sequence[tuple[str, Any]],
            grid: tuple[int, int, int],
            threadgroup: tuple[int, int, int],
            output_shapes: Sequence[tuple[int, ...]],
            output_dtypes: Sequence[mx.Dtype],
        ) -> list[mx.array]:
            kinds = [_TYPES[one.dtype] for one in inputs] + [_TYPES[dtype] for dtype in output_dtypes]
            names, sizes = [*input_names, *output_names], [int(np.prod(shape)) for shape in output_shapes]
            code = [_LANGUAGE]
            code += [f"typedef {_TYPES[value]} {key};" if isinstance(value, mx.Dtype) else
                     f"static const uint {key} = {value};" for key, value in template]  # fmt: skip
            code += [f"static {kind}* {one};" for kind, one in zip(kinds, names, strict=True)]
            reading = [f"{one} = read_array<{kind}>({array.size});"
                       for one, kind, array in zip(names, kinds, inputs, strict=False)]  # fmt: skip
            outputs = list(zip(output_names, kinds[len(inputs) :], sizes, strict=True))
            reading += [f"{one} = ({kind}*) malloc({size} * sizeof({kind}));" for one, kind, size in outputs]
            writing = [f"fwrite({one}, sizeof({kind}), {size}, stdout);" for one, kind, size in outputs]
            code.append(
                _PROGRAM.format(
                    source=source, threads=threadgroup[0], groups=grid[0] // threadgroup[0],
                    reading="\n".join(reading), writing="\n".join(writing),
                )
            )  # fmt: skip
            program = folder / f"{name}_{kinds[0]}"
            program.with_suffix(".cpp").write_text("\n".join(code))
            build = [
                "g++",
                "-std=c++17",
                "-O1",
                "-w",
                str(program.with_suffix(".cpp")),
                "-o",
                str(program),
                "-lpthread",
            ]
            subprocess.run(build, check=True)
            done = subprocess.run([program], input=b"".join(map(_bytes, inputs)), capture_output=True, check=True)
            found, at = [], 0
            for shape, dtype, size in zip(output_shapes, output_dtypes, sizes, strict=True):
                width = size * dtype.size
                found.append(_array(done.stdout[at : at + width], dtype).reshape(shape))
                at += width
            return found

        return call

    return make


def _bytes(array: mx.array) -> bytes:
    plain = mx.contiguous(array)
    return np.array(plain.view(mx.uint16) if array.dtype == mx.bfloat16 else plain).tobytes()


def _array(data: bytes, dtype: mx.Dtype) -> mx.array:
    if dtype == mx.bfloat16:
        return mx.array(np.frombuffer(data, np.uint16)).view(mx.bfloat16)
    return mx.array(np.frombuffer(data, {mx.float32: np.float32, mx.uint32: np.uint32, mx.int32: np.int32}[dtype]))
