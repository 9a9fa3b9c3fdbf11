"""OpenBLAS is under mlx, and only import order decides it: every case runs in a process of its own."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from mlxmtp.models import blas

ROOT = Path(__file__).parents[2]
linux = pytest.mark.skipif(sys.platform != "linux", reason="only the Linux wheel of mlx takes a BLAS from outside")
with_openblas = pytest.mark.skipif(not blas.load().active, reason="OpenBLAS is not installed here")


def run(code: str) -> str:
    """Run code in a new interpreter and return what it printed."""
    done = subprocess.run([sys.executable, "-c", dedent(code)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


PRODUCT = """
import mlx.core as mx
M, K, N = 4, 4096, 64
mx.random.seed(1)
a, b = mx.random.normal((M, K)), mx.random.normal((K, N))
"""


@linux
@with_openblas
def test_a_product_has_the_bits_of_openblas_and_not_of_the_bundled_library() -> None:
    # The order of summation differs, so over a long inner dimension the last bits tell the two libraries apart.
    ours, openblas = run(f"""
from mlxmtp.models import blas
assert blas.load().active and blas.set_threads(1)
{PRODUCT}
import ctypes
left, right = (ctypes.c_float * a.size).from_buffer_copy(a), (ctypes.c_float * b.size).from_buffer_copy(b)
out = (ctypes.c_float * (M * N))()
row_major, as_is, one, zero = 101, 111, ctypes.c_float(1), ctypes.c_float(0)
ctypes.CDLL(None).cblas_sgemm(row_major, as_is, as_is, M, N, K, one, left, K, right, N, zero, out, N)
print(bytes(memoryview(a @ b)).hex(), bytes(out).hex())
""").split()
    bundled = run(f"{PRODUCT}\nprint(bytes(memoryview(a @ b)).hex())")
    assert ours == openblas
    assert ours != bundled


def test_two_threads_that_import_mlx_and_ctypes_do_not_wait_for_each_other() -> None:
    """A finder that imports what another thread is importing would: `chat` once showed no prompt for that reason."""
    code = """
        import faulthandler, sys, threading
        import mlx, mlxmtp
        faulthandler.dump_traceback_later(120, exit=True)
        main, within, asks = threading.main_thread(), threading.Event(), threading.Event()

        def watch(event, about):
            if event == "import" and about[0] == "_ctypes" and threading.current_thread() is main:
                within.set()  # this thread is importing ctypes
                asks.wait(2)
            elif event == "import" and about[0] == "ctypes" and threading.current_thread() is not main:
                asks.set()

        def work():
            within.wait()
            import mlx.core

        sys.addaudithook(watch)
        worker = threading.Thread(target=work, daemon=True)
        worker.start()
        import ctypes
        worker.join()
        print(within.is_set(), "mlx.core" in sys.modules)
    """
    assert run(code) == "True True"


@linux
@with_openblas
def test_a_product_is_right() -> None:
    out = run("""
        import mlxmtp.models
        import mlx.core as mx
        a = mx.arange(12, dtype=mx.float32).reshape(3, 4)
        print((a @ a.T).tolist())
    """)
    assert out == "[[14.0, 38.0, 62.0], [38.0, 126.0, 214.0], [62.0, 214.0, 366.0]]"


@linux
def test_mlx_imported_first_is_too_late_and_says_so() -> None:
    out = run("""
        import mlx.core
        from mlxmtp.models import blas
        status = blas.load()
        print(status.active, status.hint)
        print(blas.set_threads(1))
    """)
    assert out == "False mlx was imported before mlxmtp, so it does not use OpenBLAS: import mlxmtp first\nFalse"


@linux
def test_without_openblas_the_hint_names_the_package(tmp_path: Path) -> None:
    broken = tmp_path / "libopenblas.so.0"
    broken.write_bytes(b"not a library")
    out = run(f"""
        import ctypes, sys
        real = ctypes.CDLL
        def without(name, *args, **kwargs):
            if name and "openblas" in name and str({str(tmp_path)!r}) not in name:
                raise OSError(name)
            return real(name, *args, **kwargs)
        ctypes.CDLL = without
        sys.prefix = {str(tmp_path)!r}
        from mlxmtp.models import blas
        blas._DEBIAN = ()
        blas._SONAMES = ("libopenblas.so.0", {str(broken)!r}, "libc.so.6")  # absent, damaged, another library
        status = blas.load()
        print(status.active, status.hint)
    """)
    assert out.startswith("False ")
    assert "apt install libopenblas0" in out


@linux
@with_openblas
def test_threads_are_set_in_the_library() -> None:
    out = run("""
        import ctypes
        from mlxmtp.models import blas
        blas.load()
        print(blas.set_threads(1), ctypes.CDLL(None).openblas_get_num_threads())
        print(blas.set_threads(2), ctypes.CDLL(None).openblas_get_num_threads())
    """)
    assert out == "True 1\nTrue 2"


@linux
@with_openblas
@pytest.mark.parametrize(
    "module",
    sorted(
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in (ROOT / "mlxmtp").rglob("*.py")
        if re.search(r"^\s*(import|from) mlx\b", path.read_text(encoding="utf-8"), re.MULTILINE)
    ),
)
def test_whichever_module_is_imported_first_openblas_comes_before_mlx(module: str) -> None:
    out = run(f"import {module}, mlx.core; from mlxmtp.models import blas; print(blas.load())")
    assert out == "Status(active=True, hint=None)"


def test_fewer_than_one_thread_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one thread, not 0"):
        blas.set_threads(0)


def test_elsewhere_nothing_is_loaded_and_nothing_advised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert blas.load() == blas.Status(active=False, hint=None)
    assert blas.set_threads(1) is False


def test_importing_the_package_does_not_import_mlx() -> None:
    assert run("import sys, mlxmtp.models; print('mlx.core' in sys.modules)") == "False"


@linux
def test_openblas_is_not_loaded_for_what_computes_nothing() -> None:
    assert (
        run("import mlxmtp.models.config, mlxmtp.engine.params; from mlxmtp.models import blas; print(blas._loaded())")
        == "False"
    )
