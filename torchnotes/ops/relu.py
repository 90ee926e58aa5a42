"""Rectified linear unit, and its backward."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from torchnotes._checks import check_floating
from torchnotes.ops._function import Op, save


class ReLUFunction(Op):
    """y = max(0, x); x̄ = ȳ · [x > 0], and [x > 0] = [y > 0], so that only y need be kept."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clamp_min(0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        save(ctx, output)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return grad_y * (y > 0)

    jvp = backward


def relu(input: Tensor) -> Tensor:
    """Rectified linear unit, elementwise: y = max(0, x)."""
    check_floating(input, "input")
    return ReLUFunction.call(input)
