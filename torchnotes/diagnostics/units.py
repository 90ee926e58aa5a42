"""What single units and single weights do over time: dead and saturated units, updates, gradient noise."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from torchnotes.diagnostics.capture import Call
from torchnotes.diagnostics.moments import flat_ends, plain


@dataclass
class _Units:
    """Run lengths for the units of one layer: logged steps in a row in which the unit was zero, or saturated."""

    zero: Tensor
    flat: Tensor | None
    zero_steps: Tensor
    steps: int = 0


class UnitTracker:
    """Counts, for each unit behind an activation module, for how many logged steps in a row it did nothing.

    A unit is one feature of the last axis, or one channel of a convolution's output. For a sample a ReLU unit is zero
    half of the time, which is healthy; zero for every sample of every batch in a window it passes no gradient and
    cannot come back. Counted on the tensor's device; ``host`` brings the shares back.

    Args:
        window: logged steps in a row after which a unit counts.
    """

    def __init__(self, window: int) -> None:
        self.window = window
        self._units: dict[str, _Units] = {}
        self._now: dict[str, tuple[Tensor, Tensor | None]] = {}

    def begin(self) -> None:
        """Forget the pass that is being taken in."""
        self._now.clear()

    def observe(self, call: Call, output: Tensor) -> None:
        """Take in one output, as it is recorded."""
        if call.role != "activation" or output.dim() < 2 or output.numel() == 0:
            return
        values = plain(output)
        axis = call.channel_axis % values.dim()
        ends = flat_ends(call.module)
        flat = None
        if ends is not None:
            others = [dim for dim in range(values.dim()) if dim != axis]
            flat = ((values <= ends[0]) | (values >= ends[1])).to(torch.int32).amin(dim=others)
        self._now[call.label] = (_all_zero(values, axis), flat)

    def commit(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Count the pass as a logged step.

        Returns:
            (dead, saturated): by layer, the share of units that did nothing through the whole window.
        """
        dead: dict[str, Tensor] = {}
        saturated: dict[str, Tensor] = {}
        for label, (zero, flat) in self._now.items():
            units = self._units.get(label)
            if units is None or units.zero.shape != zero.shape or units.zero.device != zero.device:
                start = torch.zeros_like(zero)
                units = self._units[label] = _Units(start, None if flat is None else start.clone(), start.clone())
            units.zero.add_(1).mul_(zero)
            units.zero_steps.add_(zero)
            units.steps += 1
            dead[label] = (units.zero >= self.window).float().mean()
            if flat is not None and units.flat is not None:
                units.flat.add_(1).mul_(flat)
                saturated[label] = (units.flat >= self.window).float().mean()
        self._now.clear()
        return dead, saturated

    def maps(self) -> dict[str, list[float]]:
        """By layer, for each unit the share of logged steps in which it was zero for every sample."""
        return {label: (units.zero_steps / max(1, units.steps)).tolist() for label, units in self._units.items()}


def _all_zero(values: Tensor, axis: int) -> Tensor:
    """Which units are exactly zero for every sample, as 0 and 1.

    A column's sum, one matrix-vector product, finds the candidates; only they are looked at entry by entry, since in a
    signed column the terms may have cancelled.
    """
    if axis == values.dim() - 1:
        columns = values.reshape(-1, values.shape[-1])
    elif values.device.type == "cpu" and axis == 1:
        columns = values.flatten(2).transpose(1, 2).reshape(-1, values.shape[1])
    else:
        columns = values.movedim(axis, -1).reshape(-1, values.shape[axis])
    if columns.device.type != "cpu":
        return (columns == 0).all(dim=0).to(torch.int32)
    sums = columns.new_ones(columns.shape[0]) @ columns
    zero = sums == 0
    if bool(zero.any()):
        where = zero.nonzero().squeeze(1)
        zero[where] = (columns[:, where] == 0).all(dim=0)
    return zero.to(torch.int32)


def host(values: Mapping[str, Tensor]) -> dict[str, float]:
    """Numbers that were left on a device, by name, with one copy."""
    return dict(zip(values, _to_host(list(values.values())), strict=True))


