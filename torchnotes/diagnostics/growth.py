"""Growth per layer: the factor by which a signal's scale changes from one layer to the next."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch

from torchnotes.diagnostics.records import Direction, LayerSignal, Moments


def trusted_log10(layer: LayerSignal, direction: Direction) -> float | None:
    """log₁₀ rms of a layer's activation or gradient, or None where its dtype could not hold the signal.

    Near the ends of a format the numbers are no longer the signal: below the smallest normal number they lose digits
    and then become 0, and one value past the largest becomes an infinity. A slope through such points would not be
    that of the network.
    """
    return trusted(layer.activation if direction == "forward" else layer.gradient, layer.dtype)


def trusted(moments: Moments | None, dtype: str) -> float | None:
    """log₁₀ rms, or None where the dtype could not hold the signal."""
    if moments is None or moments.nonfinite:
        return None
    return within_format(moments.log10_rms, getattr(torch, dtype))


def within_format(log10_rms: float, dtype: torch.dtype) -> float | None:
    """The same of a scale that is known already."""
    low, high = _limits(dtype)
    return log10_rms if low <= log10_rms <= high else None


@functools.cache
def _limits(dtype: torch.dtype) -> tuple[float, float]:
    """log₁₀ of the ends between which a format holds a signal with all its digits."""
    limits = torch.finfo(dtype)
    # At 16 times the smallest normal number the values that have lost digits are too small to count in the rms.
    return math.log10(16 * limits.tiny), math.log10(limits.max) - 1


def trunk(layers: Sequence[LayerSignal]) -> list[LayerSignal]:
    """The records between which growth is measured: those of the weight layers, one for each depth."""
    return [layer for layer in layers if layer.role == "weight"]


def growth_per_layer(layers: Sequence[LayerSignal], direction: Direction) -> float | None:
    """Factor by which the rms changes per layer in the direction in which the signal runs.

    The least-squares slope of log rms against depth, as a factor: activations from the first layer to the last,
    gradients from the last to the first. A factor below 1 is a signal that shrinks as it travels.

    Args:
        layers: the records of one pass.
        direction: activations (``"forward"``) or gradients (``"backward"``).

    Returns:
        The factor, or None where fewer than two layers have a scale their dtype can hold.
    """
    points = [(layer.depth, value) for layer in trunk(layers) if (value := trusted_log10(layer, direction)) is not None]
    return growth_of(points, direction)


def growth_of(points: Sequence[tuple[int, float]], direction: Direction) -> float | None:
    """The same, from (depth, log₁₀ rms) of each weight layer."""
    if len({depth for depth, _ in points}) < 2:
        return None
    # A plain loop: NumPy's calls cost more than fifty additions, and a monitor is here on every logged step.
    count = len(points)
    centre, level = sum(depth for depth, _ in points) / count, sum(value for _, value in points) / count
    slope = sum((depth - centre) * (value - level) for depth, value in points) / sum(
        (depth - centre) ** 2 for depth, _ in points
    )
    return math.pow(10.0, slope if direction == "forward" else -slope)
