"""What single weights do over time: the size of each update, and how much of each gradient is noise."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from torchnotes.diagnostics._moments import plain
from torchnotes.diagnostics.measuring import Place, Shipment, is_ordinary


@dataclass
class _Sample:
    """A sample of the entries of every weight on one device, joined to one vector.

    Attributes:
        names: the weights.
        sizes: entries taken from each.
        weight: of each entry, the number of its weight.
        kept: the entries before the update.
    """

    names: list[str]
    sizes: list[int]
    weight: Tensor
    kept: Tensor

    def sums(self, values: Tensor) -> Tensor:
        """The sum over the entries of each weight, in float64."""
        if values.device.type == "cpu":
            starts = np.cumsum([0, *self.sizes[:-1]])
            return torch.from_numpy(np.add.reduceat(values.numpy(), starts, dtype=np.float64))
        found = torch.zeros(len(self.sizes), dtype=torch.float64, device=values.device)
        return found.index_add_(0, self.weight, values.to(torch.float64))


@dataclass
class _Noise:
    """Exponentially weighted averages of a sample of the gradients, and of their squares."""

    sample: _Sample
    mean: Tensor
    square: Tensor
    weight: float = 0.0
    spread: float = 0.0


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
    """

    UPDATE_ENTRIES = 1024
    NOISE_ENTRIES = 256

    def __init__(self, model: nn.Module, decay: float = 0.9) -> None:
        self.decay = decay
        self._owners = [
            (f"{name}.{key}".lstrip("."), module._parameters, key)
            for name, module in model.named_modules()
            for key in module._parameters
        ]
        self._samples: dict[torch.device, _Sample] = {}
        self._noise: dict[torch.device, _Noise] = {}
        self._before: list[tuple[torch.device, Tensor]] = []

    @torch.no_grad()
    def before_update(self, scale: float = 1.0) -> None:
        """Keep a sample of the weights, and take in one of their gradients."""
        self._before = []
        for device, found in self._by_device().items():
            names = [name for name, _ in found]
            entries = [_entries(parameter, self.UPDATE_ENTRIES) for _, parameter in found]
            sample = _joined(names, entries, torch.float32, self._samples.get(device))
            self._samples[device] = sample
            gradients = [_entries(g, self.NOISE_ENTRIES) for _, p in found if (g := p.grad) is not None]
            self._average(device, names, gradients, scale)

    @torch.no_grad()
    def after_update(self, shipment: Shipment) -> WeightNumbers:
        """Compare with what was kept; the numbers go into the shipment."""
        parameters = {
            name: parameters[key] for name, parameters, key in self._owners if parameters.get(key) is not None
        }
        numbers = WeightNumbers([], [])
        for sample in self._samples.values():
            now = [_entries(p, self.UPDATE_ENTRIES) for name in sample.names if (p := parameters[name]) is not None]
            change = torch.cat(now).to(torch.float32) - sample.kept
            # Squares in float64: no change that a float32 weight can show underflows.
            ratios = (sample.sums(change.double().square()) / sample.sums(sample.kept.double().square())).sqrt()
            numbers.updates.append((shipment.add(ratios), sample.names))
        for noise in self._noise.values():
            left = noise.spread / noise.weight**2  # Var of a weighted mean of independent draws: Σw²/(Σw)² of one's
            if left < 0.999:
                signal, power = noise.sample.sums(noise.mean.square()), noise.sample.sums(noise.square)
                shares = ((1 - signal / (noise.weight * power)) / (1 - left)).clamp(0, 1)
                numbers.noise.append((shipment.add(shares), noise.sample.names))
        self._samples = {device: sample for device, sample in self._samples.items() if sample.names}
        return numbers

    def _average(self, device: torch.device, names: list[str], entries: list[Tensor], scale: float) -> None:
        noise = self._noise.get(device)
        sample = _joined(names, entries, torch.float64, None if noise is None else noise.sample)
        gradient = sample.kept / scale
        if noise is None or noise.sample.names != names or noise.sample.sizes != sample.sizes:
            start = torch.zeros_like(gradient)
            noise = self._noise[device] = _Noise(sample, start, start.clone())
        beta = self.decay
        noise.mean.mul_(beta).add_(gradient, alpha=1 - beta)
        noise.square.mul_(beta).addcmul_(gradient, gradient, value=1 - beta)
        noise.weight = noise.weight * beta + (1 - beta)
        noise.spread = noise.spread * beta**2 + (1 - beta) ** 2

    def _by_device(self) -> dict[torch.device, list[tuple[str, Tensor]]]:
        groups: dict[torch.device, list[tuple[str, Tensor]]] = {}
        seen = set()
        for name, parameters, key in self._owners:
            parameter = parameters.get(key)
            if parameter is None or parameter.dim() < 2 or parameter.grad is None or id(parameter) in seen:
                continue
            if parameter.numel():
                seen.add(id(parameter))
                groups.setdefault(parameter.device, []).append((name, parameter))
        return groups


def _joined(names: list[str], entries: list[Tensor], dtype: torch.dtype, like: _Sample | None) -> _Sample:
    sizes = [entry.numel() for entry in entries]
    kept = torch.cat(entries).to(dtype)
    if like is not None and like.names == names and like.sizes == sizes:
        return _Sample(names, sizes, like.weight, kept)
    return _Sample(names, sizes, torch.repeat_interleave(torch.tensor(sizes, device="cpu")).to(kept.device), kept)


def _entries(tensor: Tensor, wanted: int) -> Tensor:
    """About so many entries, evenly spread; the stride shares no factor with a row, so that every column is met."""
    if is_ordinary(tensor):
        count = tensor.numel()
        stride = _stride(count, tensor.shape[-1], wanted)
        return torch.as_strided(tensor, (1 + (count - 1) // stride,), (stride,))
    values = plain(tensor)
    return values.reshape(-1)[:: _stride(values.numel(), values.shape[-1], wanted)]


@functools.lru_cache(maxsize=256)
def _stride(count: int, row: int, wanted: int) -> int:
    stride = max(1, count // wanted)
    while math.gcd(stride, row) > 1:
        stride -= 1
    return stride
