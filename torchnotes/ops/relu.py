"""Rectified linear unit, and its backward."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from torchnotes._checks import check_floating
from torchnotes.ops._function import Op, save
from torchnotes.ops._refuse import refuse_inplace
from torchnotes.ops.kernels.memory import large_like


class ReLUFunction(Op):
    """y = max(0, x) and x̄ = ȳ · [x > 0], with [x > 0] = [y > 0] = sign(y) because y ≥ 0."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return torch.clamp_min(x, 0, out=large_like(x))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        save(ctx, output)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        out = large_like(grad_y)
        return torch.mul(torch.sign(y, out=out), grad_y, out=out)

    jvp = backward


def relu(input: Float[Tensor, "*shape"], inplace: bool = False) -> Float[Tensor, "*shape"]:
    """Rectified linear unit, elementwise: y = max(0, x).

    Backward: the slope is 1 above zero and 0 below, so x̄ = ȳ · [x > 0]. At exactly 0 any value in [0, 1] is a
    subgradient; it is 0 here, as in PyTorch. Because x > 0 exactly where y > 0, only y is saved, which the next
    layer keeps anyway. The second derivative is 0.

    Args:
        input: floating-point tensor of any shape.
        inplace: refused when True, it is there so that a call written for PyTorch can be moved over.

    Returns:
        y ≥ 0, with the shape, dtype and device of the input; NaN stays NaN.

    Raises:
        TypeError: the input is not a floating-point tensor.
        ValueError: ``inplace`` is True.

    Source: the notes, "activation functions" and "derivatives of activation functions"; SPEC A4, G11.

    >>> import torch
    >>> relu(torch.tensor([-2.0, 0.0, 3.0]))
    tensor([0., 0., 3.])
    """
    check_floating(input, "input")
    if inplace:
        refuse_inplace("relu")
    return ReLUFunction.call(input)
