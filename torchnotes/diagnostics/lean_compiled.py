"""Measuring with one compiled pass over each tensor: the cheapest way beside training, where numba is installed."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from torchnotes.diagnostics import _kernels
from torchnotes.diagnostics._compiling import directly
from torchnotes.diagnostics._moments import Ends, of_values
from torchnotes.diagnostics.lean import Lean
from torchnotes.diagnostics.measuring import (
    Array,
    IdleMarks,
    Measured,
    Shipment,
    addresses,
    are_ordinary,
    is_ordinary,
    log10_rms_of_sums,
    moments_of_sums,
)
from torchnotes.diagnostics.records import Moments
from torchnotes.diagnostics.sampling import Entries

_sums, _sums_and_idle, _flat_and_idle = map(directly, (_kernels.sums, _kernels.sums_and_idle, _kernels.flat_and_idle))
_BYTES = 8 * _kernels.WIDTH  # of a row
_MARK = 4  # bytes of a unit's mark


class Memory:
    """What the measurers of a model's passes use one after the other: nothing in it outlives a pass.

    Attributes:
        rows: how many rows of sums the last pass had.
        marks: room for marks of idle units.
        layout: how the parameters were read the last time.
    """

    def __init__(self) -> None:
        self.rows = 64
        self.marks: Array = np.empty(1 << 12, dtype=np.int32)
        self.layout: _Layout | None = None


class Compiled(Lean):
    """Every moment of every float32 tensor in the CPU's memory; of other tensors what ``Lean`` takes.

    Compiled code writes the sums of each tensor as a row of a table; the number of the row is what was measured. That
    keeps no objects for the garbage collector, of which a step would otherwise leave hundreds.

    Args:
        shipment: where numbers on other devices are put.
        memory: shared with the measurers of the model's other passes.
    """

    def __init__(self, shipment: Shipment, memory: Memory | None = None) -> None:
        super().__init__(shipment)
        self.marks: IdleMarks = (None, None)
        self._memory = Memory() if memory is None else memory
        self._team = _kernels.team()
        self._full: list[Array] = []  # parts of the table
        self._part = np.empty((self._memory.rows, _kernels.WIDTH))
        self._row, self._first, self._end = 0, 0, len(self._part)  # the next, and the first and last of this part
        self._base = self._part.ctypes.data  # where row 0 would lie
        self._room = self._memory.marks
        self._free, self._marks_base = 0, self._room.ctypes.data
        self._scales: list[float] = []  # log₁₀ rms of each row

    def output(self, tensor: Tensor, ends: Ends | None, axis: int | None) -> Measured:
        """Every moment; behind an activation also the values on flat ends and the idle units."""
        if axis is None:
            return self._whole(tensor)
        shape = tensor.shape
        if len(shape) < 2 or not is_ordinary(tensor) or 0 in shape:
            found = super().output(tensor, ends, axis)
            self.marks = super().idle_units()
            return found
        row = self._row
        if row == self._end:
            self._more(1)
        self._row = row + 1
        outer, units, inner = (*shape, 1) if len(shape) == 2 and axis else _around(shape, axis)
        at = self._free
        self._free = end = at + units * (1 if ends is None else 2)
        if end > len(self._room):
            at = self._more_marks(end - at)
        address, place, marks = tensor.data_ptr(), self._base + _BYTES * row, self._marks_base + _MARK * at
        if not _sums_and_idle(address, outer, units, inner, place, marks, self._team):
            self.marks = (None, None)
            return of_values(tensor.detach().view(-1), ends)
        if ends is None:
            self.marks = self._room[at : at + units], None
            return row
        _flat_and_idle(address, outer, units, inner, *ends, place, marks + _MARK * units)
        self.marks = self._room[at : at + units], self._room[at + units : at + 2 * units]
        return row

    def gradient(self, tensor: Tensor) -> Measured:
        """Every moment."""
        count = tensor.numel()
        if not is_ordinary(tensor) or not count:
            return super().gradient(tensor)
        row = self._row
        if row == self._end:
            self._more(1)
        self._row = row + 1
        if _sums(tensor.data_ptr(), count, self._base + _BYTES * row, self._team):
            return row
        return of_values(tensor.detach().view(-1), None)

    _whole = gradient

    def parameters(self, tensors: Sequence[Tensor], entries: Sequence[Entries] = ()) -> Sequence[Measured]:
        """Every moment, and the entries that are wanted on the way, in one call."""
        counts = list(map(Tensor.numel, tensors))
        if not are_ordinary(tensors) or 0 in counts:
            return [self.gradient(tensor) for tensor in tensors]
        ordinary = set(map(id, tensors))
        entries = [
            wanted for wanted in entries if ordinary.issuperset(map(id, wanted.tensors)) or are_ordinary(wanted.tensors)
        ]
        layout = self._memory.layout
        if layout is None or not layout.fits(counts, entries):
            layout = self._memory.layout = _Layout(counts, entries)
        layout.place(tensors, entries)
        rows, first = self._rows(len(tensors) + layout.extra), self._row
        joined = np.empty(layout.total, dtype=np.float32)
        _kernels.sums_and_samples(layout.orders, layout.samples, rows, joined, torch.get_num_threads(), self._team)
        self._row = first + len(tensors)
        at = 0
        for wanted in entries:
            wanted.joined = torch.from_numpy(joined[at : at + wanted.plan.total])
            at += wanted.plan.total
        found: list[Measured] = list(range(first, self._row))
        for i in np.flatnonzero(~np.isfinite(rows[: len(tensors), 4])).tolist():
            found[i] = of_values(tensors[i].detach().view(-1), None)
        return found

    def idle_units(self) -> IdleMarks:
        """Those that were zero, or on a flat end, for every sample."""
        return self.marks

    def resolve(self, pending: Sequence[Measured]) -> list[Moments]:
        """From the table, and from the shipment, which is waited for."""
        where = [item for item in pending if type(item) is int]
        of_table = iter(moments_of_sums(self._table()[where]) if where else ())
        others = iter(super().resolve([item for item in pending if type(item) is not int]))
        return [next(of_table if type(item) is int else others) for item in pending]

    def log10_rms(self, pending: Sequence[Measured]) -> list[float | None]:
        """The scale of each; None where a value is not finite."""
        if len(self._scales) != self._row:
            self._scales = log10_rms_of_sums(self._table())
        others = iter(super().log10_rms([item for item in pending if type(item) is not int]))
        return [self._scales[item] if type(item) is int else next(others) for item in pending]

    def _table(self) -> Array:
        """All rows so far."""
        self._memory.rows = max(self._row, 1)
        used = self._part[: self._row - self._first]
        return np.concatenate([*self._full, used]) if self._full else used

    def _more(self, rows: int) -> None:
        """Begin a part of the table that has room for so many rows, and for as many as there are."""
        self._full.append(self._part[: self._row - self._first])
        self._part = np.empty((max(rows, self._row, 64), _kernels.WIDTH))
        self._first, self._end = self._row, self._row + len(self._part)
        self._base = self._part.ctypes.data - _BYTES * self._first

    def _rows(self, count: int) -> Array:
        """The next rows, side by side."""
        if self._row + count > self._end:
            self._more(count)
        return self._part[self._row - self._first :][:count]

    def _more_marks(self, count: int) -> int:
        """Room for more marks; those that were given before stay where they are."""
        self._room = self._memory.marks = np.empty(2 * len(self._room) + count, dtype=np.int32)
        self._free, self._marks_base = count, self._room.ctypes.data
        return 0


class _Layout:
    """Orders to compiled code for reading some parameters, of which some entries are wanted too.

    Args:
        counts: values in each tensor.
        entries: the samples that are wanted.

    Attributes:
        orders, samples: as ``sums_and_samples`` wants them.
        extra: tensors of which nothing but a sample is wanted; they come last.
        total: entries of all samples.
    """

    def __init__(self, counts: list[int], entries: Sequence[Entries]) -> None:
        self._counts = counts
        self._plans = [wanted.plan for wanted in entries]
        rows = [plan.rows.copy() for plan in self._plans]
        at = 0
        for row, plan in zip(rows, self._plans, strict=True):
            row[4] += at
            at += plan.total
        self.total = at
        self.samples: Array = np.ascontiguousarray(np.concatenate([np.empty((5, 0), dtype=np.int64), *rows], axis=1))
        self.orders: Array = np.empty((4, 0), dtype=np.int64)
        self.extra = 0
        self._owner: list[int] = [-1]  # of each sample, the number of its tensor

    def fits(self, counts: list[int], entries: Sequence[Entries]) -> bool:
        """Whether it is one for these."""
        return self._counts == counts and self._plans == [wanted.plan for wanted in entries]

    def place(self, tensors: Sequence[Tensor], entries: Sequence[Entries]) -> None:
        """Write down where the tensors lie now."""
        sampled = [tensor for wanted in entries for tensor in wanted.tensors]
        if len(self._owner) != len(sampled) or not all(
            map(operator.is_, map(tensors.__getitem__, self._owner), sampled)
        ):
            self._match(tensors, sampled)
        places = addresses(tensors)
        self.orders[0, : len(tensors)] = places
        self.samples[0] = places[self._owner] if not self.extra else addresses(sampled)
        if self.extra:
            self.orders[0, len(tensors) :] = self.samples[0, self.orders[3, len(tensors) :]]

    def _match(self, tensors: Sequence[Tensor], sampled: Sequence[Tensor]) -> None:
        """Find each sampled tensor among the tensors."""
        where = {id(tensor): i for i, tensor in enumerate(tensors)}
        found = [where.pop(id(tensor), None) for tensor in sampled]  # popped: one sample of each is taken on the way
        extra = [i for i, place in enumerate(found) if place is None]
        self._owner = [place for place in found if place is not None]
        self.extra = len(extra)
        own = np.full(len(tensors), -1, dtype=np.int64)
        for i, place in enumerate(found):
            if place is not None:
                own[place] = i
        self.orders = np.empty((4, len(tensors) + self.extra), dtype=np.int64)
        self.orders[1] = [*self._counts, *(sampled[i].numel() for i in extra)]
        self.orders[2] = [1] * len(tensors) + [0] * self.extra
        self.orders[3] = [*own, *extra]


@functools.lru_cache(maxsize=256)
def _around(shape: torch.Size, axis: int) -> tuple[int, int, int]:
    """Values before an axis, along it and behind it."""
    axis %= len(shape)
    return math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])
