"""The training loop: workers of one thread each, weights in shared memory.

One thread per worker because barriers between threads inside every small operation wait for
whoever else uses the machine; two workers meet twice a step. Denormal numbers are flushed: the
tails of a softmax are full of them, and with them a step takes nine times as long.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
import torch.multiprocessing as mp
from torch import Tensor, nn

from scripts.pocket import kernels
from scripts.pocket.batches import Stream
from scripts.pocket.optimizer import Slot, share, update

_TOKENS, _LOSS, _ROWS = range(3)


class Job(Protocol):
    """What is trained: a tower, the target or the drafter."""

    name: str
    module: nn.Module

    def loss(self, batch: Any) -> tuple[Tensor, int]:
        """(summed loss, number of rows it is summed over)."""

    def validate(self) -> dict[str, float]:
        """Figures on held-out conversations."""

    def stream(self, rank: int, world: int) -> Stream:
        """The worker's batches."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Where to write, and how long to train: the last step of each cycle of the learning rate, in order.

    A network that begins with trained weights has 0 as its first end: it is spared the cycle at full rate.
    """

    folder: Path
    ends: tuple[int, ...]
    workers: int = 2
    compile: bool = True
    checkpoint_minutes: float = 3.0
    check_minutes: float = 20.0
    decay_from: float = 0.4


@dataclass(frozen=True, slots=True)
class Shared:
    """Buffers in shared memory: weights, moments [N], gradients [world, N], figures [world, 3]."""

    weights: Tensor
    first: Tensor
    second: Tensor
    grads: Tensor
    figures: Tensor


M = TypeVar("M", bound=nn.Module)


def load_module(module: M, path: Path) -> M:
    """Return the module, frozen, with the weights at the beginning of a training checkpoint."""
    flat = torch.load(path)["weights"]
    start = 0
    for parameter in module.parameters():
        parameter.data = flat[start : start + parameter.numel()].view(parameter.shape).clone()
        parameter.requires_grad_(False)
        start += parameter.numel()
    return module


def rate(step: int, ends: tuple[int, ...], decay_from: float) -> float:
    """Learning rate at a step, as a part of its peak: warm-up, plateau, straight down to 2 %.

    Every further cycle warms up to half the peak, and goes straight down again.
    """
    if step > ends[0] or not ends[0]:
        begin, end = next((a, b) for a, b in pairwise(ends) if step <= b)
        fraction = (step - begin) / (end - begin)
        return 0.02 + 0.48 * min(fraction / 0.02, (1 - fraction) / 0.98)
    fraction = step / ends[0]
    if fraction < 0.02:
        return 0.05 + 0.95 * fraction / 0.02
    if fraction < decay_from:
        return 1.0
    return 0.02 + 0.98 * max(0.0, 1 - (fraction - decay_from) / (1 - decay_from))


def run(make: Callable[[], Job], plan: Plan) -> None:
    """Train until the plan's end, from the folder's checkpoint if there is one."""
    os.environ["OMP_NUM_THREADS"] = "1"
    job = make()
    slots = _slots(job.module)
    size = sum(slot.size for slot in slots)
    flat = torch.cat([p.detach().reshape(-1) for p in job.module.parameters()])
    buffers = Shared(
        flat,
        torch.zeros(size),
        torch.zeros(size),
        torch.zeros(plan.workers, size),
        torch.zeros(plan.workers, 3).double(),
    )
    state: dict[str, Any] = {"step": 0, "elapsed": 0.0, "at": (0, 0), "tokens": 0}
    path = plan.folder / f"{job.name}.pt"
    if path.exists():
        saved = torch.load(path)
        for name in ("weights", "first", "second"):
            getattr(buffers, name).copy_(saved.pop(name))
        state = saved
    if state["step"] > plan.ends[-1]:
        return
    for tensor in (buffers.weights, buffers.first, buffers.second, buffers.grads, buffers.figures):
        tensor.share_memory_()
    context = mp.get_context("spawn")
    barrier = context.Barrier(plan.workers)
    del job
    mp.spawn(_worker, args=(make, plan, buffers, state, barrier), nprocs=plan.workers)


def _slots(module: nn.Module) -> list[Slot]:
    slots, start = [], 0
    for name, parameter in module.named_parameters():
        slots.append(Slot(name, start, tuple(parameter.shape)))
        start += parameter.numel()
    return slots


def _worker(
    rank: int, make: Callable[[], Job], plan: Plan, buffers: Shared, state: dict[str, Any], barrier: Any
) -> None:
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    if plan.compile:
        kernels.use_compiled()
    job = make()
    for slot, parameter in zip(_slots(job.module), job.module.parameters(), strict=True):
        parameter.data = slot.of(buffers.weights)
        parameter.grad = slot.of(buffers.grads[rank])
    Loop(rank, job, plan, buffers, state, barrier).run()


def _give_back() -> None:
    """Batches have many shapes, and glibc keeps the holes between their blocks: a worker grew by 0.15 GB a minute."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


