"""The table of Metal's attention against the names of kernels that it was read from, and the script that reads them."""

from __future__ import annotations

import zipfile
from pathlib import Path

from mlxmtp.models import metal
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
