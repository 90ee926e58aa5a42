"""Samples of the entries of weights and gradients: which entries are taken of each, and the joined values."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from torchnotes.diagnostics._moments import plain
from torchnotes.diagnostics.measuring import Array, addresses, is_ordinary

_shape: Any = Tensor.shape
_layout: Any = Tensor.layout
_is_nested: Any = Tensor.is_nested


def _shapes_of(tensors: Sequence[Tensor]) -> list[torch.Size]:
    if (
        set(map(type, tensors)) <= {Tensor, nn.Parameter}
        and set(map(_layout.__get__, tensors)) <= {torch.strided}
        and not any(map(_is_nested.__get__, tensors))
    ):
        return list(map(_shape.__get__, tensors))
    return [plain(tensor).shape for tensor in tensors]


@dataclass(eq=False)
class SamplePlan:
    """Which entries are taken of each of some tensors on one device: the joined sample is one vector.

    Attributes:
        names: of the weights.
        shapes: of their values: a sparse gradient has other ones at every step.
        strides: from one run of entries to the next, for each tensor.
        runs: entries side by side in each run.
        sizes: entries taken from each in all.
        owner: of each entry, the number of its tensor; needed on a device that is not the CPU.
    """

    names: list[str]
    shapes: list[torch.Size]
    strides: Array
    runs: Array
    sizes: Array
    owner: Tensor | None

    @classmethod
    def of(cls, names: list[str], tensors: Sequence[Tensor], wanted: int, run: int = 1) -> SamplePlan:
        """About ``wanted`` entries of each, evenly spread, in runs of ``run`` where there are many more than that."""
        local = [tensor if is_ordinary(tensor) else plain(tensor) for tensor in tensors]
        counts = [x.numel() for x in local]
        runs = [run if count >= 4 * run * wanted else 1 for count in counts]
        strides = [
            _stride(count, x.shape[-1], wanted // own) for x, count, own in zip(local, counts, runs, strict=True)
        ]
        sizes = np.array(
            [own * (1 + (count - own) // stride) for count, stride, own in zip(counts, strides, runs, strict=True)],
            dtype=np.int64,
        )
        device = local[0].device
        owner = None if device.type == "cpu" else torch.from_numpy(np.arange(len(sizes)).repeat(sizes)).to(device)
        return cls(
            names, _shapes_of(tensors), np.array(strides, dtype=np.int64), np.array(runs, dtype=np.int64), sizes, owner
        )

    def fits(self, names: list[str], tensors: Sequence[Tensor]) -> bool:
        """Whether it is a plan for these."""
        return self.names == names and self.shapes == _shapes_of(tensors)

    @functools.cached_property
    def total(self) -> int:
        """Entries in all."""
        return int(self.sizes.sum())

    @functools.cached_property
    def rows(self) -> Array:
        """For compiled code: addresses, strides, runs, sizes, and where each part begins in the joined sample."""
        return np.stack([self.sizes, self.strides, self.runs, self.sizes, np.cumsum(self.sizes) - self.sizes])

    def at(self, tensors: Sequence[Tensor]) -> Array:
        """``rows`` with the places where the tensors lie now."""
        self.rows[0] = addresses(tensors)
        return self.rows

    def entries(self, tensors: Sequence[Tensor]) -> Tensor:
        """The sample."""
        parts = []
        for tensor, stride, run, size in zip(
            tensors, self.strides.tolist(), self.runs.tolist(), self.sizes.tolist(), strict=True
        ):
            values = tensor.detach() if is_ordinary(tensor) else plain(tensor).reshape(-1)
            parts.append(torch.as_strided(values, (size // run, run), (stride, 1)).reshape(-1))
        return torch.cat(parts)

    def sums(self, values: Tensor) -> Tensor:
        """The sum over the entries of each tensor, in float64."""
        if self.owner is None:
            starts = np.cumsum(self.sizes) - self.sizes
            return torch.from_numpy(np.add.reduceat(values.numpy(), starts, dtype=np.float64))
        found = torch.zeros(len(self.sizes), dtype=torch.float64, device=values.device)
        return found.index_add_(0, self.owner, values.to(torch.float64))


@dataclass(slots=True, eq=False)
class Entries:
    """A sample that is wanted of some tensors: whoever reads them anyway may take it on the way.

    Attributes:
        plan: which entries.
        tensors: of which tensors.
        joined: the entries, once somebody has taken them.
    """

    plan: SamplePlan
    tensors: Sequence[Tensor]
    joined: Tensor | None = None

    def values(self) -> Tensor:
        """The sample, taken now if nobody has."""
        if self.joined is None:
            self.joined = self.plan.entries(self.tensors)
        return self.joined


@functools.lru_cache(maxsize=256)
def _stride(count: int, row: int, wanted: int) -> int:
    """It shares no factor with a row, so that every column is met."""
    stride = max(1, count // wanted)
    while math.gcd(stride, row) > 1:
        stride -= 1
    return stride
