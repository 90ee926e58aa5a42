"""One step of the theory for each kind of operation: how it changes the state of a signal and of a gradient.

Weights are random and independent of what comes in (so the theory speaks of a net at initialisation; a trained one
departs from it where its weights have aligned with the data, and that shows as measured ≠ expected). Wide layers make
pre-activations normal. A gradient is independent of the activations it is multiplied by.
"""

# ruff: noqa: D102 (what forward and backward of a step are is said once, at `Step`)
from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from torchnotes.diagnostics.theory_quadrature import (
    ActivationMoments,
    Elementwise,
    activation_moments,
    shared_second_moment,
    slope_of,
)
from torchnotes.diagnostics.theory_state import NoExpectation, State


class Step(Protocol):
    """An operation as the theory sees it."""

    @property
    def label(self) -> str:
        """What to call it."""
        ...

    @property
    def mixes(self) -> bool:
        """Whether its output is uncorrelated with its inputs: random weights came in between."""
        ...

    def forward(self, inputs: list[State]) -> State:
        """State of the output, given those of the inputs."""
        ...

    def backward(self, which: int, inputs: list[State], gradient: State) -> State:
        """State of the gradient at one input, given that at the output and the states of all inputs."""
        ...


@dataclass(frozen=True)
class Source:
    """Where a signal begins: the model's input, an embedding, or a tensor of unknown origin."""

    label: str
    mixes: bool = True

    def forward(self, inputs: list[State]) -> State:
        raise NoExpectation(f"the signal begins at {self.label}")

    def backward(self, which: int, inputs: list[State], gradient: State) -> State:
        raise NoExpectation(f"the signal begins at {self.label}")


@dataclass(frozen=True)
class Opaque:
    """A step without theory: a softmax, a pooling, anything that joins values in its own way."""

    label: str
    reason: str
    mixes: bool = False

    def forward(self, inputs: list[State]) -> State:
        raise NoExpectation(self.reason)

    def backward(self, which: int, inputs: list[State], gradient: State) -> State:
        raise NoExpectation(self.reason)


@dataclass(frozen=True)
class Weighted:
    """z = W x + b, also convolutions: E z² = n_in E w² (E x² − x̄²) + E r² x̄² + E b², r the row sums of W.

    The mean of x meets the row sums as they are; the rest of x meets weights that are independent of it. For zero-mean
    weights E r² = n_in E w², and this is n_in E w² E x²; for W = c·I it is c² E x², exactly. Backward n_out takes the
    place of n_in: x̄_i = Σ_j w_ji z̄_j.

    Attributes:
        second_in: n_in E w², the gain on the second moment.
        second_out: n_out E w², that on the gradient's.
        row_mean: mean of the row sums.
        row_second: mean square of the row sums.
        bias_mean: mean of b.
        bias_second: mean square of b.
    """

    label: str
    second_in: float
    second_out: float
    row_mean: float
    row_second: float
    bias_mean: float
    bias_second: float
    mixes: bool = True

    def forward(self, inputs: list[State]) -> State:
        (x,) = inputs
        from_mean = self.row_second * x.mean**2
        return State(
            self.second_in * (x.second - x.mean**2) + from_mean + self.bias_second,
            None if x.shared is None else self.second_in * (x.shared - x.mean**2) + from_mean + self.bias_second,
            self.row_mean * x.mean + self.bias_mean,
            x.samples,
        )

    def backward(self, which: int, inputs: list[State], gradient: State) -> State:
        shared = None if gradient.shared is None else self.second_out * gradient.shared
        return State(self.second_out * gradient.second, shared, 0.0, inputs[0].samples)


@dataclass(frozen=True)
class Activation:
    """y = φ(z), z ~ N(μ, q): E y² = E φ(z)², and E x̄² = E φ'(z)² E ȳ², by quadrature of φ itself."""

    label: str
    function: Elementwise
    mixes: bool = False
    _known: dict[State, ActivationMoments] = field(default_factory=dict, compare=False, repr=False)

    def _integrals(self, z: State) -> ActivationMoments:
        if not math.isfinite(z.second):
            raise NoExpectation(f"the values before {self.label} are not finite")
        if z not in self._known:
            self._known[z] = activation_moments(self.function, z.mean, max(z.second - z.mean**2, 0.0))
        return self._known[z]

    def forward(self, inputs: list[State]) -> State:
        (z,) = inputs
        integrals = self._integrals(z)
        shared = None
        if not math.isnan(z.correlation):
            shared = shared_second_moment(self.function, z.second - z.mean**2, z.correlation, z.mean)
        return State(integrals.second, shared, integrals.mean, z.samples)

    def backward(self, which: int, inputs: list[State], gradient: State) -> State:
        (z,) = inputs
        factor = self._integrals(z).slope_second
        shared = None
        if gradient.shared is not None and not math.isnan(z.correlation):
            slope = slope_of(self.function)
            shared = gradient.shared * shared_second_moment(slope, z.second - z.mean**2, z.correlation, z.mean)
        return State(factor * gradient.second, shared, 0.0, z.samples)


