"""How far the scale of a sound network drifts by chance, because its layers have finite width.

A layer of width n makes the next squared norm s as a mean of n independent squares, whose relative variance is κ/n;
κ = E φ⁴/(E φ²)² − 1 is the activation's own constant (5 for ReLU, 2 for the identity, 0.63 for tanh at q = 1). Where
E s is kept exactly, ln s therefore takes a step of mean −κ/2n and variance κ/n. For a homogeneous φ (ReLU, leaky ReLU,
the identity) the steps add up to the random walk N(−β/2, β), β = κ Σ 1/n_l. A saturating φ pulls the scale back: a
deviation δ of ln s survives a layer as ρ δ, ρ = d ln E φ²/d ln q, so ln s is an autoregression of bounded variance.
Backward the same holds with κ' = 3 E φ'⁴/(E φ'²)² − 1, and the steps always add up: the backward pass is linear in the
gradient.

All samples share the weights, so the worst case, which is the one allowed for, is that all move together.

Source: Hanin and Rolnick 2018, "How to start training"; Hanin and Nica 2020, "Products of many large random matrices".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

RELU_KURTOSIS = 5.0
LN10 = math.log(10.0)


@dataclass(frozen=True, slots=True)
class Step:
    """One weight layer as the fluctuation sees it.

    Attributes:
        width: independent units n; a convolution's channels.
        kurtosis: κ of the activation after it, going forward.
        slope_kurtosis: κ' of that activation, going backward.
        response: ρ, the share of a deviation of ln s that survives the layer going forward; 0 after a normalisation.
        slope_response: d ln E φ'²/d ln q: what a deviation of the scale forward does to the gradient.
    """

    width: int
    kurtosis: float = RELU_KURTOSIS
    slope_kurtosis: float = RELU_KURTOSIS
    response: float = 1.0
    slope_response: float = 0.0


@dataclass(frozen=True, slots=True)
class Drift:
    """Mean and standard deviation of log₁₀ rms relative to where the signal started, layer by layer."""

    mean: npt.NDArray[np.float64]
    std: npt.NDArray[np.float64]


def forward_drift(steps: Sequence[Step]) -> Drift:
    """What chance alone does to the activations of a net whose expected scale is kept.

    Args:
        steps: the weight layers in order of execution.

    Returns:
        Of log₁₀ rms at each layer, relative to the input of the first one. (ln s = 2 ln rms; hence the ½.)

    >>> he = forward_drift([Step(width=64)] * 50)  # β = 5 · 50/64
    >>> beta = 5 * 50 / 64
    >>> bool(abs(he.mean[-1] * 2 * math.log(10) + beta / 2) < 1e-12)
    True
    >>> bool(abs((he.std[-1] * 2 * math.log(10)) ** 2 - beta) < 1e-12)
    True
    """
    mean = variance = 0.0
    means, variances = [], []
    for step in steps:
        rho = min(step.response, 1.0)
        mean = rho * mean - step.kurtosis / (2 * step.width)
        variance = rho**2 * variance + step.kurtosis / step.width
        means.append(mean)
        variances.append(variance)
    return _in_decades(means, variances)


def backward_drift(steps: Sequence[Step]) -> Drift:
    """What chance alone does to the gradients, relative to where the backward pass started.

    Besides its own steps the gradient feels those of the forward pass: a layer whose pre-activations happen to be
    larger saturates more. Both deviations are followed as one linear system; what is bounded forward adds up backward.

    Args:
        steps: the weight layers in order of execution.

    Returns:
        Of log₁₀ rms of the gradient at each layer, in order of execution: the first entry has come furthest.
    """
    count = len(steps)
    forward_variance = np.zeros(count)
    variance = 0.0
    for index, step in enumerate(steps):
        variance = min(step.response, 1.0) ** 2 * variance + step.kurtosis / step.width
        forward_variance[index] = variance
    means, variances = np.zeros(count), np.zeros(count)
    mean = total = 0.0
    for index in range(count - 1, -1, -1):
        step = steps[index]
        mean -= step.slope_kurtosis / (2 * step.width)
        total += step.slope_kurtosis / step.width
        # Deviations of neighbouring layers are correlated by ρ: an autoregression's sum has the long-run variance
        # (1 + ρ)/(1 − ρ) per term, at most the number of layers it could have persisted.
        rho = min(step.response, 1.0)
        persistence = min((1 + rho) / (1 - rho), float(count)) if rho < 1 else float(count)
        total += step.slope_response**2 * forward_variance[index] * persistence
        means[index], variances[index] = mean, total
    return _in_decades(means, variances)


def _in_decades(means: npt.ArrayLike, variances: npt.ArrayLike) -> Drift:
    return Drift(np.asarray(means) / (2 * LN10), np.sqrt(np.asarray(variances)) / (2 * LN10))
