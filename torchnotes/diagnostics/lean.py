"""Measuring with torch's and NumPy's own reductions, with the fewest calls: for use beside training."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from torchnotes.diagnostics._moments import (
    CHUNK,
    EMPTY,
    SAFE_HIGH,
    SAFE_LOW,
    Ends,
    buffer,
    count_where,
    dense_view,
    of_values,
    ones,
    plain,
    sums,
)
from torchnotes.diagnostics.measuring import (
    FIRST,
    Array,
    IdleMarks,
    Measured,
    Shipment,
    Slot,
    Sums,
    is_ordinary,
    log10_rms_of_sums,
    moments_of_sums,
    of_numbers,
    scales_of_moments,
)
from torchnotes.diagnostics.records import Moments
from torchnotes.diagnostics.sampling import Entries

_NAN = math.nan
# Up to this size joining tensors costs less than a call for each.
_TINY = 1 << 12


class Lean:
    """The fewest readings: for training. One for each measured step.

    Args:
        shipment: where numbers on other devices are put.
    """

    def __init__(self, shipment: Shipment) -> None:
        self._shipment = shipment
        self._nonzero: Array | None = None
        self._shape, self._axis = torch.Size(), -1

    def output(self, tensor: Tensor, ends: Ends | None, axis: int | None) -> Measured:
        """The scale and the largest magnitude; behind an activation also the zeros and the values on flat ends."""
        self._nonzero = None
        activation = axis is not None
        self._shape, self._axis = tensor.shape, -1 if axis is None else axis
        if is_ordinary(tensor):
            values = tensor.detach().view(-1)
            found = host_sums(values)
            if found is None:
                return of_values(values, ends, zeros=activation)
            return self._with_shares(found, values, ends) if activation else found
        tensor = plain(tensor)
        if tensor.device.type != "cpu":
            return self._on_device(tensor, ends, zeros=activation)
        return of_values(_as_vector(tensor), ends, zeros=activation)

    def gradient(self, tensor: Tensor) -> Measured:
        """The scale and the largest magnitude."""
        if is_ordinary(tensor):
            values = (tensor.detach() if tensor.requires_grad else tensor).view(-1)
            return host_sums(values) or of_values(values, None, zeros=False)
        tensor = plain(tensor)
        if tensor.device.type != "cpu":
            return self._on_device(tensor, None, zeros=False)
        values = _as_vector(tensor)
        return host_sums(values) or of_values(values, None, zeros=False)

    def parameters(self, tensors: Sequence[Tensor], entries: Sequence[Entries] = ()) -> Sequence[Measured]:
        """The rms and the largest magnitude; of the smallest, such as biases, in one go."""
        found: list[Measured | None] = [None] * len(tensors)
        tiny: list[int] = []
        for i, tensor in enumerate(tensors):
            count = tensor.numel()
            if 0 < count <= CHUNK and is_ordinary(tensor):
                if count <= _TINY:
                    tiny.append(i)
                    continue
                found[i] = self._of_long(tensor.detach().view(-1))
        if tiny:
            for i, item in zip(tiny, _together([tensors[i].detach().view(-1) for i in tiny]), strict=True):
                found[i] = item
        return [self.gradient(tensor) if item is None else item for tensor, item in zip(tensors, found, strict=True)]

    def _of_long(self, x: Tensor) -> Sums | None:
        count, square = x.numel(), torch.dot(x, x).item()
        if not SAFE_LOW**2 < square / count < SAFE_HIGH**2:
            return None
        return count, square, _NAN, _NAN, _largest(x), -1, -1

    def idle_units(self) -> IdleMarks:
        """Those that were zero for every sample, where the output was one float32 vector in memory."""
        if self._nonzero is None or len(self._shape) < 2:
            return None, None
        axis = self._axis % len(self._shape)
        mask = self._nonzero.reshape(math.prod(self._shape[:axis]), self._shape[axis], -1)
        worked: Array = np.logical_or.reduce(mask[:FIRST], axis=(0, 2))
        if not worked.all():  # most units of a sound layer work in one of the first samples already
            worked = np.logical_or.reduce(mask, axis=(0, 2))
        return (~worked).astype(np.int32), None

    def resolve(self, pending: Sequence[Measured]) -> list[Moments]:
        """From the shipment, which is waited for."""
        sums = iter(moments_of_sums([item for item in pending if isinstance(item, tuple)]))
        done = []
        for item in pending:
            if isinstance(item, tuple):
                done.append(next(sums))
            elif isinstance(item, Slot):
                numbers = self._shipment.read(item.where, len(item.fields))
                done.append(of_numbers(item.count, dict(zip(item.fields, numbers, strict=True))))
            else:
                assert isinstance(item, Moments)
                done.append(item)
        return done

    def log10_rms(self, pending: Sequence[Measured]) -> list[float | None]:
        """The scale of each; None where a value is not finite."""
        of_sums = iter(log10_rms_of_sums([item for item in pending if type(item) is tuple]))
        others = iter(scales_of_moments(self.resolve([item for item in pending if type(item) is not tuple])))
        return [next(of_sums) if type(item) is tuple else next(others) for item in pending]

    def _with_shares(self, found: Sums, values: Tensor, ends: Ends | None) -> Sums:
        """Add the number of zeros, and of values on flat ends; keep for the units which values were none."""
        x, count = values.numpy(), found[0]
        flat = (
            -1 if ends is None else count_where(np.less_equal, x, ends[0]) + count_where(np.greater_equal, x, ends[1])
        )
        if count > CHUNK:
            return (*found[:5], count - count_where(np.not_equal, x, 0.0), flat)
        self._nonzero = np.not_equal(x, 0.0, out=buffer()[:count])
        return (*found[:5], count - int(np.count_nonzero(self._nonzero)), flat)

    def _on_device(self, x: Tensor, ends: Ends | None, *, zeros: bool) -> Moments | Slot:
        """Scalars that stay where they are; nothing here makes the host wait."""
        if x.numel() == 0:
            return EMPTY
        inside = x.nan_to_num(0.0, 0.0, 0.0)
        f64 = torch.float64
        fields = {
            "nonfinite": (x != inside).sum(dtype=f64),
            "total": inside.sum(dtype=f64),
            "norm": torch.linalg.vector_norm(inside, dtype=f64),
            "largest": torch.linalg.vector_norm(inside, math.inf),
        }
        if zeros:
            fields["zeros"] = (x == 0).sum(dtype=f64)
        if ends is not None:
            fields["saturated"] = (x <= ends[0]).sum(dtype=f64) + (x >= ends[1]).sum(dtype=f64)
        places = [self._shipment.add(field) for field in fields.values()]
        return Slot(places[0], x.numel(), tuple(fields))


class Scale(Lean):
    """Only the rms and the non-finite values, by one reading: for the steps between full ones."""

    def output(self, tensor: Tensor, ends: Ends | None, axis: int | None) -> Measured:
        """The scale."""
        return self.gradient(tensor)

    def gradient(self, tensor: Tensor) -> Measured:
        """The scale."""
        if is_ordinary(tensor) and 0 < tensor.numel() <= CHUNK:
            x = (tensor.detach() if tensor.requires_grad else tensor).view(-1)
            return self._of_long(x) or of_values(x, None, zeros=False)
        return super().gradient(tensor)

    def _of_long(self, x: Tensor) -> Sums | None:
        count, square = x.numel(), torch.dot(x, x).item()
        sound = SAFE_LOW**2 < square / count < SAFE_HIGH**2
        return (count, square, _NAN, _NAN, _NAN, -1, -1) if sound else None


def _as_vector(tensor: Tensor) -> Tensor:
    return dense_view(tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.to(torch.float32))


def host_sums(x: Tensor) -> Sums | None:
    """The sums of a CPU vector in three calls; None where they want more care."""
    count = x.numel()
    if count == 0:
        return None
    if count <= CHUNK:
        square, total = torch.dot(x, x).item(), torch.dot(x, ones(count, x.dtype)).item()
    else:
        square, total = sums(x)
    # Comparisons with NaN are false. Where x̄² is most of the mean square, the variance has lost its digits.
    if SAFE_LOW**2 < square / count < SAFE_HIGH**2 and total * total < 0.99 * count * square:
        return count, square, total, square - total * total / count, _largest(x), -1, -1
    return None


def _largest(x: Tensor) -> float:
    low, high = torch.aminmax(x)
    return max(high.item(), -low.item())


def _together(vectors: Sequence[Tensor]) -> list[Sums | None]:
    """The sums of many short vectors, joined to one and in float64; None where a value is not finite."""
    sizes = [vector.numel() for vector in vectors]
    starts = np.cumsum([0, *sizes[:-1]])
    x = torch.cat(list(vectors)).double().numpy()
    with np.errstate(invalid="ignore"):
        columns = (np.add.reduceat(x * x, starts), np.maximum.reduceat(np.abs(x), starts))
    return [
        (count, square, _NAN, _NAN, largest, -1, -1) if square < math.inf else None
        for count, square, largest in zip(sizes, *(column.tolist() for column in columns), strict=True)
    ]
