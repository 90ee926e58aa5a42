"""What the theory follows from layer to layer: three numbers of a tensor instead of the tensor."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor


class NoExpectation(Exception):
    """A step the theory has nothing to say about; the text says which and why."""


@dataclass(frozen=True, slots=True)
class State:
    """Second-order statistics of a tensor of N samples (batch, positions) of n units.

    Attributes:
        second: q = E x² over units and samples.
        shared: E x_a x_b over units and pairs of *different* samples a, b: the part of q that all samples have in
            common; None where a step mixed units and samples. q − shared is the variance within a unit.
        mean: E x over units and samples.
        samples: N.
    """

    second: float
    shared: float | None
    mean: float
    samples: int

    @property
    def rms(self) -> float:
        """√q."""
        return math.sqrt(self.second) if self.second >= 0 else math.nan

    @property
    def unit_variance(self) -> float:
        """Variance within one unit over the batch, with 1/N: what batch normalisation divides by."""
        if self.shared is None or self.samples < 2:
            raise NoExpectation("the share of the signal that all samples have in common is not known here")
        return max(self.second - self.shared, 0.0) * (1 - 1 / self.samples)

    @property
    def correlation(self) -> float:
        """Correlation of two samples' values in one unit, over units."""
        variance = self.second - self.mean**2
        if self.shared is None or variance <= 0:
            return math.nan
        return min(max((self.shared - self.mean**2) / variance, -1.0), 1.0)


def measure_state(tensor: Tensor, unit_axis: int) -> State:
    """The state of a tensor, in float64: squares of float32 gradients underflow where they matter most."""
    x = tensor.detach().double()
    if x.dim() == 0 or x.numel() == 0:
        value = float(x) if x.numel() == 1 else math.nan
        return State(value * value, None, value, 1)
    units = x.shape[unit_axis]
    samples = x.numel() // units
    by_unit = x.movedim(unit_axis, -1).reshape(samples, units)
    second = float(by_unit.square().mean())
    shared = None
    if samples > 1:
        # Mean over pairs a ≠ b of x_a x_b = (N² x̄² − Σ x²)/(N (N−1)), then over units.
        squared_mean = float(by_unit.mean(0).square().mean())
        shared = (samples * squared_mean - second) / (samples - 1)
    return State(second, shared, float(by_unit.mean()), samples)
