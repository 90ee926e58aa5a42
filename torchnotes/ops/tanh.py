"""Hyperbolic tangent, and its backward."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from torchnotes._checks import check_floating
from torchnotes.ops._function import Op, save
from torchnotes.ops.kernels.memory import large_like


class TanhFunction(Op):
    """y = tanh x and x̄ = ȳ · (1 − y²)."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return torch.tanh(
            x, out=large_like(x)
        )  # (eˣ − e⁻ˣ) / (eˣ + e⁻ˣ) as written is inf / inf for |x| > 88 in float32

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        save(ctx, output)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        out = large_like(grad_y)
        grad_times_y = torch.mul(grad_y, y, out=out)
        return torch.addcmul(grad_y, grad_times_y, y, value=-1, out=out)  # ȳ − ȳ y · y

    jvp = backward


def tanh(input: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Hyperbolic tangent, elementwise: y = (eˣ − e⁻ˣ) / (eˣ + e⁻ˣ).

    Backward: with s = eˣ − e⁻ˣ and c = eˣ + e⁻ˣ, s' = c and c' = s, so (s/c)' = (c² − s²) / c² = 1 − y² and
    x̄ = ȳ · (1 − y²). Only y is saved. The second derivative is −2y (1 − y²). The slope is 1 at 0, its maximum, and
    about 8.2e-9 at ±10; in float32 y rounds to ±1, and x̄ to 0, beyond |x| ≈ 9.01.

    Args:
        input: floating-point tensor of any shape.

    Returns:
        y in [−1, 1], with the shape, dtype and device of the input.

    Raises:
        TypeError: the input is not a floating-point tensor.

    Source: the notes, "derivatives of activation functions"; SPEC A3.

    >>> tanh(torch.tensor([-1000.0, 0.0, 1000.0]))
    tensor([-1.,  0.,  1.])
    """
    check_floating(input, "input")
    return TanhFunction.call(input)
