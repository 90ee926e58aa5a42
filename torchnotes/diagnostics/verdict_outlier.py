"""One weight many times as large as all others, in a net whose normalisations take its scale away again.

Behind the next normalisation all looks sound, forward and backward, and the layer is a fault all the same. In a branch
it drowns what it is added to: x + 100 f(x) is 100 f(x), the skip connection is gone. And the loss depends on the
direction of such a weight alone, so its gradient falls as 1/‖W‖ and a step of gradient descent turns it by 1/‖W‖²: 100
times too large it learns 10,000 times too slowly (van Laarhoven 2017).

A weight that is as many times too small is not counted: a branch that starts near zero is a usual and a sound choice.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace

from torchnotes.diagnostics.prescription_outliers import STANDS_OUT
from torchnotes.diagnostics.records import Finding, LayerSignal
from torchnotes.diagnostics.verdict_profile import spine


def judged_by_outliers(sound: Finding, layers: Sequence[LayerSignal], tolerance: float) -> Finding:
    """The finding, or an exploding one where weights stand out.

    A layer does if its gain √(n E w²) is more than ``tolerance`` and half a decade above the middle of all, and its
    output more than ``tolerance``: a weight that only makes up for a small input does no harm. At most a quarter of
    the weights may stand out, one normalisation for four weights is the least, and the last layer's scale is its own
    affair.

    Args:
        sound: what the activations show otherwise.
        layers: all records of the pass.
        tolerance: decades that are harmless.
    """
    gains = {layer.label: gain for layer in spine(layers) if (gain := _gain(layer)) is not None}
    heads = [layer for layer in spine(layers) if layer.label in gains]
    normalised = sum(layer.role == "normalization" for layer in layers)
    if not heads or 4 * normalised < len(heads):
        return sound
    middle = statistics.median(gains.values())
    level = statistics.median(layer.activation.log10_rms for layer in heads)
    off = [layer for layer in heads if abs(gains[layer.label] - middle) > STANDS_OUT]
    large = [
        layer
        for layer in heads[:-1]
        if gains[layer.label] - middle > tolerance + STANDS_OUT and layer.activation.log10_rms - level > tolerance
    ]
    if not large or 4 * len(off) > len(heads):
        return sound
    worst = max(large, key=lambda layer: layer.activation.log10_rms)
    departure = worst.activation.log10_rms - level
    reason = (
        f"Activations at {worst.label} are {10**departure:.3g} times as large as at the middle layer, by weights "
        f"{10 ** (gains[worst.label] - middle):.3g} times as large as the middle ones. Normalisation takes the scale "
        "away again, so that no other layer shows it; but what they are added to is drowned, and an update of these "
        "weights counts for too little."
    )
    return replace(
        sound,
        state="exploding",
        first_bad_layer=large[0].label,
        reason=reason,
        furthest=worst.label,
        departure=departure,
    )


def _gain(layer: LayerSignal) -> float | None:
    if layer.weight is None or not layer.fan_in:
        return None
    gain = layer.weight.log10_rms + 0.5 * math.log10(layer.fan_in)
    return gain if math.isfinite(gain) and math.isfinite(layer.activation.log10_rms) else None
