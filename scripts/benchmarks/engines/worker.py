"""One engine in a process of its own: loads the pair once, then answers JSON lines until its input ends.

    {"do": "run", "prompt": [...], "tokens": 100, "draft": 0, ...}  ->  {"tokens": [...], "marks": [[1, 0.02], ...]}

`marks` are (tokens so far, seconds since the request), one for every time the engine handed tokens out. Started by
the driver as `python -m scripts.benchmarks.engines.worker ENGINE TARGET DRAFTER`.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from scripts.benchmarks.engines.job import Engine, Enough, Job


def main() -> None:
    """Serve requests from standard input."""
    name, target, drafter = sys.argv[1:4]
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print goes to stderr; only answers go to the driver
    blas = "none"
    if name != "transformers":
        blas = load_openblas()
    engine: Engine = importlib.import_module(f"scripts.benchmarks.engines.{name}").load(Path(target), Path(drafter))
    _send(out, {"hello": {"python": sys.version.split()[0], "blas": blas, **engine.describe()}})
    for line in sys.stdin:
        request = json.loads(line)
        try:
            _send(out, _answer(engine, request))
        except Exception as error:  # noqa: BLE001  (reported to the driver, which leaves this arm out)
            import traceback

            traceback.print_exc()
            _send(out, {"error": f"{type(error).__name__}: {error}"})


def load_openblas() -> str:
    """The same BLAS under every mlx: it takes over only if it is in the process before mlx is."""
    if sys.platform != "linux":
        return "system"
    for library in ("libopenblas.so.0", "libopenblas.so"):
        try:
            ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
        except OSError:
            continue
        return f"{library}, {os.environ.get('OPENBLAS_NUM_THREADS', 'default')} thread"
    return "mlx's own (no OpenBLAS on this machine)"


def _answer(engine: Engine, request: dict[str, Any]) -> dict[str, Any]:
    what = request.pop("do")
    if what == "run":
        return _run(engine, _job(request))
    if what == "warm":
        engine.warm([_job(job) for job in request["jobs"]])
        return {}
    return {"answer": engine.ask(what, request)}


def _job(request: dict[str, Any]) -> Job:
    return Job(**{**request, "prompt": tuple(request["prompt"]), "stop": tuple(request.get("stop", ()))})


def _run(engine: Engine, job: Job) -> dict[str, Any]:
    tokens: list[int] = []
    marks: list[tuple[int, float]] = []

    def emit(new: Sequence[int]) -> None:
        now = time.perf_counter() - start
        for token in new:
            tokens.append(int(token))
            if len(tokens) == job.tokens or tokens[-1] in job.stop:
                break
        marks.append((len(tokens), now))
        if len(tokens) == job.tokens or tokens[-1] in job.stop:
            raise Enough

    gc.collect()
    start = time.perf_counter()
    counts = engine.run(job, emit)
    return {"tokens": tokens, "marks": marks, **asdict(counts)}


def _send(out: TextIO, message: dict[str, Any]) -> None:
    out.write(json.dumps(message) + "\n")
    out.flush()


if __name__ == "__main__":
    main()
