"""Batch normalisation layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from torchnotes._checks import check_in_range
from torchnotes.ops.batch_norm import batch_norm


class _BatchNorm(nn.modules.batchnorm._BatchNorm):
    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        average: float | None = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype)
        if not bias:
            self.register_parameter("bias", None)
        if average is not None:
            check_in_range(average, "average", 0.0, 1.0, remedy="0.9 averages over about ten batches")
        self.average = average

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.setdefault("average", None)

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalised ``input``; in training mode update the running statistics."""
        self._check_input_dim(input)
        momentum = 0.0 if self.momentum is None else self.momentum
        if self.training and self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:  # the plain mean over all batches so far
                momentum = 1.0 / float(self.num_batches_tracked)
        tracked = not self.training or self.track_running_stats
        return batch_norm(
            input,
            self.running_mean if tracked else None,
            self.running_var if tracked else None,
            self.weight,
            self.bias,
            self.training or (self.running_mean is None and self.running_var is None),
            momentum,
            self.eps,
            average=self.average,
        )

    def extra_repr(self) -> str:
        """What `torch.nn` prints, and the notes' average where it is used."""
        shown: str = super().extra_repr()
        return shown if self.average is None else f"{shown}, average={self.average}"


class BatchNorm1d(_BatchNorm, nn.BatchNorm1d):
    """Batch normalisation of (N, C) or (N, C, L); its backward is `torchnotes.ops.batch_norm`'s.

    A `torch.nn.BatchNorm1d` in all else: arguments, parameters, buffers and ``state_dict``.

    Args:
        num_features: C.
        eps: ε, added to the variance.
        momentum: weight of the new batch in PyTorch's running average; None for the plain mean over all batches.
        affine: learn γ (``weight``) and β (``bias``).
        track_running_stats: keep running statistics for evaluation.
        device: where the parameters live.
        dtype: their floating-point type.
        bias: False leaves β out.
        average: the notes' running average, with this weight of the past and the biased variance, in place of
            ``momentum``; see `torchnotes.ops.batch_norm`.

    Raises:
        ValueError: an input of another number of axes; ``average`` outside [0, 1]; what `batch_norm` refuses.

    Source: the notes, "batch normalisation"; SPEC A11, G15.

    >>> BatchNorm1d(7, average=0.9).average
    0.9
    """


class BatchNorm2d(_BatchNorm, nn.BatchNorm2d):
    """Batch normalisation of images, (N, C, H, W); its backward is `torchnotes.ops.batch_norm`'s.

    A `torch.nn.BatchNorm2d` in all else; for the arguments see `BatchNorm1d`.

    Source: the notes, "batch normalisation"; SPEC A11, G15.

    >>> BatchNorm2d(64)(torch.zeros(2, 64, 3, 3)).shape
    torch.Size([2, 64, 3, 3])
    """
