"""Logistic sigmoid, and its backward."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from torchnotes._checks import check_floating
from torchnotes.ops._function import Op, number_beside, save
from torchnotes.ops.kernels.memory import large_like


class SigmoidFunction(Op):
    """y = 1 / (1 + e⁻ˣ) and x̄ = ȳ · y (1 − y)."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return torch.sigmoid(
            x, out=large_like(x)
        )  # 1 / (1 + e⁻ˣ) in one pass; e⁻ˣ = inf for x ≪ 0 gives y = 0, as it should

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        save(ctx, output)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        out = large_like(grad_y)
        # From y the share y of the way to 0 is y (1 − y), and lerp forms it with 1 − y exact where y is near 1.
        slope = torch.lerp(y, number_beside(0.0, y), y, out=out)
        return torch.mul(slope, grad_y, out=out)

    jvp = backward


def sigmoid(input: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Logistic sigmoid, elementwise: y = σ(x) = 1 / (1 + e⁻ˣ).

    Backward: dy/dx = e⁻ˣ / (1 + e⁻ˣ)², where 1 / (1 + e⁻ˣ) = y and e⁻ˣ / (1 + e⁻ˣ) = 1 − y, so dy/dx = y (1 − y) and
    x̄ = ȳ · y (1 − y). Only y is saved. Autograd differentiates that line again for the second derivative,
    y (1 − y) (1 − 2y). The slope is 1/4 at 0, its maximum, and about 4.5e-5 at ±10. In float32 y rounds to 1, and x̄
    to 0, beyond x ≈ 16.6.

    Args:
        input: floating-point tensor of any shape.

    Returns:
        y in [0, 1], with the shape, dtype and device of the input.

    Raises:
        TypeError: the input is not a floating-point tensor.

    Source: the notes, "derivatives of activation functions"; SPEC A2.

    >>> sigmoid(torch.tensor([-1000.0, 0.0, 1000.0]))
    tensor([0.0000, 0.5000, 1.0000])
    """
    check_floating(input, "input")
    return SigmoidFunction.call(input)
