"""Tanh layer."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from torchnotes.ops.tanh import tanh


class Tanh(nn.Module):
    """Hyperbolic tangent, y = (eˣ − e⁻ˣ) / (eˣ + e⁻ˣ), elementwise; its backward is `torchnotes.ops.tanh`'s.

    Source: the notes, "activation functions"; SPEC A3.

    >>> Tanh()
    Tanh()
    """

    def forward(self, input: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Apply it to every element."""
        return tanh(input)
