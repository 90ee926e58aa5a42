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
from torchnotes.diagnostics.growth import growth_of, within_format
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
    first: Call | None = None  # its first call in the last pass

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


@dataclass(slots=True, eq=False)
class Call:
    """One call of one module. Passes of one model share it, as long as it stays the same."""

    site: Site
    call: int
    depth: int
    shape: torch.Size
    dtype: torch.dtype
    channel_axis: int
    label: str = ""  # as in :class:`LayerSignal`

    def __post_init__(self) -> None:
        name = self.site.name or "(model)"
        self.label = f"{name}#{self.call}" if self.call else name


class Pass:
    """What is taken of one pass.

    Args:
        measurer: how its tensors are measured.

    Attributes:
        calls: in the order of execution.
        outputs: what was measured of the output of each.
        gradients: what was measured of the gradient that arrived at each; None until one does.
        versions: how often each output had been written to when it was measured.
        unhooked: the numbers of the calls whose gradient no hook waits for.
    """

    __slots__ = ("calls", "gradients", "measurer", "outputs", "unhooked", "versions")

    def __init__(self, measurer: Measurer) -> None:
        self.measurer = measurer
        self.calls: list[Call] = []
        self.outputs: list[Measured] = []
        self.gradients: list[Measured | None] = []
        self.versions: list[int] = []
        self.unhooked: list[int] = []


Weights = tuple[tuple[int | None, ...], tuple[int | None, int | None]]
NO_WEIGHT: Weights = ((None, None, None), (None, None))


@dataclass
class Collected:
    """One pass, measured but not yet on the host.

    Attributes:
        taken: the pass.
        parameters: what was measured of weights, biases and gradients of weights.
        weights: for each call the places in ``parameters`` of weight, its gradient and bias, and (n_in, n_out).
    """

    taken: Pass
    parameters: Sequence[Measured]
    weights: Sequence[Weights]

    @property
    def calls(self) -> list[Call]:
        """In the order of execution."""
        return self.taken.calls

    def growth(self, direction: Direction) -> float | None:
        """Factor on the rms per layer, without making records; no loss scale changes it."""
        found = self.taken.outputs if direction == "forward" else self.taken.gradients
        weights = [i for i, call in enumerate(self.calls) if call.site.role == "weight" and found[i] is not None]
        scales = self.taken.measurer.log10_rms([found[i] for i in weights])  # type: ignore[misc]
        points = [
            (self.calls[i].depth, scale)
            for i, scale in zip(weights, scales, strict=True)
            if scale is not None and within_format(scale, self.calls[i].dtype) is not None
        ]
        return growth_of(points, direction)

    def nonfinite(self) -> int:
        """How many values of activations, gradients and weights are not finite; sums on the host stand for none."""
        taken = [*self.taken.outputs, *self.taken.gradients, *self.parameters]
        doubtful = [item for item in taken if type(item) is not int and type(item) is not tuple and item is not None]
        return sum(moments.nonfinite for moments in self.taken.measurer.resolve(doubtful)) if doubtful else 0

    def records(self, *, scale: float = 1.0, weight_scale: float = 1.0) -> list[LayerSignal]:
        """Bring the numbers to the host, with one copy from each device, and make records of them.

        Args:
            scale: a loss scale, by which the gradients of activations are divided.
            weight_scale: the same for the gradients of weights, which may have been unscaled already.
        """
        taken, resolve = self.taken, self.taken.measurer.resolve
        outputs, parameters = resolve(taken.outputs), resolve(self.parameters)
        gradients = iter(resolve([gradient for gradient in taken.gradients if gradient is not None]))
        records = []
        for order, (call, arrived, (places, (fan_in, fan_out)), output) in enumerate(
            zip(self.calls, taken.gradients, self.weights, outputs, strict=True)
        ):
            weight, weight_gradient, bias = (None if place is None else parameters[place] for place in places)
            gradient = next(gradients) if arrived is not None else None
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
