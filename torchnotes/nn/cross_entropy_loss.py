"""Softmax cross-entropy as a module."""

from __future__ import annotations

from torch import Tensor, nn

from torchnotes.ops.cross_entropy import cross_entropy


class CrossEntropyLoss(nn.CrossEntropyLoss):
    """Softmax cross-entropy of logits; its backward is `torchnotes.ops.cross_entropy`'s.

    A `torch.nn.CrossEntropyLoss` in all else: arguments, buffers and ``state_dict``.

    Source: the notes, "multi-class classification"; SPEC A9.

    >>> CrossEntropyLoss(label_smoothing=0.1)
    CrossEntropyLoss()
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss of logits ``input`` against class indices or probabilities."""
        return cross_entropy(
            input,
            target,
            weight=self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )
