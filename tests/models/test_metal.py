"""The table of Metal's attention against the names of kernels that it was read from, and the script that reads them."""

from __future__ import annotations

import zipfile
from pathlib import Path

from mlxmtp.models import metal
from scripts.benchmarks.products import DRAFTS, Product, networks, products
from scripts.metal_wheel import STORED, difference, names_in

NAMES = STORED.read_text(encoding="utf-8").splitlines()


def test_there_is_a_kernel_for_every_head_size_of_the_table():
    for dim in {*metal.HEADS, metal.FULL_HEAD}:
        assert f"sdpa_vector_{dim}_{dim}" in NAMES
    assert "sdpa_blocked_causal_mask" in NAMES
    assert "MLX_SDPA_D512_MIN_KL" in NAMES
    assert {"affine_qmv", "affine_qmv_wide", "gemv", "gemv_wide"} <= set(NAMES)  # rows: one, and up to five


def test_names_are_read_without_types_and_sizes_of_products(tmp_path: Path):
    wheel = tmp_path / "mlx.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        kernels = (
            b"\0sdpa_vector_bfloat16_t_512_512\0sdpa_vector_float_512_512\0affine_qmv_bfloat16_t_gs_64_b_4_batch_0\0"
        )
        archive.writestr("mlx/lib/mlx.metallib", kernels + b"sdpa_vector_bfloat16_t_64_64llvm\0")
        archive.writestr("mlx/lib/libmlx.dylib", b"\0MLX_SDPA_BLOCKS\0other\0")
        archive.writestr("mlx/readme.txt", b"sdpa_vector_bfloat16_t_32_32")
    names = names_in(wheel)
    assert names == ["MLX_SDPA_BLOCKS", "affine_qmv", "sdpa_vector_512_512", "sdpa_vector_64_64"]
    assert difference(names, [*names[:2], "sdpa_vector_96_96", names[3]]) == [
        "-sdpa_vector_512_512",
        "+sdpa_vector_96_96",
    ]


def test_full_layers_read_keys_and_values_once_for_each_of_their_heads():
    """Products of a traced round of the 26B in its real sizes: 5 full layers, 2 K/V heads of 512, 16 query heads."""
    pair, context = networks("26b"), 4096
    now, before = (products(pair, context, before=one) for one in (False, True))
    keys = context * 512 * 2  # bytes of a head
    full = [one for one in now["check"] if one.what == "full"]
    assert sum(one.nbytes for one in full) == 5 * 2 * 2 * keys
    rows = 8 * (DRAFTS + 1)
    assert {(one.batch, one.rows) for one in full if one.inner == 512} == {(2, rows)}
    assert {(one.batch, one.rows) for one in full if one.outer == 512} == {(1, rows)}  # apart: sums are divided
    assert sum(one.nbytes for one in before["check"] if one.what == "full") == 8 * 5 * 2 * 2 * keys
    assert [one for one in now["check"] if one.what == "weights"] == [
        one for one in before["check"] if one.what == "weights"
    ]
    assert Product("full", 2, 5, 512, 100, 0, tile=16).flops == 2 * 2 * 16 * 512 * 100
