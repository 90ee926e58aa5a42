"""Binary cross-entropy of logits as a module."""

from __future__ import annotations

from torch import Tensor, nn

from torchnotes.ops.binary_cross_entropy_with_logits import binary_cross_entropy_with_logits


class BCEWithLogitsLoss(nn.BCEWithLogitsLoss):
    """Logistic loss of logits; its backward is `torchnotes.ops.binary_cross_entropy_with_logits`'s.

    A `torch.nn.BCEWithLogitsLoss` in all else: arguments, buffers and ``state_dict``.

    Source: the notes, "logistic regression: gradient descent"; SPEC A8.

    >>> BCEWithLogitsLoss()
    BCEWithLogitsLoss()
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss of logits ``input`` against ``target``, of one shape."""
        return binary_cross_entropy_with_logits(
            input, target, self.weight, pos_weight=self.pos_weight, reduction=self.reduction
        )
