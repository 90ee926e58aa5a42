"""What theory expects of a wide random net: the scale of activations and gradients at every layer.

In a wide net with independent weights N(0, σ²) and no bias, the pre-activations of one image at one layer are draws of
N(0, q), so its scale follows from the layer before by a one-dimensional integral:

    forward:   q[l]  = n[l-1] σ[l]² · E φ(√q[l-1] z)²      with z ~ N(0, 1), and q[1] = n[0] σ[1]² · mean(x²)
    backward:  γ[l]  = n[l+1] σ[l+1]² · E φ'(√q[l] z)² · γ[l+1]      the mean square of ∂J/∂z at layer l

ReLU: E φ² = q/2 and E φ'² = 1/2, so the second moment changes by n σ²/2 each way: kept by σ² = 2/n. tanh at σ² = 1/n:
q[l+1] = q − 2q² + …, which falls like 1/(2l): slowly, not exponentially. Sigmoid at σ² = 1/n: E φ² is near 1/4 whatever
came in, so the activations settle at mean ½, while the gradient loses a factor of 0.236 (rms) at every layer.

This file computes the expectation only; it shares no code with the probe that measures.

Source: Poole et al. 2016 and Schoenholz et al. 2017 (the recursions); He et al. 2015 (ReLU).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Function = Callable[[Array], Array]

NODES = 4000  # even, so that none falls on the kink at 0
LEAKY_SLOPE = 0.01


def _sigmoid(z: Array) -> Array:
    return 1 / (1 + np.exp(-z))


# Each activation with its derivative.
FUNCTIONS: dict[str, tuple[Function, Function]] = {
    "sigmoid": (_sigmoid, lambda z: _sigmoid(z) * (1 - _sigmoid(z))),
    "tanh": (np.tanh, lambda z: 1 - np.tanh(z) ** 2),
    "relu": (lambda z: np.maximum(z, 0), lambda z: np.heaviside(z, 0.5)),
    "leaky_relu": (
        lambda z: np.where(z > 0, z, LEAKY_SLOPE * z),
        lambda z: np.where(z > 0, 1.0, LEAKY_SLOPE),
    ),
}


@dataclass(frozen=True)
class Expectation:
    """log10 rms expected at each linear layer, from the first to the last.

    Attributes:
        activations: of z = W a.
        gradients: of ∂J/∂z, relative to the last layer's.
    """

    activations: Array
    gradients: Array

    @property
    def forward_growth(self) -> float:
        """Factor per layer by the least-squares slope of log rms against depth."""
        return float(10 ** np.polyfit(np.arange(len(self.activations)), self.activations, 1)[0])

    @property
    def backward_growth(self) -> float:
        """The same for gradients, from the last layer to the first."""
        return float(10 ** -np.polyfit(np.arange(len(self.gradients)), self.gradients, 1)[0])


def expect(activation: str, sizes: Sequence[int], variances: Sequence[float], mean_square: float) -> Expectation:
    """Follow the recursions above through a net.

    Args:
        activation: a key of ``FUNCTIONS``; the last layer has none.
        sizes: width of the input and of every layer, L + 1 numbers.
        variances: variance of every layer's weights, L numbers.
        mean_square: mean of x² over the input's features.
    """
    function, derivative = FUNCTIONS[activation]
    q = [sizes[0] * variances[0] * mean_square]
    for layer in range(1, len(variances)):
        q.append(sizes[layer] * variances[layer] * _mean_square(function, q[-1]))
    gamma = [1.0]
    for layer in range(len(variances) - 2, -1, -1):
        gamma.append(sizes[layer + 2] * variances[layer + 1] * _mean_square(derivative, q[layer]) * gamma[-1])
    return Expectation(np.log10(q) / 2, np.log10(gamma[::-1]) / 2)


def _mean_square(function: Function, variance: float) -> float:
    """E f(√variance z)² for z ~ N(0, 1), by the midpoint rule, which is symmetric about a kink at 0."""
    edges = np.linspace(-10, 10, NODES + 1)
    z = (edges[1:] + edges[:-1]) / 2
    weight = np.exp(-(z**2) / 2)
    return float(np.sum(weight * function(np.sqrt(variance) * z) ** 2) / np.sum(weight))
