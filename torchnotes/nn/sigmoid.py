"""Sigmoid layer."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from torchnotes.ops.sigmoid import sigmoid


class Sigmoid(nn.Module):
    """Logistic sigmoid, y = 1 / (1 + e⁻ˣ), elementwise; its backward is `torchnotes.ops.sigmoid`'s.

    Source: the notes, "activation functions"; SPEC A2.

    >>> Sigmoid()
    Sigmoid()
    """

    def forward(self, input: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Apply it to every element."""
        return sigmoid(input)