def _to_host(values: list[Tensor]) -> list[float]:
    if not values:
        return []
    device = values[0].device
    result: list[float] = torch.stack([value.to(device, torch.float64) for value in values]).cpu().tolist()
    return result


@dataclass
class WeightTracker:
    """The size of each update, and how much of each gradient is noise.

    Args:
        decay: β of the exponentially weighted averages over logged steps; 0.9 averages about 10 of them.
        sample: entries of each gradient that are averaged; the share of noise is a ratio of sums over entries, and a
            fixed sample of them estimates it.
    """

    decay: float = 0.9
    sample: int = 256
    _before: dict[str, Tensor] = field(default_factory=dict)
    _ratios: dict[str, Tensor] = field(default_factory=dict)
    _noise: dict[str, tuple[Tensor, Tensor, float, float]] = field(default_factory=dict)
    _picks: dict[str, Tensor] = field(default_factory=dict)

    def before_update(self, model: nn.Module, scale: float = 1.0) -> None:
        """Keep the weights, and take in their gradients."""
        self._ratios = {}
        for name, parameter in model.named_parameters():
            if parameter.dim() < 2 or parameter.grad is None:
                continue
            weight = plain(parameter)
            kept = self._before.get(name)
            if kept is None or kept.shape != weight.shape or kept.device != weight.device or kept.dtype != weight.dtype:
                self._before[name] = weight.clone()
            else:
                kept.copy_(weight)
            self._take_gradient(name, plain(parameter.grad).reshape(-1), scale)

    def after_update(self, model: nn.Module) -> None:
        """Compare with what was kept: ‖Δw‖/‖w‖, both on the device."""
        for name, parameter in model.named_parameters():
            kept = self._before.get(name)
            if kept is None or parameter.grad is None:
                continue
            weight = plain(parameter)
            size = _norm(kept)
            kept.sub_(weight)
            self._ratios[name] = _norm(kept) / size

    def ratios(self) -> dict[str, float]:
        """‖Δw‖/‖w‖ by parameter, on the host."""
        return host(self._ratios)

    def noise(self) -> dict[str, float]:
        """By parameter, 1 − ‖E g‖²/E‖g‖², corrected for the noise that is left in the average itself."""
        names, shares = [], []
        for name, (mean, square, weight, spread) in self._noise.items():
            left = spread / weight**2  # Var of a weighted mean of n independent draws: Σw²/(Σw)² of one draw's
            if left < 0.999:
                names.append(name)
                shares.append((1 - (mean.square().sum() / weight) / square.sum()) / (1 - left))
        return {n: min(1.0, max(0.0, v)) for n, v in zip(names, _to_host(shares), strict=True) if not math.isnan(v)}

    def _take_gradient(self, name: str, gradient: Tensor, scale: float) -> None:
        if gradient.numel() == 0:
            return
        picks = self._picks.get(name)
        if picks is None or picks.device != gradient.device:
            stride = max(1, gradient.numel() // self.sample)
            picks = self._picks[name] = torch.arange(0, gradient.numel(), stride, device=gradient.device)
        chosen = gradient[picks].to(torch.float64) / scale
        mean, square, weight, spread = self._noise.get(name, (0.0 * chosen, 0.0 * chosen, 0.0, 0.0))
        beta = self.decay
        self._noise[name] = (
            mean * beta + (1 - beta) * chosen,
            square * beta + (1 - beta) * chosen.square(),
            weight * beta + (1 - beta),
            spread * beta**2 + (1 - beta) ** 2,
        )


def _norm(values: Tensor) -> Any:
    """‖x‖, without squares that under- or overflow for any update or weight above 1e-12."""
    flat = values.reshape(-1)
    if flat.device.type == "cpu" and flat.dtype == torch.float32:
        return torch.dot(flat, flat).double().sqrt()
    return torch.linalg.vector_norm(flat.double() if flat.dtype != torch.float32 else flat).double()
