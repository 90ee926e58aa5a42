"""What single weights do over time: the size of each update, and how much of each gradient is noise."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from torchnotes.diagnostics.measuring import Place, Shipment, are_ordinary
from torchnotes.diagnostics.sampling import Entries, SamplePlan


@dataclass
class _Noise:
    """Exponentially weighted averages of a sample of the gradients, and of their squares.

    Attributes:
        plan: the sample.
        mean: averages of the entries.
        square: averages of their squares.
        shares: by weight, the share of noise.
        weight: sum of the weights so far, 1 − βᵗ.
        spread: sum of their squares.
    """

    plan: SamplePlan
    mean: Tensor
    square: Tensor
    shares: Tensor
    weight: float = 0.0
    spread: float = 0.0

    @property
    def left(self) -> float:
        """Var of a weighted mean of independent draws: Σw²/(Σw)² of one's."""
        return self.spread / self.weight**2

    @property
    def means_nothing(self) -> bool:
        """Whether the averages are still those of one draw."""
        return self.weight == 0 or self.left >= 0.999

    def take(self, values: Tensor, factor: float, beta: float, *, compiled: bool) -> None:
        """Average one more draw, factor · values."""
        self.weight = self.weight * beta + (1 - beta)
        self.spread = self.spread * beta**2 + (1 - beta) ** 2
        left = min(self.left, 0.999)  # of one draw alone it is 1, and the shares mean nothing
        if compiled and values.is_cpu and values.dtype is torch.float32:
            from torchnotes.diagnostics import _tracking_kernels

            shares = np.empty(len(self.plan.sizes))
            state = self.weight, left, self.mean.numpy(), self.square.numpy(), shares
            _tracking_kernels.average(values.numpy(), self.plan.sizes, factor, beta, *state)
            self.shares = torch.from_numpy(shares)
            return
        gradient = values.to(torch.float64) * factor
        self.mean.mul_(beta).add_(gradient, alpha=1 - beta)
        self.square.mul_(beta).addcmul_(gradient, gradient, value=1 - beta)
        signal, power = self.plan.sums(self.mean.square()), self.plan.sums(self.square)
        self.shares = ((1 - signal / (self.weight * power)) / (1 - left)).clamp(0, 1)


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
        self._found: list[Any] = []  # the parameters that ``_matrices`` was made from
        self._matrices: list[tuple[str, Tensor]] = []
        self._owner_of = {name: (parameters, key) for name, parameters, key in self._owners}
        self._plans: dict[torch.device, SamplePlan] = {}
        self._noise: dict[torch.device, _Noise] = {}
        self._before: list[Entries] = []

    @torch.no_grad()
    def wanted(self) -> dict[torch.device, tuple[Entries, Entries]]:
        """The samples that ``before_update`` will need, of the weights and of their gradients on each device."""
        pairs = {}
        for device, (names, weights, gradients) in self._by_device().items():
            plan = self._plans.get(device)
            if plan is None or not plan.fits(names, weights):
                plan = self._plans[device] = SamplePlan.of(names, weights, self.UPDATE_ENTRIES, self.UPDATE_RUN)
            noise = self._noise.get(device)
            if noise is None or not noise.plan.fits(names, gradients):
                of_noise = SamplePlan.of(names, gradients, self.NOISE_ENTRIES)
                mean = torch.zeros(of_noise.total, dtype=torch.float64, device=device)
                noise = self._noise[device] = _Noise(of_noise, mean, mean.clone(), mean)
            pairs[device] = Entries(plan, weights), Entries(noise.plan, gradients)
        return pairs

    @torch.no_grad()
    def before_update(self, pairs: Mapping[torch.device, tuple[Entries, Entries]], scale: float = 1.0) -> None:
        """Keep the sample of the weights, and average that of their gradients.

        Args:
            pairs: what ``wanted`` gave.
            scale: a loss scale, by which gradients are divided.
        """
        self._before = []
        for device, (weights, gradients) in pairs.items():
            if weights.values().dtype is not torch.float32:
                weights.joined = weights.values().to(torch.float32)
            self._before.append(weights)
            self._noise[device].take(gradients.values(), 1 / scale, self.decay, compiled=self._compiled)

    @torch.no_grad()
    def after_update(self, shipment: Shipment) -> WeightNumbers:
        """Compare with what was kept; the numbers go into the shipment."""
        numbers = WeightNumbers([], [])
        for before in self._before:
            names = before.plan.names
            weights = [parameters[key] for parameters, key in map(self._owner_of.__getitem__, names)]
            numbers.updates.append((shipment.add(self._ratios(before.plan, weights, before.values())), names))
        for noise in self._noise.values():
            if not noise.means_nothing:
                numbers.noise.append((shipment.add(noise.shares), noise.plan.names))
        self._before = []
        return numbers

    def _ratios(self, plan: SamplePlan, weights: Sequence[Any], before: Tensor) -> Tensor:
        if self._compiled and are_ordinary(weights):
            from torchnotes.diagnostics import _kernels

            found = np.empty(len(weights))
            _kernels.relative_change(plan.at(weights), before.numpy(), found, _kernels.team())
            return torch.from_numpy(found)
        change = plan.entries(weights).to(torch.float32) - before
        # Squares in float64: no change that a float32 weight can show underflows.
        return (plan.sums(change.double().square()) / plan.sums(before.double().square())).sqrt()

    def _by_device(self) -> dict[torch.device, tuple[list[str], list[Tensor], list[Tensor]]]:
        """Names, weights and gradients of all weight matrices that have a gradient."""
        found = [parameters.get(key) for _, parameters, key in self._owners]
        if len(found) != len(self._found) or not all(map(operator.is_, found, self._found)):
            self._found, seen = found, set()
            self._matrices = []
            for (name, _, _), parameter in zip(self._owners, found, strict=True):
                if parameter is not None and parameter.dim() > 1 and id(parameter) not in seen:
                    seen.add(id(parameter))
                    self._matrices.append((name, parameter))
        groups: dict[torch.device, tuple[list[str], list[Tensor], list[Tensor]]] = {}
        for name, parameter in self._matrices:
            gradient = parameter.grad
            if gradient is not None and parameter.numel():
                names, weights, gradients = groups.setdefault(parameter.device, ([], [], []))
                names.append(name)
                weights.append(parameter)
                gradients.append(gradient)
        return groups
