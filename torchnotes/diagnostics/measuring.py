"""How the tensors of a pass are measured: exactly, for a probe; with the fewest readings, beside training.

Beside training are taken, always over all values: of what modules return the rms, mean, standard deviation and the
number of non-finite values, behind activations also the zeros and the values on flat ends; the same scale of the
gradient that arrives there, but for activations and dropouts; of parameters and their gradients the rms and the non-
finite values. What is not taken is NaN. Between the kernels of a training step code and data are cold and every call
costs three to five times what it costs in a loop of its own: calls are what is saved here, and parameters are taken
all at once.

On the CPU the numbers are there at once. On another device each is a scalar in float64, which squares without underflow
what float32 can hold; all scalars of a model travel to the host in one copy (:class:`Shipment`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from torchnotes.diagnostics._moments import (
    EMPTY,
    SAFE_HIGH,
    SAFE_LOW,
    Ends,
    Pending,
    dense_view,
    measure,
    of_values,
    plain,
    resolve,
    sums,
    with_shares,
)
from torchnotes.diagnostics.records import Moments

_NAN = math.nan
# Up to this size a float32 norm has 5 digits, whatever the order in which it is summed.
_SMALL = 1 << 18


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


class Measurer(Protocol):
    """A way to measure the tensors of one pass."""

    def output(self, tensor: Tensor, ends: Ends | None, *, activation: bool) -> Pending | Slot:
        """Take what a module returned."""
        ...

    def gradient(self, tensor: Tensor) -> Pending | Slot:
        """Take the gradient that arrived there."""
        ...

    def parameters(self, tensors: Sequence[Tensor]) -> Sequence[Pending | Slot]:
        """Take parameters, and their gradients."""
        ...

    def resolve(self, pending: Sequence[Pending | Slot]) -> list[Moments]:
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

    def resolve(self, pending: Sequence[Pending | Slot]) -> list[Moments]:
        """One copy from each device."""
        return resolve([item for item in pending if not isinstance(item, Slot)])


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

    def output(self, tensor: Tensor, ends: Ends | None, *, activation: bool) -> Moments | Slot:
        """The scale; behind an activation also the share of zeros and of values on flat ends."""
        if is_ordinary(tensor):
            values = tensor.detach().view(-1)
            found = _scale(values)
            if found is None:
                return of_values(values, ends, zeros=activation)
            return with_shares(found, values.numpy(), ends) if activation else found
        tensor = plain(tensor)
        if tensor.device.type != "cpu":
            return self._on_device(tensor, ends, zeros=activation)
        return of_values(_as_vector(tensor), ends, zeros=activation)

    def gradient(self, tensor: Tensor) -> Moments | Slot:
        """The scale alone: two dot products that come out finite also say that every value was finite."""
        return self._scale_of(tensor)

    def _scale_of(self, tensor: Tensor) -> Moments | Slot:
        if is_ordinary(tensor):
            values = tensor.detach().view(-1)
            return _scale(values) or of_values(values, None, zeros=False)
        tensor = plain(tensor)
        if tensor.device.type != "cpu":
            return self._on_device(tensor, None, zeros=False)
        values = _as_vector(tensor)
        return _scale(values) or of_values(values, None, zeros=False)

    def parameters(self, tensors: Sequence[Tensor]) -> Sequence[Moments | Slot]:
        """The rms alone, of all small ones in one call."""
        small = [i for i, tensor in enumerate(tensors) if is_ordinary(tensor) and 0 < tensor.numel() <= _SMALL]
        found: list[Moments | Slot | None] = [None] * len(tensors)
        if small:
            chosen = [tensors[i] for i in small]
            with torch.no_grad():
                norms = torch.stack(torch._foreach_norm(chosen, 2)).tolist()
            for i, tensor, norm in zip(small, chosen, norms, strict=True):
                rms = norm / math.sqrt(tensor.numel())
                if SAFE_LOW < rms < SAFE_HIGH:
                    found[i] = Moments(tensor.numel(), math.log10(rms), rms, _NAN, _NAN, _NAN, _NAN, None, 0)
                elif norm == 0 and not tensor.detach().numpy().any():
                    found[i] = Moments(tensor.numel(), -math.inf, 0.0, _NAN, _NAN, _NAN, _NAN, None, 0)
        return [self._scale_of(tensor) if item is None else item for tensor, item in zip(tensors, found, strict=True)]

    def resolve(self, pending: Sequence[Pending | Slot]) -> list[Moments]:
        """From the shipment, which is waited for."""
        done = []
        for item in pending:
            if isinstance(item, Slot):
                numbers = self._shipment.read(item.where, len(item.fields))
                done.append(_of_numbers(item.count, dict(zip(item.fields, numbers, strict=True))))
            else:
                assert isinstance(item, Moments)
                done.append(item)
        return done

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
        }
        if zeros:
            fields["zeros"] = (x == 0).sum(dtype=f64)
        if ends is not None:
            fields["saturated"] = (x <= ends[0]).sum(dtype=f64) + (x >= ends[1]).sum(dtype=f64)
        places = [self._shipment.add(field) for field in fields.values()]
        return Slot(places[0], x.numel(), tuple(fields))


def is_ordinary(tensor: Tensor) -> bool:
    """Whether the values lie in the CPU's memory as one float32 vector."""
    known = type(tensor) is Tensor or type(tensor) is nn.Parameter
    return known and tensor.is_cpu and tensor.dtype is torch.float32 and tensor.is_contiguous()


def _as_vector(tensor: Tensor) -> Tensor:
    return dense_view(tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.to(torch.float32))


def _scale(x: Tensor) -> Moments | None:
    """rms, mean and std of a CPU vector; None where they want more care."""
    count = x.numel()
    if count == 0:
        return None
    square, total = sums(x)
    mean_square, mean = square / count, total / count
    variance = mean_square - mean * mean
    # Comparisons with NaN are false. Where x̄² is most of the mean square, the difference has lost its digits.
    if SAFE_LOW**2 < mean_square < SAFE_HIGH**2 and variance > 1e-2 * mean_square:
        rms = math.sqrt(mean_square)
        return Moments(count, math.log10(rms), rms, mean, math.sqrt(variance), _NAN, _NAN, None, 0)
    return None


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
        max_abs=_NAN,
        share_zero=numbers.get("zeros", _NAN) / count,
        share_saturated=None if saturated is None else saturated / count,
        nonfinite=nonfinite,
    )
