"""What measuring the tensors of a pass is, and the way a probe does it: exactly.

Beside training there are two ways with the same results, that of ``lean`` and that of ``lean_compiled``. Taken are,
always over all values: of what every module returns, and of the gradient that arrives there, the rms, mean, standard
deviation, largest magnitude and the number of non-finite values; behind activations also the zeros, the values on flat
ends and the units that are idle for every sample; of parameters and their gradients the rms, largest magnitude and
non-finite values. What is not taken is NaN. Between the kernels of a training step code and data are cold and every
call costs three to five times what it costs in a loop of its own: calls are what is saved there.

On the CPU the numbers are there at once, as bare sums. On another device each is a scalar in float64, which squares
without underflow what float32 can hold; all scalars of a model travel to the host in one copy (:class:`Shipment`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from torchnotes.diagnostics._moments import (
    EMPTY,
    Ends,
    Pending,
    measure,
    resolve,
)
from torchnotes.diagnostics.records import Moments

if TYPE_CHECKING:
    from torchnotes.diagnostics.sampling import Entries

_NAN = math.nan
FIRST = 16  # samples in which most units of a sound layer have worked already: looked at before all the others

Array = np.ndarray[Any, Any]

Sums = tuple[float, ...]
"""Of a CPU tensor without a non-finite value: n, Σx², Σx, Σ(x − x̄)², max|x|, zeros, values on flat ends.

Sums that were not taken are NaN, counts −1.

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


Measured = Pending | Slot | Sums | int
"""What was taken of a tensor, on the host or on its way there; a number is that of a row in its measurer's table."""


Marks = Array | Tensor
"""Of each unit 1 where it did nothing for any sample, else 0: int32, on the CPU an array."""

IdleMarks = tuple[Marks | None, Marks | None]
"""The units that were zero for every sample, and those on a flat end; None where that was not looked for."""


class Measurer(Protocol):
    """A way to measure the tensors of one pass."""

    def output(self, tensor: Tensor, ends: Ends | None, axis: int | None) -> Measured:
        """Take what a module returned; behind an activation ``axis`` is that of its units, elsewhere None."""
        ...

    def idle_units(self) -> IdleMarks:
        """Which units of the output measured last did nothing."""
        ...

    def gradient(self, tensor: Tensor) -> Measured:
        """Take the gradient that arrived there."""
        ...

    def parameters(self, tensors: Sequence[Tensor], entries: Sequence[Entries] = ()) -> Sequence[Measured]:
        """Take parameters, and their gradients; on the way also the entries that are wanted, where that is cheaper."""
        ...

    def resolve(self, pending: Sequence[Measured]) -> list[Moments]:
        """Bring the numbers to the host."""
        ...

    def log10_rms(self, pending: Sequence[Measured]) -> list[float | None]:
        """The scale of each; None where a value is not finite."""
        ...


class Exact:
    """Every moment of every tensor: for a probe."""

    def output(self, tensor: Tensor, ends: Ends | None, axis: int | None) -> Pending:
        """All moments."""
        return measure(tensor, ends)

    def idle_units(self) -> IdleMarks:
        """Not looked for."""
        return None, None

    def gradient(self, tensor: Tensor) -> Pending:
        """All moments."""
        return measure(tensor)

    def parameters(self, tensors: Sequence[Tensor], entries: Sequence[Entries] = ()) -> Sequence[Pending]:
        """All moments."""
        return [measure(tensor) for tensor in tensors]

    def resolve(self, pending: Sequence[Measured]) -> list[Moments]:
        """One copy from each device."""
        return resolve([item for item in pending if isinstance(item, (Moments, Tensor))])

    def log10_rms(self, pending: Sequence[Measured]) -> list[float | None]:
        """One copy from each device."""
        return scales_of_moments(self.resolve(pending))


