"""Log-softmax layer."""

from __future__ import annotations

from torch import Tensor, nn

from torchnotes.ops.log_softmax import log_softmax


class LogSoftmax(nn.LogSoftmax):
    """Logarithm of the softmax; its backward is `torchnotes.ops.log_softmax`'s. A `torch.nn.LogSoftmax` in all else.

    Args:
        dim: the axis of the classes; None is deprecated.

    Source: the notes, "multi-class classification"; SPEC A7.

    >>> LogSoftmax(dim=-1)
    LogSoftmax(dim=-1)
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return x_j − log Σ_k e^{x_k}."""
        return log_softmax(input, self.dim, _stacklevel=5)
