"""Binary cross-entropy of probabilities as a module."""

from __future__ import annotations

from torch import Tensor, nn

from torchnotes.ops.binary_cross_entropy import binary_cross_entropy


class BCELoss(nn.BCELoss):
    """Logistic loss of probabilities; its backward is `torchnotes.ops.binary_cross_entropy`'s.

    A `torch.nn.BCELoss` in all else: arguments, buffers and ``state_dict``.

    Source: the notes, "logistic regression: cost function"; SPEC A8.

    >>> BCELoss(reduction="sum")
    BCELoss()
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss of probabilities ``input`` against ``target``, of one shape."""
        return binary_cross_entropy(input, target, weight=self.weight, reduction=self.reduction)
