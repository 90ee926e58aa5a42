"""Differences along random Gaussian directions through any part of θ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from torchnotes.gradcheck._distributed import place_in_group, summed
from torchnotes.gradcheck._kinks import branches, same_branches
from torchnotes.gradcheck._measure import table_noise
from torchnotes.gradcheck._objective import Objective

#: Steps tried, in units of the typical size of θ's entries: 4^k from 2^-30 to 2^-8.
TRIED = tuple(4.0**k for k in range(-15, -3))


@dataclass(frozen=True)
class Block:
    """Entries lo to hi of tensor t, flattened."""

    t: int
    lo: int
    hi: int

    @property
    def size(self) -> int:
        """How many entries."""
        return self.hi - self.lo


Region = tuple[Block, ...]


def region_size(region: Region) -> int:
    """How many entries a region holds."""
    return sum(b.size for b in region)


def halves(region: Region) -> tuple[Region, Region]:
    """A region cut in two: between tensors where there are several, else in the middle of the one."""
    if len(region) > 1:
        half, total, first = region_size(region) / 2, 0, []
        for k, block in enumerate(region[:-1]):
            total += block.size
            first.append(block)
            if total >= half or k == len(region) - 2:
                return tuple(first), region[k + 1 :]
    (block,) = region
    middle = (block.lo + block.hi) // 2
    return (Block(block.t, block.lo, middle),), (Block(block.t, middle, block.hi),)


def without(region: Region, entries: Sequence[tuple[int, int]]) -> Region:
    """A region with single entries (tensor, position) left out."""
    blocks = list(region)
    for t, i in entries:
        cut = [(b, (Block(t, b.lo, i), Block(t, i + 1, b.hi))) for b in blocks if b.t == t and b.lo <= i < b.hi]
        for block, parts in cut:
            where = blocks.index(block)
            blocks[where : where + 1] = [part for part in parts if part.size]
    return tuple(blocks)


class Probe:
    """Measures z · (dθ_approx − dθ) for standard normal z on any region of θ.

    Args:
        objective: what is evaluated.
        base: the cost at θ.
        exact: the gradient under test, tensor by tensor.
        seed: of the directions.
        memory: bytes that directions may take; beyond it they are drawn again at each use.
        tick: told of each evaluation done.

    Attributes:
        spent: evaluations of J so far, those of all processes of a group together.
    """

    def __init__(
        self,
        objective: Objective,
        base: float,
        exact: Sequence[Tensor],
        seed: int,
        memory: int,
        tick: Callable[[int], None] | None = None,
    ) -> None:
        self.objective, self.base, self.exact = objective, base, exact
        self.spent, self._tick = objective.evaluations, tick
        self._seed, self._memory = seed, memory
        self._cache: dict[tuple[int, int], Tensor] = {}
        self._held = 0
        self.step, self.error = 0.0, float("inf")
        squares = sum(float(t.detach().square().sum()) for t in objective.tensors)
        count = sum(t.numel() for t in objective.tensors)
        self.scale = (squares / count) ** 0.5 or 1.0

    def direction(self, k: int, t: int) -> Tensor:
        """The k-th direction's part on tensor t, flat; the same at every call."""
        if (k, t) in self._cache:
            return self._cache[k, t]
        tensor = self.objective.tensors[t]
        generator = torch.Generator(device=tensor.device).manual_seed((self._seed * 1_000_003 + k) * 10_007 + t)
        z = torch.randn(tensor.numel(), generator=generator, dtype=torch.float64, device=tensor.device)
        size = 8 * z.numel()
        if self._held + size > self._memory:
            self._cache.clear()
            self._held = 0
        if size <= self._memory:
            self._cache[k, t] = z
            self._held += size
        return z

    def change(self, region: Region, k: int, steps: Sequence[float]) -> Tensor:
        """J(θ + h z) − J(θ) for each h, shared out over a process group; θ is put back whatever happens."""
        rank, world = place_in_group()
        self.spent += len(steps)
        values = torch.zeros(len(steps), dtype=torch.float64)
        values[rank::world] = self._change(region, k, steps[rank::world])
        return summed(values, self.objective.tensors[0].device)

    def _change(self, region: Region, k: int, steps: Sequence[float]) -> Tensor:
        tensors = self.objective.tensors
        rows = {b.t: tensors[b.t].detach().contiguous() for b in region}  # itself, or a copy in row-major order
        copied = [t for t, whole in rows.items() if not tensors[t].is_contiguous()]
        flat = [rows[b.t].view(-1)[b.lo : b.hi] for b in region]
        kept = [here.clone() for here in flat]
        values = []
        try:
            with torch.no_grad():
                for h in steps:
                    for block, here, was in zip(region, flat, kept, strict=True):
                        torch.add(was, self.direction(k, block.t)[block.lo : block.hi], alpha=h, out=here)
                    for t in copied:
                        tensors[t].detach().copy_(rows[t])
                    values.append(float(self.objective.rows[0] @ self.objective().detach()) - self.base)
                    if self._tick is not None:
                        self._tick(1)
        finally:
            with torch.no_grad():
                for here, was in zip(flat, kept, strict=True):
                    here.copy_(was)
                for t in copied:
                    tensors[t].detach().copy_(rows[t])
        return torch.tensor(values, dtype=torch.float64)

    def crosses_kink(self, region: Region, k: int) -> bool:
        """Whether the two ends of the line on which a slope is measured lie in different smooth pieces."""
        self.spent += 2
        ends = [branches(lambda h=h: self._change(region, k, [h])) for h in (2 * self.step, -2 * self.step)]  # type: ignore[misc]
        return not same_branches(*ends)

    def claimed(self, region: Region, k: int) -> float:
        """The derivative along z that the gradient under test claims: z · dθ."""
        total = 0.0
        for b in region:
            total += float(self.exact[b.t].reshape(-1)[b.lo : b.hi] @ self.direction(k, b.t)[b.lo : b.hi])
        return total

    def residual(self, region: Region, k: int) -> float:
        """Z · (dθ_approx − dθ), by a five-point difference at the step chosen."""
        return self.slope(region, k, self.step) - self.claimed(region, k)

    def slope(self, region: Region, k: int, h: float) -> float:
        """The derivative along z by a five-point difference."""
        d = self.change(region, k, (-2 * h, -h, h, 2 * h))
        return float((8 * (d[2] - d[1]) - (d[3] - d[0])) / (12 * h))

    def calibrate(self, region: Region) -> tuple[float, float]:
        """Choose the step along a first direction, and measure round-off and truncation there.

        Returns:
            The round-off and the truncation of one directional derivative.
        """
        spacing = 2.0**-26 * self.scale
        table = self.change(region, 0, [k * spacing for k in range(9)])
        sigma = max(float(table_noise(table)), self.objective.unit * abs(self.base))
        steps = torch.tensor([self.scale * s for s in TRIED], dtype=torch.float64)
        up = self.change(region, 0, steps.tolist())
        down = self.change(region, 0, (-steps).tolist())
        central = (up - down) / (2 * steps)
        better = (16 * central[:-1] - central[1:]) / 15
        jump = (better[1:] - better[:-1]).abs()
        truncation = torch.cat([jump, torch.full((1,), torch.inf, dtype=torch.float64)])
        total = torch.nan_to_num(torch.hypot(truncation, sigma / steps[:-1]), nan=torch.inf)
        k = int(total.argmin())
        self.step = float(steps[k])
        round_off = sigma / self.step
        # The jump to the next rung bounds the truncation there, at four times the step; the errors of both count.
        self.error = max(float(total[k]), round_off)
        return round_off, float(truncation[k])