@dataclass(frozen=True)
class Dropout:
    """y = x d/keep with d ~ Bernoulli(keep): E y² = E x²/keep, both ways; different samples have different masks."""

    label: str
    keep: float
    mixes: bool = False

    def forward(self, inputs: list[State]) -> State:
        return replace(inputs[0], second=inputs[0].second / self.keep)

    def backward(self, which: int, inputs: list[State], gradient: State) -> State:
        return replace(gradient, second=gradient.second / self.keep, mean=0.0)


@dataclass(frozen=True)
class BatchNorm:
    """y = γ (x − x̄)/√(v + ε) + β over the batch, v = (q − shared)(1 − 1/N).

    Backward x̄ = γ/√(v + ε) · (ȳ − mean ȳ − x_norm mean(ȳ x_norm)): what all samples have in common in ȳ is taken
    out, and of the rest one direction in N.
    """

    label: str
    gamma_second: float
    beta_mean: float
    beta_second: float
    eps: float
    mixes: bool = False

    def forward(self, inputs: list[State]) -> State:
        (x,) = inputs
        kept = x.unit_variance / (x.unit_variance + self.eps)
        # Samples that were centred together are correlated by −1/(N−1).
        apart = -self.gamma_second * kept / (x.samples - 1)
        return State(self.gamma_second * kept + self.beta_second, apart + self.beta_second, self.beta_mean, x.samples)

    def backward(self, which: int, inputs: list[State], gradient: State) -> State:
        (x,) = inputs
        scale = self.gamma_second / (x.unit_variance + self.eps)
        own = gradient.second if gradient.shared is None else max(gradient.second - gradient.shared, 0.0)
        second = scale * own * max(1 - 2 / x.samples, 0.0)
        return State(second, -second / (x.samples - 1), 0.0, x.samples)


@dataclass(frozen=True)
class SampleNorm:
    """Layer, group or RMS normalisation: y = γ (x − m)/√(v + ε) + β over the units of one sample; m = 0 for RMS.

    Backward as for batch normalisation, over n units in place of N samples.
    """

    label: str
    units: int
    centred: bool
    gamma_second: float
    beta_mean: float
    beta_second: float
    eps: float
    mixes: bool = False

    def _variance(self, x: State) -> float:
        return max(x.second - (x.mean**2 if self.centred else 0.0), 0.0)

    def forward(self, inputs: list[State]) -> State:
        (x,) = inputs
        variance = self._variance(x)
        scale = self.gamma_second / (variance + self.eps)
        offset = x.mean**2 if self.centred else 0.0
        shared = None if x.shared is None else scale * (x.shared - offset) + self.beta_second
        mean = self.beta_mean if self.centred else math.copysign(math.sqrt(scale), x.mean) * abs(x.mean)
        return State(scale * variance + self.beta_second, shared, mean, x.samples)

    def backward(self, which: int, inputs: list[State], gradient: State) -> State:
        (x,) = inputs
        directions = 2 if self.centred else 1
        factor = self.gamma_second / (self._variance(x) + self.eps) * max(1 - directions / self.units, 0.0)
        shared = None if gradient.shared is None else factor * gradient.shared
        return State(factor * gradient.second, shared, 0.0, x.samples)


@dataclass(frozen=True)
class Affine:
    """y = a x + b, a and b fixed for each channel: a scale, an offset, batch normalisation in evaluation mode."""

    label: str
    scale_second: float
    scale_mean: float
    offset_mean: float
    offset_second: float
    cross: float
    mixes: bool = False

    def forward(self, inputs: list[State]) -> State:
        (x,) = inputs
        rest = 2 * self.cross * x.mean + self.offset_second
        shared = None if x.shared is None else self.scale_second * x.shared + rest
        return State(
            self.scale_second * x.second + rest, shared, self.scale_mean * x.mean + self.offset_mean, x.samples
        )

    def backward(self, which: int, inputs: list[State], gradient: State) -> State:
        shared = None if gradient.shared is None else self.scale_second * gradient.shared
        return State(self.scale_second * gradient.second, shared, self.scale_mean * gradient.mean, gradient.samples)


