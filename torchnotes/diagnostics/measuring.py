"""How the tensors of a pass are measured: exactly, for a probe; with the fewest readings, beside training.

Beside training are taken, always over all values: of what every module returns, and of the gradient that arrives there,
the rms, mean, standard deviation, largest magnitude and the number of non-finite values; behind activations also the
zeros, the values on flat ends and the units that are idle for every sample; of parameters and their gradients the rms,
largest magnitude and non-finite values. What is not taken is NaN. Between the kernels of a training step code and data
are cold and every call costs three to five times what it costs in a loop of its own: calls are what is saved here.

On the CPU the numbers are there at once, as bare sums. On another device each is a scalar in float64, which squares
without underflow what float32 can hold; all scalars of a model travel to the host in one copy (:class:`Shipment`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from torchnotes.diagnostics._moments import (
    CHUNK,
    EMPTY,
    SAFE_HIGH,
    SAFE_LOW,
    Ends,
    Pending,
    buffer,
    count_where,
    dense_view,
    measure,
    of_values,
    ones,
    plain,
    resolve,
    sums,
)
from torchnotes.diagnostics.records import Moments

_NAN = math.nan
# Up to this size joining tensors costs less than a call for each.
_TINY = 1 << 12
FIRST = 16  # samples in which most units of a sound layer have worked already: looked at before all the others

Array = np.ndarray[Any, Any]

Sums = tuple[int, float, float, float, float, int, int]
"""Of a CPU tensor without a non-finite value: n, Σx², Σx, min, max, zeros, values on flat ends; −1 for not counted.

A bare tuple, and made into ``Moments`` only when they are read: that is much cheaper than making them inside a hook.
"""


Place = tuple[torch.device, int]
"""A device, and a position among the numbers that come from it."""


@dataclass(frozen=True, slots=True)
class Slot:
    """Where in a shipment the numbers of one tensor are.

    Attributes:
        where: place of the first.
        count: values in the tensor.
        fields: what they are, in order.
    """

    where: Place
    count: int
    fields: tuple[str, ...]


Measured = Pending | Slot | Sums
"""What was taken of a tensor, on the host or on its way there."""


class Measurer(Protocol):
    """A way to measure the tensors of one pass."""

    def output(self, tensor: Tensor, ends: Ends | None, *, activation: bool) -> Measured:
        """Take what a module returned."""
        ...

    def gradient(self, tensor: Tensor) -> Measured:
        """Take the gradient that arrived there."""
        ...

    def parameters(self, tensors: Sequence[Tensor]) -> Sequence[Measured]:
        """Take parameters, and their gradients."""
        ...

    def resolve(self, pending: Sequence[Measured]) -> list[Moments]:
        """Bring the numbers to the host."""
        ...


class Exact:
    """Every moment of every tensor: for a probe."""

    def output(self, tensor: Tensor, ends: Ends | None, *, activation: bool) -> Pending:
        """All moments."""
        return measure(tensor, ends)

    def gradient(self, tensor: Tensor) -> Pending:
        """All moments."""
        return measure(tensor)

    def parameters(self, tensors: Sequence[Tensor]) -> Sequence[Pending]:
        """All moments."""
        return [measure(tensor) for tensor in tensors]

    def resolve(self, pending: Sequence[Measured]) -> list[Moments]:
        """One copy from each device."""
        return resolve([item for item in pending if isinstance(item, (Moments, Tensor))])


class Shipment:
    """Numbers on their way to the host: one copy from each device, not waited for until they are read."""

    def __init__(self) -> None:
        self._parts: dict[torch.device, list[Tensor]] = {}
        self._sizes: dict[torch.device, int] = {}
        self._hosts: dict[torch.device, tuple[Tensor, torch.cuda.Event | None]] = {}
        self._numbers: dict[torch.device, list[float]] = {}

    @property
    def shipped(self) -> bool:
        """Whether it is under way: nothing can be added any more."""
        return bool(self._hosts)

    def add(self, values: Tensor) -> Place:
        """Add a vector or a scalar of numbers; returns where it will be."""
        device = values.device
        at = self._sizes.get(device, 0)
        self._parts.setdefault(device, []).append(values.reshape(-1))
        self._sizes[device] = at + values.numel()
        return device, at

    def ship(self) -> None:
        """Start the copies."""
        for device, parts in self._parts.items():
            if device in self._hosts:
                continue
            joined = torch.cat([part.to(torch.float64) for part in parts])
            if device.type == "cuda":
                host = torch.empty(joined.shape, dtype=torch.float64, device="cpu", pin_memory=True)
                host.copy_(joined, non_blocking=True)
                event = torch.cuda.Event()
                event.record(torch.cuda.current_stream(device))
                self._hosts[device] = host, event
            else:
                self._hosts[device] = (joined if device.type == "cpu" else joined.cpu()), None
        self._parts.clear()

    def read(self, where: Place, count: int) -> list[float]:
        """The numbers that were added there; waits for their copy."""
        device, at = where
        if device not in self._numbers:
            self.ship()
            host, event = self._hosts[device]
            if event is not None:
                event.synchronize()
            self._numbers[device] = host.tolist()
        return self._numbers[device][at : at + count]


class Lean:
    """The fewest readings: for training. One for each measured step.

    Args:
        shipment: where numbers on other devices are put.
    """

    def __init__(self, shipment: Shipment) -> None:
        self._shipment = shipment
        self._nonzero: Array | None = None

    def output(self, tensor: Tensor, ends: Ends | None, *, activation: bool) -> Measured:
        """The scale and the largest magnitude; behind an activation also the zeros and the values on flat ends."""
        self._nonzero = None
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

    def parameters(self, tensors: Sequence[Tensor]) -> Sequence[Measured]:
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
        low, high = torch.aminmax(x)
        return count, square, _NAN, low.item(), high.item(), -1, -1

    def idle_units(self, shape: torch.Size, axis: int) -> Array | None:
        """Of the output measured last, which units were zero for every sample; None where that is not known."""
        if self._nonzero is None:
            return None
        mask = self._nonzero.reshape(shape)
        if axis in (-1, len(shape) - 1):
            mask = mask.reshape(-1, shape[-1])
            worked: Array = np.logical_or.reduce(mask[:FIRST], axis=0)
            if not worked.all():  # most units of a sound layer work in one of the first samples already
                worked = np.logical_or.reduce(mask, axis=0)
        else:
            worked = np.logical_or.reduce(mask, axis=tuple(i for i in range(len(shape)) if i != axis))
        return ~worked

    def resolve(self, pending: Sequence[Measured]) -> list[Moments]:
        """From the shipment, which is waited for."""
        sums = iter(moments_of_sums([item for item in pending if isinstance(item, tuple)]))
        done = []
        for item in pending:
            if isinstance(item, tuple):
                done.append(next(sums))
            elif isinstance(item, Slot):
                numbers = self._shipment.read(item.where, len(item.fields))
                done.append(_of_numbers(item.count, dict(zip(item.fields, numbers, strict=True))))
            else:
                assert isinstance(item, Moments)
                done.append(item)
        return done

    def _with_shares(self, found: Sums, values: Tensor, ends: Ends | None) -> Sums:
        """Add the number of zeros, and of values on flat ends; keep for the units which values were none."""
        x, (count, square, total, low, high, _, _) = values.numpy(), found
        flat = (
            -1 if ends is None else count_where(np.less_equal, x, ends[0]) + count_where(np.greater_equal, x, ends[1])
        )
        if count > CHUNK:
            return count, square, total, low, high, count - count_where(np.not_equal, x, 0.0), flat
        self._nonzero = np.not_equal(x, 0.0, out=buffer()[:count])
        return count, square, total, low, high, count - int(np.count_nonzero(self._nonzero)), flat

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

    def output(self, tensor: Tensor, ends: Ends | None, *, activation: bool) -> Measured:
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


def is_ordinary(tensor: Tensor) -> bool:
    """Whether the values lie in the CPU's memory as one float32 vector."""
    known = type(tensor) is Tensor or type(tensor) is nn.Parameter
    return known and tensor.is_cpu and tensor.dtype is torch.float32 and tensor.is_contiguous()


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
        low, high = torch.aminmax(x)
        return count, square, total, low.item(), high.item(), -1, -1
    return None


