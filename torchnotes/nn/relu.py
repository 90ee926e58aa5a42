"""ReLU layer."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from torchnotes.ops._refuse import refuse_inplace
from torchnotes.ops.relu import relu


class ReLU(nn.Module):
    """Rectified linear unit, y = max(0, x), elementwise; its backward is `torchnotes.ops.relu`'s.

    Args:
        inplace: refused when True; an op here leaves its input unmodified.

    Raises:
        ValueError: ``inplace`` is True.

    Source: the notes, "activation functions"; SPEC A4.

    >>> ReLU()
    ReLU()
    """

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        if inplace:
            refuse_inplace("ReLU")

    def forward(self, input: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Apply it to every element."""
        return relu(input)
