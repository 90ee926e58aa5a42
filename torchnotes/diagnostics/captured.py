"""What a capture has taken of one pass: the calls of the modules, and the records that are made of them.

Nothing here hooks or measures: numbers that are still on a device come to the host when the records are made.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from torchnotes.diagnostics._moments import Ends
from torchnotes.diagnostics.growth import growth_of, trusted, within_format
from torchnotes.diagnostics.measuring import Measured, Measurer
from torchnotes.diagnostics.records import Direction, LayerSignal, Moments, Role
from torchnotes.init.network import fans


class FunctionCall(nn.Module):
    """An activation that a model calls as a function, in the shape of a module: records ask for its function.

    Args:
        function: the activation, with all its arguments but the signal; its ``repr`` says which.
    """

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, z: Tensor) -> Tensor:
        """Call it."""
        return self.function(z)

    def extra_repr(self) -> str:
        """Which function, with which arguments."""
        return repr(self.function)


@dataclass(slots=True)
class Site:
    """A module, with what is needed of it at each of its calls."""

    name: str
    module: nn.Module
    role: Role
    ends: Ends | None
    calls: int = 0
    fans: tuple[torch.Size, tuple[int, int]] | None = None
    kind: str = ""
    channel_axis: int = -1  # of the units in its output

    def __post_init__(self) -> None:
        if isinstance(self.module, nn.modules.conv._ConvNd):
            self.channel_axis = 1
        self.kind = self.kind or type(self.module).__name__

    def fans_of(self, weight: Tensor) -> tuple[int | None, int | None]:
        """(n_in, n_out) of its weight, worked out anew where the weight's shape has changed."""
        if weight.dim() < 2:
            return None, None
        if self.fans is None or self.fans[0] != weight.shape:
            self.fans = weight.shape, fans(self.module, weight)
        return self.fans[1]


@dataclass(slots=True)
class Call:
    """One call of one module, while it is being measured."""

    site: Site
    call: int
    depth: int
    shape: torch.Size
    dtype: torch.dtype
    channel_axis: int
    activation: Measured
    gradient: Measured | None = None
    hooked: bool = False

    @property
    def label(self) -> str:
        """As in :class:`LayerSignal`."""
        name = self.site.name or "(model)"
        return f"{name}#{self.call}" if self.call else name


Weights = tuple[tuple[int | None, ...], tuple[int | None, int | None]]
NO_WEIGHT: Weights = ((None, None, None), (None, None))


@dataclass
class Collected:
    """One pass, measured but not yet on the host.

    Attributes:
        calls: the calls, in the order of execution.
        parameters: what was measured of weights, biases and gradients of weights.
        weights: for each call the places in ``parameters`` of weight, its gradient and bias, and (n_in, n_out).
        measurer: what measured it.
    """

    calls: list[Call]
    parameters: Sequence[Measured]
    weights: list[Weights]
    measurer: Measurer

    def growth(self, direction: Direction) -> float | None:
        """Factor on the rms per layer, without making records; no loss scale changes it."""
        points = []
        for call in self.calls:
            if call.site.role != "weight":
                continue
            item = call.activation if direction == "forward" else call.gradient
            if type(item) is tuple:
                log10 = 0.5 * math.log10(item[1] / item[0]) if item[1] > 0 else -math.inf
                value = within_format(log10, call.dtype)
            else:
                moments = None if item is None else self.measurer.resolve([item])[0]
                value = trusted(moments, str(call.dtype).removeprefix("torch."))
            if value is not None:
                points.append((call.depth, value))
        return growth_of(points, direction)

    def nonfinite(self) -> int:
        """How many values of activations, gradients and weights are not finite; sums on the host stand for none."""
        taken = [item for call in self.calls for item in (call.activation, call.gradient)] + list(self.parameters)
        doubtful = [item for item in taken if item is not None and not isinstance(item, tuple)]
        return sum(moments.nonfinite for moments in self.measurer.resolve(doubtful))

    def records(self, *, scale: float = 1.0, weight_scale: float = 1.0) -> list[LayerSignal]:
        """Bring the numbers to the host, with one copy from each device, and make records of them.

        Args:
            scale: a loss scale, by which the gradients of activations are divided.
            weight_scale: the same for the gradients of weights, which may have been unscaled already.
        """
        outputs = self.measurer.resolve([call.activation for call in self.calls])
        with_gradient = [call.gradient for call in self.calls if call.gradient is not None]
        gradients = iter(self.measurer.resolve(with_gradient))
        parameters = self.measurer.resolve(self.parameters)
        records = []
        for order, (call, (places, (fan_in, fan_out)), output) in enumerate(
            zip(self.calls, self.weights, outputs, strict=True)
        ):
            weight, weight_gradient, bias = (None if place is None else parameters[place] for place in places)
            gradient = next(gradients) if call.gradient is not None else None
            records.append(
                LayerSignal(
                    name=call.site.name,
                    kind=call.site.kind,
                    call=call.call,
                    order=order,
                    depth=call.depth,
                    role=call.site.role,
                    shape=tuple(call.shape),
                    dtype=str(call.dtype).removeprefix("torch."),
                    activation=output,
                    gradient=rescale(gradient, 1 / scale),
                    weight=weight,
                    weight_gradient=rescale(weight_gradient, 1 / weight_scale),
                    bias=bias,
                    fan_in=fan_in,
                    fan_out=fan_out,
                    module=call.site.module,
                )
            )
        return records


def rescale(moments: Moments | None, factor: float) -> Moments | None:
    """The moments of factor · x."""
    if moments is None or factor == 1.0:
        return moments
    return dataclasses.replace(
        moments,
        log10_rms=moments.log10_rms + math.log10(factor),
        rms=moments.rms * factor,
        mean=moments.mean * factor,
        std=moments.std * factor,
        max_abs=moments.max_abs * factor,
    )
