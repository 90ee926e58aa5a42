"""One measured training step, from the hooks to the record: on its way to the host while training goes on."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import torch
from torch import Tensor

from torchnotes.diagnostics.captured import Collected
from torchnotes.diagnostics.growth import growth_per_layer
from torchnotes.diagnostics.history import StepRecord
from torchnotes.diagnostics.measuring import Place, Shipment
from torchnotes.diagnostics.records import LayerSignal
from torchnotes.diagnostics.units import IdleUnits
from torchnotes.diagnostics.weights import WeightNumbers


@dataclass(frozen=True)
class Sample:
    """A sample of the values of one tensor, for a histogram: where it is in the shipment."""

    part: str
    name: str
    place: Place
    count: int


class LazyLayers(Sequence[LayerSignal]):
    """The records of a pass, made when they are first looked at: on most steps nobody does.

    Args:
        make: makes them.
        count: how many they will be.
    """

    def __init__(self, make: Callable[[], Sequence[LayerSignal]], count: int) -> None:
        self._make: Callable[[], Sequence[LayerSignal]] | None = make
        self._count = count
        self._made: Sequence[LayerSignal] | None = None

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> LayerSignal: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[LayerSignal]: ...

    def __getitem__(self, index: int | slice) -> LayerSignal | Sequence[LayerSignal]:
        if self._made is None:
            assert self._make is not None
            self._made, self._make = tuple(self._make()), None  # which held the sums of the whole pass
        return self._made[index]


@dataclass
class MeasuredStep:
    """A measured step.

    Attributes:
        step: its number.
        collected: the pass.
        shipment: every number that is on another device.
        scale: the loss scale, by which gradients of activations are divided.
        weight_scale: the same for those of weights.
        learning_rate: that of the optimiser's first group.
        samples: for histograms.
        idle: units that did nothing.
        weights: updates and noise, once the update is made.
        loss: as handed in.
        losses: of the steps since the last measured one: is each finite?
        layers: the records pooled over ranks.
        full: whether everything was measured, or the scale of the weight layers alone.
        time: when it was measured, in seconds since the epoch.
    """

    step: int
    collected: Collected
    shipment: Shipment
    scale: float
    weight_scale: float
    learning_rate: float | None
    samples: list[Sample]
    idle: IdleUnits
    weights: WeightNumbers | None = None
    loss: Tensor | float | None = None
    losses: list[tuple[int, Tensor | float]] = field(default_factory=list)
    layers: list[LayerSignal] | None = None
    full: bool = True
    time: float = field(default_factory=time.time)
    _places: list[Place] = field(default_factory=list)

    def ship(self) -> None:
        """Start the one copy, once the update is made."""
        if self.shipment.shipped:
            return
        for number in [self.loss, *(loss for _, loss in self.losses)]:
            if isinstance(number, Tensor):
                self._places.append(self.shipment.add(number.detach().clone()))
        self.shipment.ship()

    def records(self) -> list[LayerSignal]:
        """This rank's records, on the host."""
        return self.collected.records(scale=self.scale, weight_scale=self.weight_scale)

    def bad_losses(self) -> list[int]:
        """The steps whose loss was not finite."""
        return [step for (step, _), value in zip(self.losses, self._numbers()[1:], strict=True) if not _finite(value)]

    def record(self) -> StepRecord:
        """Everything, on the host."""
        self.ship()
        collected, layers = self.collected, self.layers
        dead, saturated = self.idle.shares(self.shipment)
        return StepRecord(
            step=self.step,
            layers=LazyLayers(self.records, len(collected.calls)) if layers is None else layers,
            forward_growth=collected.growth("forward") if layers is None else growth_per_layer(layers, "forward"),
            backward_growth=collected.growth("backward") if layers is None else growth_per_layer(layers, "backward"),
            full=self.full,
            nonfinite=collected.nonfinite() if layers is None else nonfinite_in(layers),
            loss=self._numbers()[0],
            learning_rate=self.learning_rate,
            update_ratio={} if self.weights is None else self.weights.ratios(self.shipment),
            dead=dead,
            saturated=saturated,
            gradient_noise={} if self.weights is None else self.weights.shares(self.shipment),
        )

    def _numbers(self) -> list[float | None]:
        """The loss of the step, then those of the steps before."""
        places = iter(self._places)
        values: list[float | None] = []
        for number in [self.loss, *(loss for _, loss in self.losses)]:
            if isinstance(number, Tensor):
                place = next(places, None)  # None: handed in when the copy was already under way
                values.append(float(number) if place is None else self.shipment.read(place, 1)[0])
            else:
                values.append(number)
        return values


def _finite(value: float | None) -> bool:
    return value is None or math.isfinite(value)


def nonfinite_in(layers: Sequence[LayerSignal]) -> int:
    """How many values of activations, gradients and weights are not finite."""
    parts = [
        part
        for layer in layers
        for part in (layer.activation, layer.gradient, layer.weight, layer.weight_gradient, layer.bias)
    ]
    return sum(part.nonfinite for part in parts if part is not None)


def numbers(values: list[Tensor | float]) -> list[float]:
    """On the host, with one copy."""
    device = next((value.device for value in values if isinstance(value, Tensor)), torch.device("cpu"))
    as_tensors = [torch.as_tensor(value, dtype=torch.float64, device=device).reshape(()) for value in values]
    found: list[float] = torch.stack(as_tensors).cpu().tolist() if as_tensors else []
    return found


def loss_scale(scaler: Any) -> float:
    """What a ``GradScaler`` multiplies the loss by; 1 without one."""
    return 1.0 if scaler is None or not scaler.is_enabled() else float(scaler.get_scale())