def _together(vectors: Sequence[Tensor]) -> list[Sums | None]:
    """The sums of many short vectors, joined to one and in float64; None where a value is not finite."""
    sizes = [vector.numel() for vector in vectors]
    starts = np.cumsum([0, *sizes[:-1]])
    x = torch.cat(list(vectors)).double().numpy()
    with np.errstate(invalid="ignore"):
        columns = (np.add.reduceat(x * x, starts), np.minimum.reduceat(x, starts), np.maximum.reduceat(x, starts))
    return [
        (count, square, _NAN, low, high, -1, -1) if square < math.inf else None
        for count, square, low, high in zip(sizes, *(column.tolist() for column in columns), strict=True)
    ]


def moments_of_sums(rows: Sequence[Sums]) -> list[Moments]:
    """Moments from sums, all at once."""
    if not rows:
        return []
    count, square, total, low, high, zeros, flat = np.asarray(rows, dtype=np.float64).T
    mean_square, mean = square / count, total / count
    rms = np.sqrt(mean_square)
    with np.errstate(divide="ignore"):
        log10 = np.log10(rms)
    std = np.sqrt(np.maximum(mean_square - mean * mean, 0.0))
    share_zero = np.where(zeros < 0, np.nan, zeros / count)
    columns = (log10, rms, mean, std, np.maximum(high, -low), share_zero, flat / count)
    return [
        Moments(row[0], lg, r, m, sd, largest, zero, None if share < 0 else share, 0)
        for row, lg, r, m, sd, largest, zero, share in zip(rows, *(c.tolist() for c in columns), strict=True)
    ]


def _of_numbers(count: int, numbers: dict[str, float]) -> Moments:
    nonfinite = int(numbers["nonfinite"])
    left = count - nonfinite
    if left == 0:
        return replace(EMPTY, count=count, nonfinite=nonfinite)
    rms, mean = numbers["norm"] / math.sqrt(left), numbers["total"] / left
    saturated = numbers.get("saturated")
    return Moments(
        count=count,
        log10_rms=math.log10(rms) if rms > 0 else -math.inf,
        rms=rms,
        mean=mean,
        std=math.sqrt(max(rms * rms - mean * mean, 0.0)),
        max_abs=numbers["largest"],
        share_zero=numbers.get("zeros", _NAN) / count,
        share_saturated=None if saturated is None else saturated / count,
        nonfinite=nonfinite,
    )
