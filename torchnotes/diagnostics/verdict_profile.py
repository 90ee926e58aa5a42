"""The curve of log-scale against depth, and where and how it bends."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from torchnotes.diagnostics.growth import trunk
from torchnotes.diagnostics.records import Direction, LayerSignal

Array = npt.NDArray[np.float64]

# What stands for log₁₀ of an exact zero: below every number a float64 can hold.
ZERO = -400.0


@dataclass(frozen=True, slots=True)
class Profile:
    """Log-scale of one direction at the weight layers, in the order in which the signal runs.

    Attributes:
        direction: activations or gradients.
        layers: the records, first the one the signal reaches first.
        log10: departure of log₁₀ scale from where the signal started; activations by rms, from the input of the
            first layer; gradients by norm, from the last layer. (The norm, not the rms: a layer that keeps the norm of
            the gradient spreads it over more or fewer units as the width changes, which is neither growth nor loss;
            nor is what average pooling does to it, see `_spread_by_pooling`.)
        blocked: labels of layers left out because nothing arrives there although it arrives further on: branches
            closed on purpose, such as a residual branch whose last weights start at zero.
    """

    direction: Direction
    layers: tuple[LayerSignal, ...]
    log10: Array
    blocked: tuple[str, ...]


def spine(layers: Sequence[LayerSignal]) -> list[LayerSignal]:
    """The weight layers whose scale carries a verdict: an embedding looks up its own scale and passes nothing on."""
    return [layer for layer in trunk(layers) if "Embedding" not in layer.kind]


def profile(layers: Sequence[LayerSignal], direction: Direction) -> Profile:
    """The curve of one direction; empty where the direction was not measured."""
    measured = [(layer, value) for layer in spine(layers) if (value := _log10(layer, direction)) is not None]
    if direction == "backward":
        spread = _spread_by_pooling(layers)
        measured = [(layer, value + spread[layer.label] if value > ZERO else value) for layer, value in measured]
        measured.reverse()
    blocked = []
    kept = []
    for index, (layer, value) in enumerate(measured):
        if value == ZERO and any(later > ZERO for _, later in measured[index + 1 :]):
            blocked.append(layer.label)
        else:
            kept.append((layer, value))
    if not kept:
        return Profile(direction, (), np.empty(0), tuple(blocked))
    start = _input_log10(*kept[0]) if direction == "forward" else kept[0][1]
    values = np.asarray([value - start for _, value in kept])
    return Profile(direction, tuple(layer for layer, _ in kept), values, tuple(blocked))


def _log10(layer: LayerSignal, direction: Direction) -> float | None:
    moments = layer.activation if direction == "forward" else layer.gradient
    if moments is None or moments.count == 0 or math.isnan(moments.log10_rms):
        return None
    value = max(moments.log10_rms, ZERO)
    if direction == "backward" and value > ZERO:
        value += 0.5 * math.log10(moments.count)
    return value


def _spread_by_pooling(layers: Sequence[LayerSignal]) -> dict[str, float]:
    """By label, log₁₀ of what average poolings further on took from the norm of a layer's gradient.

    The mean of k values hands each of them x̄ = ȳ/k: the norm falls by √k at each pooling, yet over the window the
    gradient adds up to ȳ, and so do the gradients of the weights before it. That is neither growth nor loss. Where the
    norm falls otherwise the pooling is not all of the way (a shortcut beside a strided layer), and nothing is taken
    for it.
    """
    spread: dict[str, float] = {}
    total = 0.0
    for before, layer in zip([None, *layers[:-1]][::-1], reversed(layers), strict=True):
        spread[layer.label] = total
        if before is None or "AvgPool" not in layer.kind or before.gradient is None or layer.gradient is None:
            continue
        window = before.gradient.count / max(layer.gradient.count, 1)
        fallen = before.gradient.log10_rms - layer.gradient.log10_rms + math.log10(max(window, 1.0))
        if window > 1 and abs(fallen) < 0.02:  # x̄ = ȳ/k to 5 %
            total += 0.5 * math.log10(window)
    return spread


def _input_log10(first: LayerSignal, value: float) -> float:
    # rms(z) = √(n_in mean W²) · rms(x), solved for rms(x): so that a first layer at the wrong scale is seen as such.
    if first.weight is None or not first.fan_in or not math.isfinite(first.weight.log10_rms) or value == ZERO:
        return value
    bias = first.bias.log10_rms if first.bias is not None else -math.inf
    if bias > value - 0.5:  # the output is mostly bias: it does not tell the input's scale
        return value
    return value - first.weight.log10_rms - 0.5 * math.log10(first.fan_in)


def change_point(log10: Array, tolerance: float = 1.0) -> int:
    """Index of the first layer after which the curve is no longer flat.

    Two shapes are fitted at every layer by least squares and the best one taken: a hinge (flat, then a straight line:
    every layer from there on loses the same share) and a step (one layer loses it all). The step has to halve the
    hinge's residual to be preferred. From an exact zero on there is no slope: where the curve was within
    ``tolerance`` decades until then, the first zero is the answer.
    """
    zeros = np.flatnonzero(log10 < ZERO / 2)
    values = log10[: zeros[0]] if len(zeros) else log10
    if len(zeros) and np.abs(values).max(initial=0.0) <= tolerance:
        return int(zeros[0])
    count = len(values)
    if count < 2:
        return 0
    index = np.arange(count, dtype=np.float64)
    hinges = [_residual(np.maximum(0.0, index - k), values) for k in range(count - 1)]
    steps = [_residual((index >= k).astype(np.float64), values) for k in range(1, count)]
    hinge, step = int(np.argmin(hinges)), int(np.argmin(steps))
    return step + 1 if steps[step] < 0.5 * hinges[hinge] else hinge + 1


def _residual(regressor: Array, values: Array) -> float:
    centred = regressor - regressor.mean()
    scale = float(centred @ centred)
    deviation = values - values.mean()
    explained = float(centred @ deviation) ** 2 / scale if scale > 0 else 0.0
    return float(deviation @ deviation) - explained


def power_law(log10: Array, position: Array) -> float | None:
    """Exponent p where the scale follows position^p rather than an exponential; None where it does not.

    A tanh net at variance 1/n has q → 1/(2l), a residual net without normalisation of its sum q ∝ l: both slow down
    with depth, and a deeper net of the same kind is hardly worse. The power law has to fit with at most a quarter of
    the straight line's residual, within 0.15 decades (a factor 1.4) of every layer beyond the first three, which
    are still forgetting the input, with |p| ≤ 1.

    Args:
        log10: log₁₀ scale.
        position: number of the layer counted from the input, from 1.
    """
    fitted = position > 3
    if int(fitted.sum()) < 6:
        return None
    y, x = log10[fitted], np.log10(position[fitted])
    straight = _residual(position[fitted], y)
    bent = _residual(x, y)
    centred = x - x.mean()
    exponent = float(centred @ (y - y.mean()) / (centred @ centred))
    misfit = np.abs(y - y.mean() - exponent * centred).max()
    if bent <= 0.25 * straight and misfit <= 0.15 and abs(exponent) <= 1:
        return exponent
    return None
