"""Softmax layer."""

from __future__ import annotations

from torch import Tensor, nn

from torchnotes.ops.softmax import softmax


class Softmax(nn.Softmax):
    """Softmax along one axis; its backward is `torchnotes.ops.softmax`'s. A `torch.nn.Softmax` in all else.

    Args:
        dim: the axis of the classes; None is deprecated.

    Source: the notes, "multi-class classification"; SPEC A7.

    >>> Softmax(dim=-1)
    Softmax(dim=-1)
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return e^{x_j} / Σ_k e^{x_k}."""
        return softmax(input, self.dim, _stacklevel=5)
