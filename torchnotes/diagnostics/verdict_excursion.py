"""A signal that leaves by many decades in the middle of the net and comes back before its end.

Its two ends say nothing, and it is a fault all the same: between them numbers of 1e-18 meet biases, the ε of a
normalisation and the ends of a 16-bit format. What must be told apart is a layer in a *side branch*, which may be as
small as it likes (a residual branch that starts near zero, the queries of an attention): there the signal passes by.

On the way that all of the signal takes, ‖x‖·‖∂L/∂x‖ stays what it is: where x shrinks, what comes after has to
multiply as much, and so does the gradient on its way back. In a branch that hardly counts the product is small.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from torchnotes.diagnostics.records import LayerSignal, Moments
from torchnotes.diagnostics.verdict_profile import Array, Profile

Mask = npt.NDArray[np.bool_]

SLACK = 1.5
"""Decades by which ‖x‖·‖∂L/∂x‖ may lie below its largest value on the signal's way."""

IN_A_ROW = 3
"""Weight layers without a sound record between them that stand for the signal's way where no gradient was measured."""


def excursion(curve: Profile, lower: Array, upper: Array, limit: float, layers: Sequence[LayerSignal]) -> int | None:
    """Index of the layer furthest out, where the signal leaves its way's scale and comes back; None where it does not.

    Args:
        curve: the profile of one direction.
        lower: the band's lower end at each of its layers.
        upper: the upper end.
        limit: decades that are too many whoever caused them.
        layers: all records, for what lies between weight layers.
    """
    out = (curve.log10 < np.minimum(lower, -limit)) | (curve.log10 > np.maximum(upper, limit))
    on_the_way = _on_the_way(curve, out)
    if on_the_way is None:
        on_the_way = _in_a_row(curve, out, layers)
    out &= on_the_way
    return int(np.argmax(np.where(out, np.abs(curve.log10), -1.0))) if out.any() else None


def _on_the_way(curve: Profile, out: Mask) -> Mask | None:
    """Which layers carry all of the signal, by ‖x‖·‖∂L/∂x‖; None where gradients were not measured."""
    products = np.asarray([_norm(layer.activation) + _norm(layer.gradient) for layer in curve.layers])
    sound = products[~out & np.isfinite(products)]
    if not len(sound):
        return None
    found: Mask = products >= sound.max() - SLACK  # of NaN and −∞: no
    return found


def _norm(moments: Moments | None) -> float:
    return math.nan if moments is None else moments.log10_rms + 0.5 * math.log10(max(moments.count, 1))


def _in_a_row(curve: Profile, out: Mask, layers: Sequence[LayerSignal]) -> Mask:
    """Runs of at least ``IN_A_ROW`` layers that are out, with nothing in between that is back in place."""
    found = np.zeros(len(out), dtype=bool)
    run: list[int] = []
    for index, is_out in enumerate(out):
        if is_out and run and _recovers(curve, run[-1], index, layers):
            run = []
        run = [*run, index] if is_out else []
        if len(run) >= IN_A_ROW:
            found[run] = True
    return found


def _recovers(curve: Profile, before: int, after: int, layers: Sequence[LayerSignal]) -> bool:
    """Whether a record between two weight layers is larger than the first of them by half of what that has lost."""
    ends = sorted((curve.layers[before].order, curve.layers[after].order))
    here = _rms(curve.layers[before], curve)
    gap = abs(float(curve.log10[before])) / 2
    between = [layer for layer in layers if ends[0] < layer.order < ends[1]]
    return any(abs(_rms(layer, curve) - here) > gap for layer in between)


def _rms(layer: LayerSignal, curve: Profile) -> float:
    moments = layer.activation if curve.direction == "forward" else layer.gradient
    return math.nan if moments is None else moments.log10_rms
