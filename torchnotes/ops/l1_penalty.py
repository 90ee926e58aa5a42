"""L1 penalty on the weights, and its backward."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from torchnotes.ops._function import Op, save
from torchnotes.ops._penalty import check_penalty, check_weights


class AbsoluteSumFunction(Op):
    """y = Σ |w|; w̄ = ȳ · sign(w), which is 0 at w = 0."""

    autocast = "float32"

    @staticmethod
    def forward(w: Tensor) -> Tensor:
        return w.abs().sum()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        save(ctx, inputs[0])

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> Tensor:
        (w,) = ctx.saved_tensors
        return w.sign() * grad_y

    @staticmethod
    def jvp(ctx: Any, dw: Tensor) -> Tensor:
        (w,) = ctx.saved_tensors
        return (w.sign() * dw).sum()


def l1_penalty(weights: Tensor | Iterable[Tensor], lambd: float, m: int) -> Tensor:
    """L1 penalty, λ/(2m) Σ ‖W‖₁: the sum of magnitudes over every weight given, to be added to the cost.

    Derivation of the backward: |w| has slope 1 above zero and −1 below, so::

        ∂/∂W_ij λ/(2m) Σ_kl |W_kl| = λ/(2m) sign(W_ij)

    At exactly 0, where any slope in [−1, 1] is a subgradient, it is 0, as in PyTorch: a weight that has reached 0 is
    not pushed off it. Pass weights only, never biases; `torchnotes.regularization.Penalty` picks them from a model.

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
    >>> float(l1_penalty(torch.tensor([[3.0, -4.0]]), lambd=2.0, m=7))
    1.0
    """
    check_penalty(lambd, m)
    return sum(lambd / (2 * m) * AbsoluteSumFunction.call(w) for w in check_weights(weights))
