"""Averages of samples of gradients, and counts of idle units, over training steps: compiled by numba."""

from __future__ import annotations

from typing import Any

import numpy as np

from torchnotes.diagnostics._compiling import compiled


@compiled(
    "void(float32[::1], int64[::1], float64, float64, float64, float64, float64[::1], float64[::1], float64[::1])"
)
def average(
    values: Any,
    counts: Any,
    factor: float,
    decay: float,
    weight: float,
    left: float,
    mean: Any,
    square: Any,
    shares: Any,
) -> None:
    """Take g = factor · value into averages m ← βm + (1 − β)g and s ← βs + (1 − β)g²; of each part the share of noise.

    It is (1 − Σm²/(w Σs)) / (1 − l), within 0 and 1; NaN where nothing but zeros came yet.

    Args:
        values: the parts, joined.
        counts: the lengths of the parts.
        factor: of every value.
        decay: β.
        weight: w = 1 − βᵗ.
        left: l, what averaging leaves of the variance of one draw.
        mean: m.
        square: s.
        shares: takes the shares.
    """
    at = 0
    for i in range(counts.size):
        signal, power = 0.0, 0.0
        for j in range(at, at + counts[i]):
            gradient = factor * np.float64(values[j])
            mean[j] = decay * mean[j] + (1 - decay) * gradient
            square[j] = decay * square[j] + (1 - decay) * gradient * gradient
            signal += mean[j] * mean[j]
            power += square[j]
        shares[i] = np.nan
        if power > 0:
            share = (1 - signal / (weight * power)) / (1 - left)
            shares[i] = 0.0 if share < 0 else 1.0 if share > 1 else share
        at += counts[i]


@compiled("void(int32[::1], int32[::1], int32[::1], int64[::1], int64, float64[::1])")
def count_idle(idle: Any, length: Any, total: Any, sizes: Any, window: int, shares: Any) -> None:
    """Count a step in which the units marked by 1 were idle; by layer the share that was so for ``window`` steps.

    ``length`` holds for each unit how many steps in a row it has been idle, ``total`` how many in all.
    """
    at = 0
    for i in range(sizes.size):
        gone = 0
        for j in range(at, at + sizes[i]):
            length[j] = (length[j] + 1) * idle[j]
            total[j] += idle[j]
            gone += length[j] >= window
        shares[i] = gone / sizes[i]
        at += sizes[i]
