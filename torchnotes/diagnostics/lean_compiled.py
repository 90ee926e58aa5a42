"""Measuring with one compiled pass over each tensor: the cheapest way beside training, where numba is installed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from torchnotes.diagnostics import _kernels
from torchnotes.diagnostics._moments import Ends, of_values
from torchnotes.diagnostics.lean import Lean
from torchnotes.diagnostics.measuring import IdleMarks, Measured, Shipment, addresses, is_ordinary


class Compiled(Lean):
    """Every moment of every float32 tensor in the CPU's memory; of other tensors what ``Lean`` takes.

    Args:
        shipment: where numbers on other devices are put.
    """

    def __init__(self, shipment: Shipment) -> None:
        super().__init__(shipment)
        self._marks: IdleMarks = (None, None)

    def output(self, tensor: Tensor, ends: Ends | None, axis: int | None) -> Measured:
        """Every moment; behind an activation also the values on flat ends and the idle units."""
        self._marks = (None, None)
        if not is_ordinary(tensor) or not tensor.numel():
            return super().output(tensor, ends, axis)
        if axis is None or tensor.dim() < 2:
            return _sums_of(tensor, ends)
        shape, address = tensor.shape, tensor.data_ptr()
        axis %= len(shape)
        channels = shape[axis]
        size = math.prod(shape[:axis]), channels, math.prod(shape[axis + 1 :])
        idle = torch.empty(channels, dtype=torch.int32, device="cpu")
        square, total, spread, largest, zeros = _kernels.sums_and_idle(address, *size, idle.data_ptr())
        if not largest < math.inf:
            return super().output(tensor, ends, axis)
        if ends is None:
            self._marks = idle, None
            return tensor.numel(), square, total, spread, largest, zeros, -1
        ended = torch.empty_like(idle)
        self._marks = idle, ended
        flat = _kernels.flat_and_idle(address, *size, *ends, ended.data_ptr())
        return tensor.numel(), square, total, spread, largest, zeros, flat

    def gradient(self, tensor: Tensor) -> Measured:
        """Every moment."""
        return _sums_of(tensor, None) if is_ordinary(tensor) and tensor.numel() else super().gradient(tensor)

    def parameters(self, tensors: Sequence[Tensor]) -> Sequence[Measured]:
        """Every moment, in one call."""
        counts = [tensor.numel() if is_ordinary(tensor) else 0 for tensor in tensors]
        own = [tensor for tensor, count in zip(tensors, counts, strict=True) if count]
        rows = np.empty((len(own), 5))
        _kernels.sums_of_many(addresses(own), np.array([count for count in counts if count], dtype=np.int64), rows)
        taken = iter(rows.tolist())
        found: list[Measured] = []
        for tensor, count in zip(tensors, counts, strict=True):
            if not count:
                found.append(super().gradient(tensor))
                continue
            square, total, spread, largest, zeros = next(taken)
            if largest < math.inf:
                found.append((count, square, total, spread, largest, int(zeros), -1))
            else:
                found.append(of_values(tensor.detach().view(-1), None))
        return found

    def idle_units(self) -> IdleMarks:
        """Those that were zero, or on a flat end, for every sample."""
        return self._marks if self._marks[0] is not None else super().idle_units()


def _sums_of(tensor: Tensor, ends: Ends | None) -> Measured:
    count = tensor.numel()
    square, total, spread, largest, zeros = _kernels.sums(tensor.data_ptr(), count)
    if ends is None and largest < math.inf:
        return count, square, total, spread, largest, zeros, -1
    return of_values(tensor.detach().view(-1), ends)
