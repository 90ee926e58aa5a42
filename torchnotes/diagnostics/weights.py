"""What single weights do over time: the size of each update, and how much of each gradient is noise."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from torchnotes.diagnostics._moments import plain
from torchnotes.diagnostics.measuring import Array, Place, Shipment, addresses, are_ordinary, is_ordinary

_shape: Any = Tensor.shape


def _shapes_of(tensors: Sequence[Tensor]) -> list[torch.Size]:
    if are_ordinary(tensors):
        return list(map(_shape.__get__, tensors))
    return [plain(tensor).shape for tensor in tensors]


@dataclass
class _Plan:
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
    def of(cls, names: list[str], tensors: Sequence[Tensor], wanted: int, run: int = 1) -> _Plan:
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
    def _rows(self) -> Array:
        return np.stack([self.sizes, self.strides, self.runs, self.sizes, np.cumsum(self.sizes) - self.sizes])

    def of_addresses(self, tensors: Sequence[Tensor]) -> Array:
        """The plan for compiled code, with the places where the tensors lie now."""
        self._rows[0] = addresses(tensors)
        return self._rows

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


@dataclass
class _Noise:
    """Exponentially weighted averages of a sample of the gradients, and of their squares.

    Attributes:
        plan: the sample.
        mean: averages of the entries.
        square: averages of their squares.
        sums: by weight, Σ mean² and Σ square.
        weight: sum of the weights so far, 1 − βᵗ.
        spread: sum of their squares.
    """

    plan: _Plan
    mean: Tensor
    square: Tensor
    sums: tuple[Tensor, Tensor]
    weight: float = 0.0
    spread: float = 0.0

    def shares(self) -> Tensor | None:
        """By weight, the share of noise; None while the averages are still those of one draw."""
        left = self.spread / self.weight**2  # Var of a weighted mean of independent draws: Σw²/(Σw)² of one's
        if left >= 0.999:
            return None
        signal, power = self.sums
        return ((1 - signal / (self.weight * power)) / (1 - left)).clamp(0, 1)


@dataclass
class WeightNumbers:
    """Where in the shipment the numbers of the weights are, by device."""

    updates: list[tuple[Place, list[str]]]
    noise: list[tuple[Place, list[str]]]

    def ratios(self, shipment: Shipment) -> dict[str, float]:
        """‖Δw‖/‖w‖ by parameter."""
        return dict(_read(self.updates, shipment))

    def shares(self, shipment: Shipment) -> dict[str, float]:
        """Share of noise in the gradient, by parameter."""
        return {name: value for name, value in _read(self.noise, shipment) if not math.isnan(value)}


def _read(places: list[tuple[Place, list[str]]], shipment: Shipment) -> Iterator[tuple[str, float]]:
    for place, names in places:
        yield from zip(names, shipment.read(place, len(names)), strict=True)


class WeightTracker:
    """The size of each update, and how much of each gradient is noise.

    Both are ratios of sums over the entries of a weight, and both are estimated from the same entries at every step,
    spread over all rows and columns: for the update about 1,024 of each weight, for the noise about 256 (or all, where
    there are fewer).

    Args:
        model: the model.
        decay: β of the exponentially weighted averages over logged steps; 0.9 averages about 10 of them.
        compiled: read what lies in the CPU's memory with compiled code.
    """

    UPDATE_ENTRIES = 1024
    NOISE_ENTRIES = 256
    # Most of the cost is that each entry has a cache line of its own. Four columns side by side of a row say as much as
    # four apart; more would leave rows out.
    UPDATE_RUN = 4

    def __init__(self, model: nn.Module, decay: float = 0.9, *, compiled: bool = False) -> None:
        self.decay = decay
        self._compiled = compiled
        self._owners = [
            (f"{name}.{key}".lstrip("."), module._parameters, key)
            for name, module in model.named_modules()
            for key, parameter in module._parameters.items()
            if parameter is None or isinstance(parameter, UninitializedParameter) or parameter.dim() > 1
        ]
        self._owner_of = {name: (parameters, key) for name, parameters, key in self._owners}
        self._plans: dict[torch.device, _Plan] = {}
        self._noise: dict[torch.device, _Noise] = {}
        self._before: list[tuple[_Plan, Tensor]] = []

    @torch.no_grad()
    def before_update(self, scale: float = 1.0) -> None:
        """Keep a sample of the weights, and take in one of their gradients."""
        self._before = []
        for device, (names, weights, gradients) in self._by_device().items():
            plan = self._plans.get(device)
            if plan is None or not plan.fits(names, weights):
                plan = self._plans[device] = _Plan.of(names, weights, self.UPDATE_ENTRIES, self.UPDATE_RUN)
            self._before.append((plan, self._entries(plan, weights).to(torch.float32)))
            self._average(device, names, gradients, 1 / scale)

    @torch.no_grad()
    def after_update(self, shipment: Shipment) -> WeightNumbers:
        """Compare with what was kept; the numbers go into the shipment."""
        numbers = WeightNumbers([], [])
        for plan, before in self._before:
            weights = [parameters[key] for parameters, key in map(self._owner_of.__getitem__, plan.names)]
            numbers.updates.append((shipment.add(self._ratios(plan, weights, before)), plan.names))
        for noise in self._noise.values():
            shares = noise.shares()
            if shares is not None:
                numbers.noise.append((shipment.add(shares), noise.plan.names))
        self._before = []
        return numbers

    def _entries(self, plan: _Plan, tensors: Sequence[Tensor]) -> Tensor:
        if not self._reads(tensors):
            return plan.entries(tensors)
        from torchnotes.diagnostics import _kernels

        found = np.empty(plan.total, dtype=np.float32)
        _kernels.gather(plan.of_addresses(tensors), found, _kernels.team())
        return torch.from_numpy(found)

    def _ratios(self, plan: _Plan, weights: Sequence[Any], before: Tensor) -> Tensor:
        if self._reads(weights):
            from torchnotes.diagnostics import _kernels

            found = np.empty(len(weights))
            _kernels.relative_change(plan.of_addresses(weights), before.numpy(), found, _kernels.team())
            return torch.from_numpy(found)
        change = plan.entries(weights).to(torch.float32) - before
        # Squares in float64: no change that a float32 weight can show underflows.
        return (plan.sums(change.double().square()) / plan.sums(before.double().square())).sqrt()

    def _average(self, device: torch.device, names: list[str], gradients: Sequence[Tensor], factor: float) -> None:
        noise, beta = self._noise.get(device), self.decay
        if noise is None or not noise.plan.fits(names, gradients):
            plan = _Plan.of(names, gradients, self.NOISE_ENTRIES)
            mean = torch.zeros(plan.total, dtype=torch.float64, device=device)
            noise = self._noise[device] = _Noise(plan, mean, mean.clone(), (mean, mean))
        values = self._entries(noise.plan, gradients)
        if values.dtype is torch.float32 and self._compiled and values.device.type == "cpu":
            from torchnotes.diagnostics import _kernels

            sums = np.empty((len(names), 2))
            _kernels.average(
                values.numpy(), noise.plan.sizes, factor, beta, noise.mean.numpy(), noise.square.numpy(), sums
            )
            noise.sums = torch.from_numpy(sums[:, 0]), torch.from_numpy(sums[:, 1])
        else:
            gradient = values.to(torch.float64) * factor
            noise.mean.mul_(beta).add_(gradient, alpha=1 - beta)
            noise.square.mul_(beta).addcmul_(gradient, gradient, value=1 - beta)
            noise.sums = noise.plan.sums(noise.mean.square()), noise.plan.sums(noise.square)
        noise.weight = noise.weight * beta + (1 - beta)
        noise.spread = noise.spread * beta**2 + (1 - beta) ** 2

    def _reads(self, tensors: Sequence[Tensor]) -> bool:
        return self._compiled and are_ordinary(tensors)

    def _by_device(self) -> dict[torch.device, tuple[list[str], list[Tensor], list[Tensor]]]:
        """Names, weights and gradients of all weight matrices that have a gradient."""
        groups: dict[torch.device, tuple[list[str], list[Tensor], list[Tensor]]] = {}
        seen = set()
        for name, parameters, key in self._owners:
            parameter = parameters.get(key)
            if parameter is None or parameter.dim() < 2 or id(parameter) in seen:
                continue
            gradient = parameter.grad
            if gradient is not None and parameter.numel():
                seen.add(id(parameter))
                names, weights, gradients = groups.setdefault(parameter.device, ([], [], []))
                names.append(name)
                weights.append(parameter)
                gradients.append(gradient)
        return groups


@functools.lru_cache(maxsize=256)
def _stride(count: int, row: int, wanted: int) -> int:
    """It shares no factor with a row, so that every column is met."""
    stride = max(1, count // wanted)
    while math.gcd(stride, row) > 1:
        stride -= 1
    return stride
