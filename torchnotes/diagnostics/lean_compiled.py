"""Measuring with one compiled pass over each tensor: the cheapest way beside training, where numba is installed."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from torchnotes.diagnostics import _kernels
from torchnotes.diagnostics._moments import Ends, of_values
from torchnotes.diagnostics.lean import Lean
from torchnotes.diagnostics.measuring import IdleMarks, Measured, Shipment, addresses, are_ordinary, is_ordinary

_sums, _sums_and_idle = _kernels.sums, _kernels.sums_and_idle


class Compiled(Lean):
    """Every moment of every float32 tensor in the CPU's memory; of other tensors what ``Lean`` takes.

    Args:
        shipment: where numbers on other devices are put.
    """

    def __init__(self, shipment: Shipment) -> None:
        super().__init__(shipment)
        self.marks: IdleMarks = (None, None)
        self._team = _kernels.team()

    def output(self, tensor: Tensor, ends: Ends | None, axis: int | None) -> Measured:
        """Every moment; behind an activation also the values on flat ends and the idle units."""
        if axis is None:
            return self._whole(tensor)
        count, shape = tensor.numel(), tensor.shape
        if not is_ordinary(tensor) or not count or len(shape) < 2:
            found = super().output(tensor, ends, axis)
            self.marks = super().idle_units()
            return found
        size = _around(shape, axis)
        idle = np.empty(size[1], dtype=np.int32)
        sums = _sums_and_idle(tensor.data_ptr(), *size, idle, self._team)
        if not sums[3] < math.inf:
            self.marks = (None, None)
            return of_values(tensor.detach().view(-1), ends)
        if ends is None:
            self.marks = idle, None
            return count, *sums, -1
        ended = np.empty_like(idle)
        self.marks = idle, ended
        return count, *sums, _kernels.flat_and_idle(tensor.data_ptr(), *size, *ends, ended)

    def gradient(self, tensor: Tensor) -> Measured:
        """Every moment."""
        count = tensor.numel()
        if not is_ordinary(tensor) or not count:
            return super().gradient(tensor)
        sums = _sums(tensor.data_ptr(), count, self._team)
        return (count, *sums, -1) if sums[3] < math.inf else of_values(tensor.detach().view(-1), None)

    _whole = gradient

    def parameters(self, tensors: Sequence[Tensor]) -> Sequence[Measured]:
        """Every moment, in one call."""
        counts = list(map(Tensor.numel, tensors))
        if not are_ordinary(tensors) or 0 in counts:
            return [self.gradient(tensor) for tensor in tensors]
        rows = np.full((len(tensors), 7), -1.0)
        _kernels.sums_of_many(addresses(tensors), np.array(counts, dtype=np.int64), rows, self._team)
        found: list[Measured] = list(map(tuple, rows.tolist()))
        for i in np.flatnonzero(~np.isfinite(rows[:, 4])).tolist():
            found[i] = self.gradient(tensors[i])
        return found

    def idle_units(self) -> IdleMarks:
        """Those that were zero, or on a flat end, for every sample."""
        return self.marks


@functools.lru_cache(maxsize=256)
def _around(shape: torch.Size, axis: int) -> tuple[int, int, int]:
    """Values before an axis, along it and behind it."""
    axis %= len(shape)
    return math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])
