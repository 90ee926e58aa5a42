"""Leaky rectified linear unit, and its backward."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from torchnotes._checks import check_floating, check_in_range
from torchnotes.ops._function import Op, save
from torchnotes.ops._refuse import refuse_inplace
from torchnotes.ops.kernels.memory import large_like


class LeakyReLUFunction(Op):
    """y = x above zero, α x below; x̄ = ȳ · (1 above zero, α elsewhere)."""

    @staticmethod
    def forward(x: Tensor, slope: float) -> Tensor:
        out = large_like(x)
        if out is None:
            return torch.nn.functional.leaky_relu(x, slope)  # in one pass
        return torch.nn.functional.leaky_relu_(out.copy_(x), slope)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, ctx.slope = inputs
        save(ctx, output if ctx.slope >= 0 else x)  # a negative slope makes y > 0 on both sides

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, None]:
        (x_or_y,), alpha = ctx.saved_tensors, ctx.slope
        if not 0 <= alpha <= 1:
            return torch.where(x_or_y > 0, grad_y, grad_y * alpha), None
        out = large_like(grad_y)
        if out is None:
            return torch.clamp_min(torch.sign(x_or_y), alpha) * grad_y, None  # the larger of α and 1, 0 or −1
        return torch.sign(x_or_y, out=out).clamp_min_(alpha).mul_(grad_y), None  # the same in one piece of memory

    @staticmethod
    def jvp(ctx: Any, tangent_x: Tensor, _: None) -> Tensor:
        return LeakyReLUFunction.backward(ctx, tangent_x)[0]


def leaky_relu(
    input: Float[Tensor, "*shape"], negative_slope: float = 0.01, inplace: bool = False
) -> Float[Tensor, "*shape"]:
    """Leaky rectified linear unit, elementwise: y = max(α x, x), with α the negative slope.

    Backward: the slope is 1 above zero and α below (α at exactly 0, as in PyTorch), so x̄ = ȳ · (1 or α). For α ≥ 0
    x > 0 exactly where y > 0, so only y is saved; for α < 0, where y is x above zero and α x below, x is. The second
    derivative is 0.

    Args:
        input: floating-point tensor of any shape.
        negative_slope: α, the slope below zero; any finite number.
        inplace: refused when True, it is there so that a call written for PyTorch can be moved over.

    Returns:
        y, with the shape, dtype and device of the input; NaN stays NaN.

    Raises:
        TypeError: the input is not a floating-point tensor, or the slope is not a number.
        ValueError: the slope is NaN, or ``inplace`` is True.

    Source: the notes, "activation functions"; SPEC A5.

    >>> leaky_relu(torch.tensor([-2.0, 0.0, 3.0]))
    tensor([-0.0200,  0.0000,  3.0000])
    """
    check_floating(input, "input")
    if type(negative_slope) is not float or math.isnan(negative_slope):
        check_in_range(negative_slope, "negative_slope", -math.inf, math.inf, remedy="the notes use 0.01")
    if inplace:
        refuse_inplace("leaky_relu")
    return LeakyReLUFunction.call(input, negative_slope)
