"""Leaky ReLU layer."""

from __future__ import annotations

import math

from jaxtyping import Float
from torch import Tensor, nn

from torchnotes._checks import check_in_range
from torchnotes.ops._refuse import refuse_inplace
from torchnotes.ops.leaky_relu import leaky_relu


class LeakyReLU(nn.Module):
    """Leaky rectified linear unit, y = max(α x, x), elementwise; its backward is `torchnotes.ops.leaky_relu`'s.

    Args:
        negative_slope: α, the slope below zero.
        inplace: refused when True; an op here leaves its input unmodified.

    Raises:
        TypeError: the slope is not a number.
        ValueError: the slope is NaN, or ``inplace`` is True.

    Source: the notes, "activation functions"; SPEC A5.

    >>> LeakyReLU()
    LeakyReLU(negative_slope=0.01)
    """

    def __init__(self, negative_slope: float = 0.01, inplace: bool = False) -> None:
        super().__init__()
        check_in_range(negative_slope, "negative_slope", -math.inf, math.inf, remedy="the notes use 0.01")
        if inplace:
            refuse_inplace("LeakyReLU")
        self.negative_slope = negative_slope

    def forward(self, input: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Apply it to every element."""
        return leaky_relu(input, self.negative_slope)

    def extra_repr(self) -> str:
        """The slope."""
        return f"negative_slope={self.negative_slope}"
