"""Softmax, and its backward."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from torchnotes._checks import check_floating, check_tensor, describe
from torchnotes.ops._function import Op, may_overwrite, save


class SoftmaxFunction(Op):
    """y_j = e^{x_j} / Σ_k e^{x_k}; ∂y_k/∂x_j = y_k ([j = k] − y_j), so x̄ = y (ȳ − Σ_k ȳ_k y_k). Only y is kept."""

    autocast = "float32"

    @staticmethod
    def forward(x: Tensor, dim: int) -> Tensor:
        return torch.softmax(x, dim)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
        save(ctx, output)
        ctx.dim = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, None]:
        (y,) = ctx.saved_tensors
        return _jacobian_product(y, grad_y, ctx.dim), None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor, _: None) -> Tensor:
        (y,) = ctx.saved_tensors
        return _jacobian_product(y, dx, ctx.dim)  # the Jacobian is symmetric


def _jacobian_product(y: Tensor, v: Tensor, dim: int) -> Tensor:
    """(diag(y) − y yᵀ) v, without the matrix."""
    vy = v * y
    total = vy.sum(dim, keepdim=True)
    return torch.addcmul(vy, y, total, value=-1, out=vy if may_overwrite(v) else None)


def softmax(input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None) -> Tensor:
    """Softmax along one axis: y_j = e^{x_j} / Σ_k e^{x_k}.

    Stable: the largest x of the axis is subtracted first, which changes nothing, since numerator and denominator both
    shrink by e^{−max}; no exponential overflows.

    Derivation of the backward, with s = Σ_k e^{x_k}::

        ∂y_k/∂x_j = ([j = k] e^{x_k} s − e^{x_k} e^{x_j}) / s²      quotient rule
                  = y_k ([j = k] − y_j)
        x̄_j = Σ_k ȳ_k ∂y_k/∂x_j = ȳ_j y_j − y_j Σ_k ȳ_k y_k
            = y_j (ȳ_j − Σ_k ȳ_k y_k)

    Saved for backward: y. The Jacobian is symmetric, so forward mode is the same product: ẏ = y (ẋ − Σ_k ẋ_k y_k).
    For two classes y_1 = 1 / (1 + e^{−(x_1 − x_2)}): softmax is then logistic regression.

    Args:
        input: x, a floating-point tensor of any shape (any dtype where ``dtype`` is given).
        dim: the axis of the classes. None is deprecated, as in `torch.nn.functional.softmax`: it warns and takes
            axis 0 of a tensor with 0, 1 or 3 axes, axis 1 of any other.
        _stacklevel: where that warning points.
        dtype: cast ``input`` to it first.

    Returns:
        y in [0, 1] with the shape of ``input``, adding up to 1 along ``dim``; NaN where the axis holds a NaN or +inf.

    Raises:
        TypeError: ``input`` is not floating point.
        IndexError: ``input`` has no such axis.

    Source: the notes, "multi-class classification"; SPEC A7.

    >>> softmax(torch.tensor([5.0, 2.0, -1.0, 3.0]), dim=0)
    tensor([0.8420, 0.0419, 0.0021, 0.1140])
    """
    x = prepare(input, dtype)
    y: Tensor = SoftmaxFunction.call(x, class_axis(x, dim, "softmax", _stacklevel))
    return y


def prepare(input: Tensor, dtype: torch.dtype | None) -> Tensor:
    """``input`` in the dtype asked for, refused unless it is then floating point."""
    check_tensor(input, "input")
    if dtype is not None:
        if not dtype.is_floating_point:
            raise TypeError(
                f"dtype must be floating point, got {str(dtype).removeprefix('torch.')}; "
                "use torch.float32 or leave it out."
            )
        input = input.to(dtype)
    check_floating(input, "input")
    return input


def class_axis(x: Tensor, dim: int | None, name: str, stacklevel: int) -> int:
    """The axis to work along; None chooses as PyTorch's own function does, with the same warning."""
    if dim is None:
        warnings.warn(
            f"Implicit dimension choice for {name} has been deprecated. "
            "Change the call to include dim=X as an argument.",
            stacklevel=stacklevel,
        )
        return 0 if x.dim() in (0, 1, 3) else 1
    if not isinstance(dim, int):
        raise TypeError(f"dim must be an int, got {describe(dim)}; the last axis is dim=-1.")
    axes = max(x.dim(), 1)  # a number counts as a vector of one
    if not -axes <= dim < axes:
        raise IndexError(
            f"dim must lie in [{-axes}, {axes - 1}] for {describe(x)}, got {dim}; the last axis is dim=-1."
        )
    return dim
