"""L2 penalty on the weights, and its backward."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from torchnotes.ops._function import Op, save
from torchnotes.ops._penalty import check_penalty, check_weights


class SquaredNormFunction(Op):
    """y = Σ w²; w̄ = ȳ · 2w."""

    autocast = "float32"

    @staticmethod
    def forward(w: Tensor) -> Tensor:
        flat = w.reshape(-1)
        return flat.dot(flat)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        save(ctx, inputs[0])

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> Tensor:
        (w,) = ctx.saved_tensors
        return w * (2 * grad_y)

    @staticmethod
    def jvp(ctx: Any, dw: Tensor) -> Tensor:
        (w,) = ctx.saved_tensors
        return 2 * (w * dw).sum()


def l2_penalty(weights: Tensor | Iterable[Tensor], lambd: float, m: int) -> Tensor:
    """L2 penalty, λ/(2m) Σ ‖W‖_F²: the sum of squares over every weight given, to be added to the cost.

    Derivation of the backward::

        ∂/∂W_ij λ/(2m) Σ_kl W_kl² = λ/(2m) · 2 W_ij = λ/m W_ij

    Each step of gradient descent then shrinks W by the factor 1 − αλ/m, whence "weight decay":
    ``torch.optim.SGD(weight_decay=λ/m)`` takes the same steps. Pass weights only, never biases;
    `torchnotes.regularization.Penalty` picks them from a model.

    Saved for backward: W itself.

    Args:
        weights: a tensor, or several.
        lambd: λ ≥ 0, the strength.
        m: number of samples the cost is a mean over.

    Returns:
        The penalty, a number; half precision is summed in float32.

    Raises:
        TypeError: a weight is not a floating-point tensor.
        ValueError: no weight at all, λ negative, m below 1.

    Source: the notes, "regularisation"; SPEC A14.

    >>> import torch
    >>> float(l2_penalty(torch.tensor([[3.0, 4.0]]), lambd=2.0, m=5))
    5.0
    """
    check_penalty(lambd, m)
    return sum(lambd / (2 * m) * SquaredNormFunction.call(w) for w in check_weights(weights))