class Loop:
    """One worker's steps; worker 0 also keeps time, writes the log and the checkpoints."""

    def __init__(self, rank: int, job: Job, plan: Plan, buffers: Shared, state: dict[str, Any], barrier: Any) -> None:
        self.rank, self.job, self.plan, self.buffers, self.barrier = rank, job, plan, buffers, barrier
        self.step, self.elapsed, self.tokens = state["step"], state["elapsed"], state["tokens"]
        self.at = tuple(state["at"])
        self.mine = share(_slots(job.module), rank, plan.workers)
        self.log_from = (self.elapsed, self.tokens)
        self.saved_at = self.checked_at = self.elapsed

    def run(self) -> None:
        """Steps until the plan is fulfilled."""
        stream = self.job.stream(self.rank, self.plan.workers).batches(self.at)
        clock = time.monotonic()
        for batch, after in stream:
            self._gradients(batch)
            if self.rank == 0:
                now = time.monotonic()
                self.elapsed += now - clock
                clock = now
            self.barrier.wait()
            speed = rate(self.step, self.plan.ends, self.plan.decay_from)
            done = self.step == self.plan.ends[-1]
            self.step += 1
            self.at = after
            for slot in self.mine:
                update(
                    slot, self.buffers.weights, self.buffers.grads, self.buffers.first, self.buffers.second,
                    rate=speed, step=self.step,
                )  # fmt: skip
            if self.rank == 0:
                self._report(speed, done)
            if self.step % 100 == 0:
                _give_back()
            self.barrier.wait()
            if done:
                return

    def _gradients(self, batch: Any) -> None:
        self.buffers.grads[self.rank].zero_()
        loss, rows = self.job.loss(batch)
        (loss / 1024).backward()
        figures = self.buffers.figures[self.rank]
        figures[_TOKENS] += batch.size
        figures[_LOSS] += float(loss.detach())
        figures[_ROWS] += rows

    def _report(self, speed: float, done: bool) -> None:
        """Log every 20 steps; save every few minutes, and validate now and then. The others wait at the barrier."""
        save = done or self.elapsed - self.saved_at > 60 * self.plan.checkpoint_minutes
        if self.step % 20 and not save:
            return
        figures = self.buffers.figures
        tokens, loss, rows = (float(figures[:, i].sum()) for i in (_TOKENS, _LOSS, _ROWS))
        figures.zero_()
        self.tokens += int(tokens)
        seconds = self.elapsed - self.log_from[0]
        entry: dict[str, float] = {
            "step": self.step, "minutes": self.elapsed / 60, "rate": speed, "tokens": self.tokens,
            "loss": loss / max(rows, 1), "tokens_per_second": tokens / max(seconds, 1e-9),
        }  # fmt: skip
        self.log_from = (self.elapsed, self.tokens)
        if done or self.elapsed - self.checked_at > 60 * self.plan.check_minutes:
            entry |= self.job.validate()
            self.checked_at = self.elapsed
        if save:
            self._save()
        with (self.plan.folder / f"{self.job.name}.jsonl").open("a") as file:
            file.write(json.dumps({k: round(v, 5) for k, v in entry.items()}) + "\n")

    def _save(self) -> None:
        self.saved_at = self.elapsed
        path = self.plan.folder / f"{self.job.name}.pt"
        state = {"step": self.step, "elapsed": self.elapsed, "at": self.at, "tokens": self.tokens}
        tensors = {name: getattr(self.buffers, name) for name in ("weights", "first", "second")}
        torch.save(state | tensors, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)
