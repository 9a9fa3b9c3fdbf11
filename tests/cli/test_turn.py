"""What happens around one answer of `mlxmtp ask`."""

from __future__ import annotations

import os
import signal
from threading import Timer

import pytest

from mlxmtp.cli.turn import ctrl_c_first


def test_ctrl_c_that_the_compiler_of_kernels_heard_first_is_no_failure() -> None:
    late = Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))
    late.start()
    with pytest.raises(KeyboardInterrupt), ctrl_c_first():
        raise RuntimeError("the compiler has ended")
    with pytest.raises(RuntimeError, match="out of memory"), ctrl_c_first():
        raise RuntimeError("out of memory")
