"""Logarithm of the softmax, and its backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchnotes.ops._function import Op, may_overwrite, save
from torchnotes.ops.softmax import class_axis, prepare


class LogSoftmaxFunction(Op):
    """y_j = x_j − log Σ_k e^{x_k}; ∂y_k/∂x_j = [j = k] − e^{y_j}, so x̄ = ȳ − e^y Σ_k ȳ_k. Only y is kept."""

    autocast = "float32"

    @staticmethod
    def forward(x: Tensor, dim: int) -> Tensor:
        return torch.log_softmax(x, dim)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
        save(ctx, output)
        ctx.dim = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, None]:
        (y,) = ctx.saved_tensors
        yhat, total = y.exp(), grad_y.sum(ctx.dim, keepdim=True)
        return torch.addcmul(grad_y, yhat, total, value=-1, out=yhat if may_overwrite(grad_y) else None), None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor, _: None) -> Tensor:
        (y,) = ctx.saved_tensors
        return dx - (y.exp() * dx).sum(ctx.dim, keepdim=True)


def log_softmax(
    input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None
) -> Tensor:
    """Logarithm of the softmax along one axis: y_j = x_j − log Σ_k e^{x_k}.

    Better than ``softmax(x).log()``, which is −inf as soon as a probability underflows: with logits of ±1e4 this is
    −2e4 and still has a gradient.

    Derivation of the backward, with s = Σ_k e^{x_k}::

        ∂y_k/∂x_j = [j = k] − e^{x_j}/s = [j = k] − e^{y_j}
        x̄_j = Σ_k ȳ_k ∂y_k/∂x_j = ȳ_j − e^{y_j} Σ_k ȳ_k

    Saved for backward: y. Forward mode is the transposed product: ẏ = ẋ − Σ_k e^{y_k} ẋ_k.

    Args:
        input: x, a floating-point tensor of any shape (any dtype where ``dtype`` is given).
        dim: the axis of the classes. None is deprecated, as in `torch.nn.functional.log_softmax`: it warns and takes
            axis 0 of a tensor with 0, 1 or 3 axes, axis 1 of any other.
        _stacklevel: where that warning points.
        dtype: cast ``input`` to it first.

    Returns:
        y ≤ 0 with the shape of ``input``; NaN where the axis holds a NaN or +inf.

    Raises:
        TypeError: ``input`` is not floating point.
        IndexError: ``input`` has no such axis.

    Source: the notes, "multi-class classification"; SPEC A7.

    >>> log_softmax(torch.tensor([1e4, 0.0, -1e4]), dim=0)
    tensor([     0., -10000., -20000.])
    """
    x = prepare(input, dtype)
    y: Tensor = LogSoftmaxFunction.call(x, class_axis(x, dim, "log_softmax", _stacklevel))
    return y