@dataclass(frozen=True)
class Sum:
    """y = x₁ ± x₂ of uncorrelated signals, a skip connection: second moments add but for the means; gradients pass.

    Where a signal goes two ways, the gradients that come back add likewise; that is done by whoever walks the graph.
    """

    label: str
    signs: tuple[int, ...] = (1, 1)
    mixes: bool = False

    def forward(self, inputs: list[State]) -> State:
        mean = sum(sign * x.mean for sign, x in zip(self.signs, inputs, strict=True))
        own_means = sum(x.mean**2 for x in inputs)
        second = sum(x.second for x in inputs) - own_means + mean**2
        shared = None
        if all(x.shared is not None for x in inputs):
            shared = sum(x.shared for x in inputs if x.shared is not None) - own_means + mean**2
        return State(second, shared, mean, inputs[0].samples)

    def backward(self, which: int, inputs: list[State], gradient: State) -> State:
        return gradient


@dataclass(frozen=True)
class Product:
    """y = x₁ x₂ of uncorrelated signals, a gate: second moments multiply."""

    label: str
    mixes: bool = False

    def forward(self, inputs: list[State]) -> State:
        x, y = inputs
        shared = None if x.shared is None or y.shared is None else x.shared * y.shared
        return State(x.second * y.second, shared, x.mean * y.mean, x.samples)

    def backward(self, which: int, inputs: list[State], gradient: State) -> State:
        other = inputs[1 - which]
        shared = None if gradient.shared is None or other.shared is None else gradient.shared * other.shared
        return State(gradient.second * other.second, shared, 0.0, gradient.samples)


@dataclass(frozen=True)
class Rearranged:
    """The same numbers in another shape. Where units and samples change places, what samples share is not known."""

    label: str
    keeps_units: bool
    mixes: bool = False

    def forward(self, inputs: list[State]) -> State:
        return inputs[0] if self.keeps_units else replace(inputs[0], shared=None)

    def backward(self, which: int, inputs: list[State], gradient: State) -> State:
        shared = gradient.shared if self.keeps_units else None
        return replace(gradient, shared=shared, samples=inputs[0].samples)


@dataclass(frozen=True)
class Joined:
    """Units of several tensors side by side; ``shares`` is each one's part of the units."""

    label: str
    shares: tuple[float, ...]
    mixes: bool = False

    def forward(self, inputs: list[State]) -> State:
        pairs = list(zip(self.shares, inputs, strict=True))
        known = all(x.shared is not None for x in inputs)
        return State(
            sum(share * x.second for share, x in pairs),
            sum(share * (x.shared or 0.0) for share, x in pairs) if known else None,
            sum(share * x.mean for share, x in pairs),
            inputs[0].samples,
        )

    def backward(self, which: int, inputs: list[State], gradient: State) -> State:
        return gradient


def weighted(
    label: str, weight: Tensor, bias: Tensor | None, *, taps_in: float, taps_out: float, transposed: bool = False
) -> Weighted:
    """The step of a weight (n_out, n_in/groups, *kernel).

    Args:
        label: what to call it.
        weight: W; for a transposed convolution its first two axes are exchanged.
        bias: b, if any.
        taps_in: terms summed into one output, on average over positions: those on padding count for nothing.
        taps_out: outputs that one input reaches, likewise.
        transposed: the weight is (n_in, n_out/groups, *kernel).
    """
    values = weight.detach().double()
    rows = values.transpose(0, 1) if transposed else values
    sums = rows.reshape(rows.shape[0], -1).sum(1)
    met = taps_in / rows[0].numel()  # of independent weights a part is met: the sums' variance shrinks by that part
    second = float(values.square().mean())
    offset = torch.zeros(1, dtype=torch.float64, device="cpu") if bias is None else bias.detach().double()
    return Weighted(
        label,
        taps_in * second,
        taps_out * second,
        met * float(sums.mean()),
        met * float(sums.square().mean()),
        float(offset.mean()),
        float(offset.square().mean()),
    )


def affine(label: str, scale: Tensor | float, offset: Tensor | float) -> Affine:
    """The step y = a x + b; tensors are taken by their moments."""
    a, b = torch.broadcast_tensors(
        torch.as_tensor(scale, dtype=torch.float64).detach(), torch.as_tensor(offset, dtype=torch.float64).detach()
    )
    return Affine(
        label,
        float(a.square().mean()),
        float(a.mean()),
        float(b.mean()),
        float(b.square().mean()),
        float((a * b).mean()),
    )
