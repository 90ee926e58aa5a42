"""Dropout layer."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from torchnotes.ops.dropout import check_keep_prob, dropout


class Dropout(nn.Module):
    """Inverted dropout: keeps each element with probability ``keep_prob`` and divides what it keeps by it.

    Active in training mode only; `torchnotes.ops.dropout` has the mathematics. ``Dropout(keep_prob=0.8)`` does what
    ``torch.nn.Dropout(p=0.2)`` does, with other random numbers.

    Args:
        keep_prob: the share kept, in (0, 1]; 1 switches it off.
        generator: where the random numbers come from; the global generator if None. A copy of the
            module has a copy of it, in the same state.

    Raises:
        TypeError: ``keep_prob`` is not a number.
        ValueError: ``keep_prob`` is outside (0, 1].

    Source: the notes, "dropout regularisation"; SPEC A10.

    >>> Dropout(keep_prob=0.8)
    Dropout(keep_prob=0.8)
    """

    def __init__(self, keep_prob: float = 0.5, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        check_keep_prob(keep_prob)
        self.keep_prob = keep_prob
        self.generator = generator

    def forward(self, input: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Drop and rescale in training mode; return the input itself in evaluation mode."""
        return dropout(input, keep_prob=self.keep_prob, training=self.training, generator=self.generator)

    def extra_repr(self) -> str:
        """The share kept."""
        return f"keep_prob={self.keep_prob}"
