"""Records as plain values: a flat dict for tables, a scale as text."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from torchnotes.diagnostics.records import LayerSignal, Moments


def row_of(layer: LayerSignal) -> dict[str, Any]:
    """A record as one flat dict: ``activation_rms``, ``gradient_log10_rms``, ..."""
    row: dict[str, Any] = {
        "layer": layer.label,
        "kind": layer.kind,
        "role": layer.role,
        "depth": layer.depth,
        "shape": "×".join(map(str, layer.shape)),
        "dtype": layer.dtype,
        "fan_in": layer.fan_in,
        "fan_out": layer.fan_out,
    }
    for part in ("activation", "gradient", "weight", "weight_gradient", "bias"):
        moments = getattr(layer, part)
        for field in dataclasses.fields(Moments):
            row[f"{part}_{field.name}"] = None if moments is None else getattr(moments, field.name)
    return row


def scale(moments: Moments | None) -> str:
    """An rms as text; from log₁₀, so that what float32 could not square still has its digits."""
    if moments is None:
        return ""
    bad = f" +{moments.nonfinite} non-finite" if moments.nonfinite else ""
    if math.isnan(moments.log10_rms):
        return f"{moments.nonfinite} non-finite" if moments.nonfinite else "empty"
    return ("0" if moments.log10_rms == -math.inf else f"{10**moments.log10_rms:.3g}") + bad
