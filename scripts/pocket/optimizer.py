"""Muon for the matrices of the layers, Adam for everything else, over flat shared buffers.

Muon: the momentum of a matrix is replaced by the nearest orthogonal matrix, found by a few
Newton-Schulz steps (K. Jordan, 2024). Each worker updates its own share of the tensors.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scripts.pocket import kernels

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_BETA_MUON, _BETA_1, _BETA_2 = 0.95, 0.9, 0.97


@dataclass(frozen=True, slots=True)
class Slot:
    """One tensor of the flat buffers."""

    name: str
    start: int
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        return torch.Size(self.shape).numel()

    @property
    def orthogonal(self) -> bool:
        """Whether Muon updates it."""
        return (
            len(self.shape) == 2 and not self.name.startswith(("subjects", "heads")) and "embed_tokens" not in self.name
        )

    @property
    def cost(self) -> float:
        """Rough work of one update."""
        return self.size * (1 + (min(self.shape) / 8 if self.orthogonal else 0))

    def of(self, flat: Tensor) -> Tensor:
        """The tensor's view of a flat buffer."""
        return flat[self.start : self.start + self.size].view(self.shape)


def share(slots: list[Slot], rank: int, world: int) -> list[Slot]:
    """The slots of one worker; all shares cost about the same."""
    loads = [0.0] * world
    mine: list[Slot] = []
    for slot in sorted(slots, key=lambda s: (-s.cost, s.start)):
        to = loads.index(min(loads))
        loads[to] += slot.cost
        if to == rank:
            mine.append(slot)
    return mine


def orthogonal(matrix: Tensor) -> Tensor:
    """Approximately U V^T of the matrix's singular value decomposition."""
    a, b, c = _COEFFICIENTS
    x = matrix.to(kernels.PRODUCTS)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / (x.norm() + 1e-12)
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.T if tall else x).float()


@torch.no_grad()
def update(
    slot: Slot, weights: Tensor, grads: Tensor, first: Tensor, second: Tensor, *, rate: float, step: int
) -> None:
    """One step for one slot; grads: [world, N], the others flat [N]. `rate` is 1 at the peak."""
    weight, m = slot.of(weights), slot.of(first)
    grad = sum(slot.of(g) for g in grads)
    assert isinstance(grad, Tensor)
    if slot.orthogonal:
        m.mul_(_BETA_MUON).add_(grad)
        move = orthogonal(grad + _BETA_MUON * m)
        size = 0.0008 * rate * max(slot.shape) ** 0.5
        weight.mul_(1 - 0.0004 * rate).add_(move, alpha=-size)
        return
    v = slot.of(second)
    m.lerp_(grad, 1 - _BETA_1)
    v.lerp_(grad * grad, 1 - _BETA_2)
    scale = (1 - _BETA_2**step) ** 0.5 / (1 - _BETA_1**step)
    peak = 0.003 if len(slot.shape) == 2 else 0.004
    weight.addcdiv_(m, v.sqrt().add_(1e-12), value=-peak * rate * scale)
