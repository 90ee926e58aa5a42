"""What single units and single weights do over time: dead and saturated units, updates, gradient noise."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from torchnotes.diagnostics.capture import Call
from torchnotes.diagnostics.moments import flat_ends, plain
from torchnotes.init.following import activation_name


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
        self._now[call.label] = (_all_zero(values, axis, never_negative=_never_negative(type(call.module))), flat)

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


def _all_zero(values: Tensor, axis: int, *, never_negative: bool) -> Tensor:
    """Which units are exactly zero for every sample, as 0 and 1.

    A column's sum, one matrix-vector product, finds the candidates. Of values that are never negative it also decides;
    in a signed column the terms may have cancelled, so there the candidates are looked at entry by entry.
    """
    if values.device.type != "cpu":
        return (values.movedim(axis, -1).reshape(-1, values.shape[axis]) == 0).all(dim=0).to(torch.int32)
    if axis == values.dim() - 1:
        columns = values.reshape(-1, values.shape[-1])
        sums = torch.mv(columns.t(), _ones(columns.shape[0], columns.dtype))
    else:
        sums = values.movedim(axis, 0).flatten(1).sum(dim=1)
    zero = sums == 0
    if not never_negative and bool(zero.any()):
        where = zero.nonzero().squeeze(1)
        zero[where] = (values.index_select(axis, where).movedim(axis, 0).flatten(1) == 0).all(dim=1)
    return zero.to(torch.int32)


@functools.lru_cache(maxsize=8)
def _ones(count: int, dtype: torch.dtype) -> Tensor:
    return torch.ones(count, dtype=dtype)


_known_signs: dict[type, bool] = {}


def _never_negative(kind: type) -> bool:
    if kind not in _known_signs:
        _known_signs[kind] = activation_name(kind) in ("relu", "relu6", "sigmoid")
    return _known_signs[kind]


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
class _Group:
    """The weights of one device, their samples joined to one vector."""

    names: list[str]
    sizes: list[int]
    kept: Tensor
    ratios: Tensor | None = None


@dataclass
class _Noise:
    """Exponentially weighted averages of a sample of the gradients, and of their squares."""

    names: list[str]
    sizes: list[int]
    mean: Tensor
    square: Tensor
    weight: float = 0.0
    spread: float = 0.0


class WeightTracker:
    """The size of each update, and how much of each gradient is noise.

    Both are ratios of sums over the entries of a weight, and both are estimated from a fixed sample of them: for the
    update 16 to 31 whole rows, evenly spread (or all, where there are fewer); for the noise 256 to 511 single entries.

    Args:
        decay: β of the exponentially weighted averages over logged steps; 0.9 averages about 10 of them.
    """

    ROWS = 16
    ENTRIES = 256

    def __init__(self, decay: float = 0.9) -> None:
        self.decay = decay
        self._groups: dict[torch.device, _Group] = {}
        self._noise: dict[torch.device, _Noise] = {}

    def before_update(self, model: nn.Module, scale: float = 1.0) -> None:
        """Keep a sample of the weights, and take in one of their gradients."""
        self._groups = {}
        for device, found in _by_device(model).items():
            rows = [_rows(parameter) for _, parameter in found]
            names = [name for name, _ in found]
            self._groups[device] = _Group(names, [row.numel() for row in rows], torch.cat(rows))
            entries = [_entries(parameter.grad) for _, parameter in found if parameter.grad is not None]
            self._average(device, names, entries, scale)

    def after_update(self, model: nn.Module) -> None:
        """Compare with what was kept: ‖Δw‖/‖w‖, left on the device."""
        parameters = dict(model.named_parameters())
        for group in self._groups.values():
            now = torch.cat([_rows(parameters[name]) for name in group.names])
            before, change = _norms(group.kept, group.sizes), _norms(now - group.kept, group.sizes)
            group.ratios = change / before

    def ratios(self) -> dict[str, float]:
        """‖Δw‖/‖w‖ by parameter, on the host."""
        found: dict[str, float] = {}
        for group in self._groups.values():
            if group.ratios is not None:
                found.update(zip(group.names, group.ratios.cpu().tolist(), strict=True))
        return found

    def noise(self) -> dict[str, float]:
        """By parameter, 1 − ‖E g‖²/E‖g‖², corrected for the noise that is left in the average itself."""
        found: dict[str, float] = {}
        for noise in self._noise.values():
            left = noise.spread / noise.weight**2  # Var of a weighted mean of independent draws: Σw²/(Σw)² of one's
            if left > 0.999:
                continue
            signal, power = _sums(noise.mean.square(), noise.sizes), _sums(noise.square, noise.sizes)
            shares = ((1 - signal / (noise.weight * power)) / (1 - left)).clamp(0, 1).cpu().tolist()
            found.update((n, share) for n, share in zip(noise.names, shares, strict=True) if not math.isnan(share))
        return found

    def _average(self, device: torch.device, names: list[str], entries: list[Tensor], scale: float) -> None:
        sizes = [entry.numel() for entry in entries]
        gradient = torch.cat(entries) / scale
        noise = self._noise.get(device)
        if noise is None or noise.names != names or noise.sizes != sizes:
            start = torch.zeros_like(gradient)
            noise = self._noise[device] = _Noise(names, sizes, start, start.clone())
        beta = self.decay
        noise.mean.mul_(beta).add_(gradient, alpha=1 - beta)
        noise.square.mul_(beta).addcmul_(gradient, gradient, value=1 - beta)
        noise.weight = noise.weight * beta + (1 - beta)
        noise.spread = noise.spread * beta**2 + (1 - beta) ** 2


def _by_device(model: nn.Module) -> dict[torch.device, list[tuple[str, nn.Parameter]]]:
    groups: dict[torch.device, list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in model.named_parameters():
        if parameter.dim() >= 2 and parameter.grad is not None and parameter.numel():
            groups.setdefault(parameter.device, []).append((name, parameter))
    return groups


def _rows(parameter: Tensor) -> Tensor:
    values = plain(parameter)
    stride = max(1, values.shape[0] // WeightTracker.ROWS) if values.dim() else 1
    return values[::stride].reshape(-1).to(torch.float32)


def _entries(gradient: Tensor) -> Tensor:
    flat = plain(gradient).reshape(-1)
    return flat[:: max(1, flat.numel() // WeightTracker.ENTRIES)].to(torch.float64)


def _sums(values: Tensor, sizes: list[int]) -> Tensor:
    return torch.stack([part.sum() for part in values.split(sizes)])


def _norms(values: Tensor, sizes: list[int]) -> Tensor:
    """‖x‖ of each part: without underflow for entries above 1e-19, far below what a weight's last digit is."""
    return torch.stack([torch.dot(part, part) for part in values.split(sizes)]).double().sqrt()