class Shipment:
    """Numbers on their way to the host: one copy from each device, not waited for until they are read.

    What is added on the CPU is kept as it is until then: it must be nobody else's.
    """

    def __init__(self) -> None:
        self._parts: dict[torch.device, list[Tensor]] = {}
        self._sizes: dict[torch.device, int] = {}
        self._hosts: dict[torch.device, tuple[Tensor, torch.cuda.Event | None]] = {}
        self._numbers: dict[torch.device, list[float]] = {}
        self._here: list[Tensor] = []

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
            if device.type == "cpu":
                self._here, self._hosts[device] = parts, (_NOTHING, None)
                continue
            joined = torch.cat([part.to(torch.float64) for part in parts])
            if device.type == "cuda":
                host = torch.empty(joined.shape, dtype=torch.float64, device="cpu", pin_memory=True)
                host.copy_(joined, non_blocking=True)
                event = torch.cuda.Event()
                event.record(torch.cuda.current_stream(device))
                self._hosts[device] = host, event
            else:
                self._hosts[device] = joined.cpu(), None
        self._parts = {}

    def read(self, where: Place, count: int) -> list[float]:
        """The numbers that were added there; waits for their copy."""
        device, at = where
        if device not in self._numbers:
            self.ship()
            host, event = self._hosts[device]
            if event is not None:
                event.synchronize()
            if device.type == "cpu":
                self._numbers[device] = [number for part in self._here for number in part.tolist()]
                self._here = []
            else:
                self._numbers[device] = host.tolist()
        return self._numbers[device][at : at + count]


def is_ordinary(tensor: Tensor) -> bool:
    """Whether the values lie in the CPU's memory as one float32 vector."""
    known = type(tensor) is Tensor or type(tensor) is nn.Parameter
    return known and tensor.is_cpu and tensor.dtype is torch.float32 and tensor.is_contiguous()


_NOTHING = torch.empty(0, device="cpu")
_is_cpu: Any = Tensor.is_cpu
_dtype: Any = Tensor.dtype


def are_ordinary(tensors: Sequence[Tensor]) -> bool:
    """Whether all of them are; asked together, that costs a third."""
    return (
        set(map(type, tensors)) <= {Tensor, nn.Parameter}
        and all(map(_is_cpu.__get__, tensors))
        and set(map(_dtype.__get__, tensors)) <= {torch.float32}
        and all(map(Tensor.is_contiguous, tensors))
    )


def addresses(tensors: Iterable[Tensor]) -> Array:
    """Where the values of ordinary tensors lie, for compiled code."""
    return np.array(list(map(Tensor.data_ptr, tensors)), dtype=np.int64)


def scales_of_moments(found: Sequence[Moments]) -> list[float | None]:
    """log₁₀ rms of each; None where a value is not finite."""
    return [None if moments.nonfinite else moments.log10_rms for moments in found]


def log10_rms_of_sums(rows: Sequence[Sums] | Array) -> list[float]:
    """log₁₀ rms, without making moments."""
    if not len(rows):
        return []
    count, square = np.asarray(rows, dtype=np.float64).T[:2]
    with np.errstate(divide="ignore"):
        found: list[float] = (0.5 * np.log10(square / count)).tolist()
    return found


def moments_of_sums(rows: Sequence[Sums] | Array) -> list[Moments]:
    """Moments from sums, all at once."""
    if not len(rows):
        return []
    count, square, total, spread, largest, zeros, flat = np.asarray(rows, dtype=np.float64).T
    rms = np.sqrt(square / count)
    with np.errstate(divide="ignore"):
        log10 = np.log10(rms)
    std = np.sqrt(np.maximum(spread, 0.0) / count)
    share_zero = np.where(zeros < 0, np.nan, zeros / count)
    columns = (log10, rms, total / count, std, largest, share_zero, flat / count)
    return [
        Moments(int(row[0]), lg, r, m, sd, largest, zero, None if share < 0 else share, 0)
        for row, lg, r, m, sd, largest, zero, share in zip(rows, *(c.tolist() for c in columns), strict=True)
    ]


def of_numbers(count: int, numbers: dict[str, float]) -> Moments:
    """Moments of a tensor of so many values from the scalars that were taken of it on its device, by name."""
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
