"""Comparing two gradients: the notes' ratio, and the thresholds by which they read it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from torchnotes._checks import check_tensor

Verdict = Literal["correct", "suspect", "wrong", "inconclusive"]
Gradients: TypeAlias = "Tensor | Iterable[Tensor] | Mapping[str, Tensor]"

#: From worst to best: a whole is as bad as its worst part.
SEVERITY: tuple[Verdict, ...] = ("wrong", "suspect", "inconclusive", "correct")

#: The notes' readings of the ratio (SPEC D5): at most the first, very likely right; from the second on, a bug.
RIGHT, BUG = 1e-7, 1e-3


def gradient_ratio(approx: Gradients, exact: Gradients) -> float:
    """The notes' distance between two gradients: ‖dθ_approx − dθ‖₂ / (‖dθ_approx‖₂ + ‖dθ‖₂).

    All parameters are joined into one vector first (SPEC D3), so tensors may come one by one or as a collection in
    the same order. The sum of the norms makes the measure free of the gradient's scale: 0 for equal vectors, 1 for
    a sign error. Norms are taken after division by the largest magnitude, so that gradients of 1e-200 do not
    underflow when squared. Two zero gradients have the ratio 0.

    Read it (SPEC D5) as: ≤ 1e-7 very likely right, around 1e-5 look at every component, ≥ 1e-3 a bug.

    Args:
        approx: the numerical gradient: a tensor, or a collection of tensors (a mapping is matched by key).
        exact: the gradient under test, in the same form.

    Returns:
        The ratio, in [0, 1]; NaN if either gradient holds a NaN or an infinity.

    Raises:
        TypeError: something other than tensors came.
        ValueError: the two do not have the same number of tensors, names or shapes, or they have no entries.

    Source: the notes, "gradient checking"; SPEC D4, D5.

    >>> gradient_ratio(torch.tensor([3.0001]), torch.tensor([3.0])) < 1e-4
    True
    >>> gradient_ratio(torch.tensor([1.0, 2.0]), torch.tensor([-1.0, -2.0]))
    1.0
    """
    first, second = _tensors(approx, "approx"), _tensors(exact, "exact")
    if isinstance(approx, Mapping) and isinstance(exact, Mapping):
        if set(approx) != set(exact):
            raise ValueError(
                f"approx and exact must name the same parameters, got {sorted(approx)} and {sorted(exact)}; "
                "take both from model.named_parameters()."
            )
        second = [exact[name] for name in approx]
    if len(first) != len(second):
        raise ValueError(
            f"approx and exact must hold the same number of tensors, got {len(first)} and {len(second)}; "
            "list every parameter's gradient in both, in the same order."
        )
    for k, (a, b) in enumerate(zip(first, second, strict=True)):
        if a.shape != b.shape:
            raise ValueError(
                f"approx and exact must agree in shape, got {tuple(a.shape)} and {tuple(b.shape)} for tensor {k}; "
                "a gradient has the shape of its parameter."
            )
    if not any(a.numel() for a in first):
        raise ValueError(
            "approx and exact must hold at least one entry, got none; two gradients of nothing agree whatever the "
            "backward does: is the batch or the list of parameters empty?"
        )
    difference = [a.detach().double() - b.detach().double() for a, b in zip(first, second, strict=True)]
    return ratio_of_norms(norm(*difference), norm(*first), norm(*second))


def ratio_of_norms(difference: float, approx: float, exact: float) -> float:
    """The ratio from three norms already taken."""
    denominator = approx + exact
    if not math.isfinite(difference) or not math.isfinite(denominator):
        return math.nan
    return difference / denominator if denominator else 0.0


def norm(*tensors: Tensor) -> float:
    """‖·‖₂ of all tensors joined, in float64, without underflow or overflow of the squares."""
    largest = max((float(t.detach().abs().max()) for t in tensors if t.numel()), default=0.0)
    if largest == 0.0 or not math.isfinite(largest):
        return largest
    squares = sum(float((t.detach().double() / largest).square().sum()) for t in tensors if t.numel())
    return largest * math.sqrt(squares)


def read_ratio(ratio: float) -> Verdict:
    """The notes' reading of a ratio taken at face value, that is, of a cost without round-off.

    >>> [read_ratio(r) for r in (1e-9, 1e-5, 1e-2)]
    ['correct', 'suspect', 'wrong']
    """
    if ratio <= RIGHT:
        return "correct"
    return "suspect" if ratio < BUG else "wrong"  # a NaN ratio is wrong too


def worst_verdict(verdicts: Iterable[Verdict]) -> Verdict:
    """The worst of several verdicts; "correct" for none."""
    return min(verdicts, key=SEVERITY.index, default="correct")


def _tensors(value: Gradients, name: str) -> list[Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    items = list(value.values()) if isinstance(value, Mapping) else list(value)
    for k, item in enumerate(items):
        check_tensor(item, f"{name}[{k}]")
    return items
