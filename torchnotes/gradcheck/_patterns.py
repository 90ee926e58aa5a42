"""How a wrong gradient relates to the right one, in words."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from torchnotes.gradcheck.compare import norm

CLOSE = 1e-4


def describe_pattern(
    exact: Tensor,
    approx: Tensor,
    theta: Tensor,
    *,
    wrong: Tensor | None = None,
    penalty: Tensor | None = None,
    sizes: dict[int, str] | None = None,
    detached: bool = False,
) -> str:
    """Name what is wrong with a gradient, or return an empty string.

    Args:
        exact: the wrong gradient, in the parameter's shape.
        approx: the numerical one.
        theta: the parameter.
        wrong: mask of the entries known to be wrong.
        penalty: the penalty's own gradient, if there is a penalty.
        sizes: what some whole numbers mean here, such as ``{64: "the number of samples"}``.
        detached: autograd has no path from the cost to this parameter.
    """
    if detached:
        return "missing: J depends on it, but autograd finds no path to it (detached, or a leaf was made anew)"
    scale = norm(approx)
    if not bool(torch.isfinite(exact).all()):
        return f"not finite in {int((~torch.isfinite(exact)).sum())} of {exact.numel()} entries"
    if norm(exact) == 0:
        return "missing: the gradient is zero throughout, the differences are not"
    if scale == 0:
        return "spurious: J does not depend on it, yet the gradient is not zero"
    close = CLOSE * scale
    return (
        _penalty(exact, approx, theta, penalty, close)
        or _multiple(exact, approx, sizes or {}, close)
        or _rearranged(exact, approx, close)
        or _magnitude(exact, approx, close)
        or _region(exact, wrong)
        or _loosely(exact, approx)
    )


def _multiple(exact: Tensor, approx: Tensor, sizes: dict[int, str], close: float) -> str:  # noqa: PLR0911 - one return for each pattern
    factor = float((exact * approx).sum() / approx.square().sum())
    if norm(exact - factor * approx) > max(close * abs(factor), 1e-30):
        return ""
    if math.isclose(factor, -1.0, rel_tol=1e-3):
        return "sign: the negative of the right gradient"
    if abs(factor - 1) < 1e-2:
        return f"{factor:.5g} × the right gradient throughout: a relative error of {abs(factor - 1):.1g} in every entry"
    magnitude, sign = abs(factor), "with the wrong sign and " if factor < 0 else ""
    for size, meaning in sizes.items():
        if size > 1 and math.isclose(magnitude, size, rel_tol=1e-3):
            return f"{sign}{size} × too large, and {size} is {meaning}: a sum where a mean is meant"
        if size > 1 and math.isclose(magnitude * size, 1.0, rel_tol=1e-3):
            return f"{sign}1/{size} of the right gradient, and {size} is {meaning}: the mean taken twice"
    if math.isclose(magnitude, 0.5, rel_tol=1e-3):
        return f"{sign}uniform ½: a mean taken twice, or a factor 2 left out"
    if magnitude > 1:
        return f"{sign}{magnitude:.4g} × too large"
    return f"{sign}{1 / magnitude:.4g} × too small"


def _penalty(exact: Tensor, approx: Tensor, theta: Tensor, penalty: Tensor | None, close: float) -> str:
    gap = approx - exact
    if norm(gap) < close:
        return ""
    if penalty is not None and norm(penalty) > 0:
        count = float((gap * penalty).sum() / penalty.square().sum())
        if norm(gap - count * penalty) < 1e-3 * norm(gap):
            return _times_penalty(count)
    for direction, what in ((theta, "L2 penalty (gradient ∝ the weight)"), (theta.sign(), "L1 penalty (∝ its sign)")):
        if theta.numel() < 4 or norm(direction) == 0 or norm(exact - approx * (exact.sum() / approx.sum())) < close:
            continue
        count = float((gap * direction).sum() / direction.square().sum())
        if norm(gap - count * direction) < 1e-3 * norm(gap):
            return f"penalty missing: what is left out is {count:.4g} × the {what}"
    return ""


def _times_penalty(count: float) -> str:
    if math.isclose(count, 1.0, rel_tol=1e-3):
        return "penalty missing: exactly the penalty's gradient is left out"
    if math.isclose(count, -1.0, rel_tol=1e-3):
        return "penalty counted twice"
    return f"penalty wrong: {1 - count:.4g} × its gradient is there instead of 1 ×"


def _rearranged(exact: Tensor, approx: Tensor, close: float) -> str:  # noqa: PLR0911 - one return for each pattern
    if exact.dim() >= 2:
        turned = approx.transpose(-1, -2)
        if norm(exact - turned.reshape(exact.shape)) < close:
            return "transposed"
        if exact.shape[-1] != exact.shape[-2] and norm(exact.transpose(-1, -2).reshape(exact.shape) - approx) < close:
            return "transposed"
    for axis in range(exact.dim()):
        if norm(exact - approx.flip(axis)) < close:
            return f"reversed along axis {axis}"
    same_values = norm(exact.reshape(-1).sort().values - approx.reshape(-1).sort().values) < close
    if same_values and exact.numel() > 2:
        return "the right values in the wrong order"
    if exact.numel() > 1 and norm(exact - approx.mean()) < close:
        return "averaged: every entry holds the mean of the right ones"
    if exact.numel() > 1 and norm(exact - approx.sum()) < close * exact.numel() ** 0.5:
        return "summed: every entry holds the sum of the right ones"
    return ""


def _magnitude(exact: Tensor, approx: Tensor, close: float) -> str:
    if norm(exact - approx.abs()) < close:
        return "absolute value: the sign is lost"
    if norm(exact - approx.clamp_min(0)) < close:
        return "negative entries are set to 0"
    bound = float(exact.abs().max())
    if norm(exact - approx.clamp(-bound, bound)) < close:
        return f"clipped to ±{bound:.3g}"
    if norm(exact - approx.square()) < CLOSE * norm(exact):
        return "squared"
    return ""


def _region(exact: Tensor, wrong: Tensor | None) -> str:
    if wrong is None or not bool(wrong.any()) or bool(wrong.all()):
        return ""
    where = wrong.reshape(exact.shape).nonzero()
    count = len(where)
    for axis in range(exact.dim()):
        lines = where[:, axis].unique()
        whole = exact.numel() // exact.shape[axis]
        if exact.dim() > 1 and len(lines) == 1 and count > 1:
            what = (
                {0: "row", 1: "column"}.get(axis, f"axis {axis}, position")
                if exact.dim() == 2
                else f"axis {axis}, position"
            )
            extent = "all" if count == whole else f"{count} entries"
            return f"wrong only in {what} {int(lines[0])} ({extent} of it)"
    shown = ", ".join("[" + ", ".join(map(str, row)) + "]" for row in where[:4].tolist())
    return f"{count} of {exact.numel()} entries wrong: {shown}{', …' if count > 4 else ''}"


def _loosely(exact: Tensor, approx: Tensor) -> str:
    cosine = float((exact * approx).sum()) / (norm(exact) * norm(approx))
    return (
        f"no simple pattern: cosine {cosine:.3f} with the right gradient, {norm(exact) / norm(approx):.3g} × its length"
    )
