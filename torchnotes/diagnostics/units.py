"""What single units do over time: units that are dead, or saturated, for every sample of many steps."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from torchnotes.diagnostics._moments import plain
from torchnotes.diagnostics.captured import Call
from torchnotes.diagnostics.measuring import FIRST, Array, IdleMarks, Marks, Place, Shipment, is_ordinary

Kind = Literal["zero", "flat"]


@dataclass
class _Runs:
    """Run lengths for the units of all layers, joined: logged steps in a row in which a unit did nothing."""

    labels: list[str]
    sizes: list[int]
    length: Tensor
    total: Tensor
    layer: Tensor  # of each unit, the number of its layer
    size: Tensor  # units of each layer
    steps: int = 0

    @functools.cached_property
    def _arrays(self) -> tuple[Array, Array, Array]:
        """For compiled code."""
        return self.length.numpy(), self.total.numpy(), self.size.numpy()

    def count(self, idle: Tensor, window: int, *, compiled: bool) -> Tensor:
        """Count a step; returns by layer the share of units that did nothing through the window."""
        self.steps += 1
        if compiled and idle.is_cpu:
            from torchnotes.diagnostics import _tracking_kernels

            found = np.empty(len(self.sizes))
            _tracking_kernels.count_idle(idle.numpy(), *self._arrays, window, found)
            return torch.from_numpy(found)
        self.length.add_(1).mul_(idle)
        self.total.add_(idle)
        gone = (self.length >= window).to(torch.float64)
        shares = torch.zeros(len(self.sizes), dtype=torch.float64, device=gone.device)
        return shares.index_add_(0, self.layer, gone).div_(self.size)


class UnitTracker:
    """Counts, for each unit behind an activation module, for how many logged steps in a row it did nothing.

    A unit is one feature of the last axis, or one channel of a convolution's output. For a sample a ReLU unit is zero
    half of the time, which is healthy; zero for every sample of every batch in a window it passes no gradient and
    cannot come back. Counted on the tensor's device, for all layers together.

    Args:
        window: logged steps in a row after which a unit counts.
        compiled: count what lies in the CPU's memory with compiled code.
    """

    def __init__(self, window: int, *, compiled: bool = False) -> None:
        self.window = window
        self._compiled = compiled
        self._runs: dict[tuple[Kind, torch.device], _Runs] = {}
        self._parked: dict[tuple[Kind, str], tuple[Tensor, Tensor]] = {}
        self._now: dict[Kind, tuple[list[Call], list[Marks]]] = {"zero": ([], []), "flat": ([], [])}

    def begin(self) -> None:
        """Forget the pass that is being taken in."""
        for calls, idle in self._now.values():
            calls.clear()
            idle.clear()

    def observe(self, call: Call, output: Tensor, marks: IdleMarks) -> None:
        """Take in one output, as it is recorded.

        Args:
            call: the call it came from.
            output: the tensor.
            marks: which units were idle, where that is known already.
        """
        (zero, flat), ends = marks, call.site.ends
        if zero is None and (output.dim() < 2 or output.numel() == 0):
            return
        if zero is None or (flat is None and ends is not None):
            values = output.detach() if is_ordinary(output) else plain(output)
            axis = call.channel_axis % values.dim()
            zero = _idle(values, axis, 0.0, 0.0) if zero is None else zero
            flat = None if ends is None else _idle(values, axis, *ends)
        found: dict[Kind, Marks | None] = {"zero": zero, "flat": flat}
        for kind, idle in found.items():
            if idle is not None:
                calls, all_idle = self._now[kind]
                calls.append(call)
                all_idle.append(idle)

    def commit(self, shipment: Shipment) -> IdleUnits:
        """Count the pass as a logged step; what was found goes into the shipment."""
        found = IdleUnits()
        for kind, (calls, all_idle) in self._now.items():
            by_device: dict[torch.device, tuple[list[str], list[Marks]]] = {}
            for call, idle in zip(calls, all_idle, strict=True):
                labels, marks = by_device.setdefault(idle.device if isinstance(idle, Tensor) else _CPU, ([], []))
                labels.append(call.label)
                marks.append(idle)
            for device, (labels, marks) in by_device.items():
                runs = self._runs_of(kind, device, labels, list(map(len, marks)))
                shares = runs.count(_joined(marks), self.window, compiled=self._compiled)
                (found.zero if kind == "zero" else found.flat).append((shipment.add(shares), labels))
        self.begin()
        return found

    def _runs_of(self, kind: Kind, device: torch.device, labels: list[str], sizes: list[int]) -> _Runs:
        """The run lengths so far; from zero for layers that are new or have changed."""
        before = self._runs.get((kind, device))
        if before is not None and before.labels == labels and before.sizes == sizes:
            return before
        length = torch.zeros(sum(sizes), dtype=torch.int32, device=device)
        size = torch.tensor(sizes, device="cpu")
        layer = torch.repeat_interleave(size).to(device)
        runs = _Runs(labels, sizes, length, torch.zeros_like(length), layer, size.to(device))
        if before is not None:  # some layers are not called on every step: each keeps what it has
            self._park(kind, before)
            runs.steps = before.steps
        for label, own_length, own_total in zip(labels, length.split(sizes), runs.total.split(sizes), strict=True):
            kept = self._parked.get((kind, label))
            if kept is not None and kept[0].shape == own_length.shape and kept[0].device == device:
                own_length.copy_(kept[0])
                own_total.copy_(kept[1])
        self._runs[kind, device] = runs
        return runs

    def _park(self, kind: Kind, runs: _Runs) -> None:
        for label, length, total in zip(
            runs.labels, runs.length.split(runs.sizes), runs.total.split(runs.sizes), strict=True
        ):
            self._parked[kind, label] = length, total

    def maps(self) -> dict[str, list[float]]:
        """By layer, for each unit the share of logged steps in which it was zero for every sample."""
        found: dict[str, list[float]] = {}
        for (kind, _), runs in self._runs.items():
            if kind == "zero":
                shares = (runs.total / max(1, runs.steps)).split(runs.sizes)
                found.update(zip(runs.labels, (share.tolist() for share in shares), strict=True))
        return found


@dataclass
class IdleUnits:
    """Where in the shipment the shares of idle units are, and of which layers they are."""

    zero: list[tuple[Place, list[str]]] = field(default_factory=list)
    flat: list[tuple[Place, list[str]]] = field(default_factory=list)

    def shares(self, shipment: Shipment) -> tuple[dict[str, float], dict[str, float]]:
        """(dead, saturated): by layer, the share of units that did nothing through the whole window."""
        zero, flat = (
            {
                label: share
                for place, labels in found
                for label, share in zip(labels, shipment.read(place, len(labels)), strict=True)
            }
            for found in (self.zero, self.flat)
        )
        return zero, flat


_CPU = torch.device("cpu")


def _joined(marks: Sequence[Marks]) -> Tensor:
    tensors = [mark for mark in marks if isinstance(mark, Tensor)]
    return torch.cat(tensors) if tensors else torch.from_numpy(np.concatenate(marks))


def _idle(values: Tensor, axis: int, low: float, high: float) -> Marks:
    """Which units are idle for every sample, as 0 and 1: at 0, or with values beyond the two ends.

    On the CPU the first samples are looked at first: a unit that works in one of them needs no further reading.
    """
    by_unit = values.movedim(axis, -1).reshape(-1, values.shape[axis]) if axis != values.dim() - 1 else values
    by_unit = by_unit.reshape(-1, values.shape[axis])
    if values.device.type != "cpu":
        return _is_idle(by_unit, low, high).all(dim=0).to(torch.int32)
    first = by_unit[:FIRST]
    if first.dtype is torch.float32:
        x = first.numpy()
        idle = np.equal(x, low) if low == high else (x <= low) | (x >= high)
        candidates = np.logical_and.reduce(idle, axis=0)
        if not candidates.any():
            return _none_of(len(candidates))
        where = torch.from_numpy(candidates.nonzero()[0])
    else:
        where = _is_idle(first, low, high).all(dim=0).nonzero().squeeze(1)
    found = np.zeros(by_unit.shape[1], dtype=np.int32)
    found[where.numpy()] = _is_idle(by_unit.index_select(1, where), low, high).all(dim=0).numpy()
    return found


def _is_idle(x: Tensor, low: float, high: float) -> Tensor:
    return x == low if low == high else (x <= low) | (x >= high)


@functools.lru_cache(maxsize=64)
def _none_of(count: int) -> Array:
    return np.zeros(count, dtype=np.int32)
