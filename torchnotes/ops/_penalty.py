"""What the penalties share: their checks."""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import Tensor

from torchnotes._checks import check_floating, check_in_range, describe
from torchnotes.ops._reduction import accumulation_dtype


def check_penalty(lambd: float, m: int) -> None:
    """Refuse a strength below 0 and a number of samples below 1."""
    check_in_range(lambd, "lambd", 0.0, math.inf, remedy="0 turns the penalty off")
    if isinstance(m, bool) or not isinstance(m, int):
        raise TypeError(f"m must be a whole number of samples, got {describe(m)}; give the size of the batch.")
    if m < 1:
        raise ValueError(f"m must be at least 1, got {m}; give the number of samples the cost is a mean over.")


def check_weights(weights: Tensor | Iterable[Tensor]) -> list[Tensor]:
    """The weights as a list, each checked, half precision raised to float32."""
    if isinstance(weights, Tensor):
        weights = [weights]
    if not isinstance(weights, Iterable):
        raise TypeError(
            f"weights must be a tensor or several, got {describe(weights)}; pass [layer.weight for layer in layers]."
        )
    listed = list(weights)
    if not listed:
        raise ValueError("weights must hold at least one tensor, got none; pass [layer.weight for layer in layers].")
    for position, weight in enumerate(listed):
        check_floating(weight, f"weights[{position}]")
    return [weight.to(accumulation_dtype(weight.dtype)) for weight in listed]
