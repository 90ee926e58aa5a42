"""Binary cross-entropy (logistic loss) of logits, and its backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchnotes._checks import check_floating, check_same_shape
from torchnotes.ops._function import Op, save
from torchnotes.ops._reduction import check_reduction, expand_weight, reduce_losses
from torchnotes.ops.sigmoid import SigmoidFunction


class LogisticLossFunction(Op):
    """L = (1 − y) z + (1 + (p − 1) y) s with s = log(1 + e^{−z}), elementwise; ∂L/∂z = a − y where p is 1.

    p is the weight of the positive class, None for 1.
    """

    autocast = "float32"

    @staticmethod
    def forward(z: Tensor, y: Tensor, p: Tensor | None) -> Tensor:
        s = _softplus_of_minus(z)
        if p is not None:
            s = s * (1 + (p - 1) * y)
        return (1 - y) * z + s

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
        save(ctx, *inputs)

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        z, y, p = ctx.saved_tensors
        needs_z, needs_y, needs_p = ctx.needs_input_grad
        return (
            grad_loss * _slope(z, y, p) if needs_z else None,
            grad_loss * _slope_of_target(z, p) if needs_y else None,
            grad_loss * (y * _softplus_of_minus(z)) if needs_p else None,
        )

    @staticmethod
    def jvp(ctx: Any, dz: Tensor | None, dy: Tensor | None, dp: Tensor | None) -> Tensor:
        z, y, p = ctx.saved_tensors
        terms = []
        if dz is not None:
            terms.append(dz * _slope(z, y, p))
        if dy is not None:
            terms.append(dy * _slope_of_target(z, p))
        if dp is not None:
            terms.append(dp * (y * _softplus_of_minus(z)))
        return sum(terms[1:], start=terms[0])


def _softplus_of_minus(z: Tensor) -> Tensor:
    """log(1 + e^{−z}) = max(−z, 0) + log(1 + e^{−|z|}): the exponent is never positive, so nothing overflows."""
    return (-z).clamp_min(0) + torch.log1p(torch.exp(-z.abs()))


def _slope(z: Tensor, y: Tensor, p: Tensor | None) -> Tensor:
    a: Tensor = SigmoidFunction.call(z)
    if p is None:
        return a - y
    return (1 - y) * a - p * y * (1 - a)


def _slope_of_target(z: Tensor, p: Tensor | None) -> Tensor:
    return -z if p is None else (p - 1) * _softplus_of_minus(z) - z


def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
) -> Tensor:
    """Sigmoid and binary cross-entropy in one: L = −w (p y log a + (1 − y) log(1 − a)) with a = σ(z).

    With s = log(1 + e^{−z}) = −log a and log(1 − a) = −z − s the loss is computed from z without a logarithm of a::

        L = w ((1 − y) z + (1 + (p − 1) y) s)

    Derivation of the backward, where ds/dz = −e^{−z} / (1 + e^{−z}) = −(1 − a)::

        ∂L/∂z = w ((1 − y) − (1 + (p − 1) y) (1 − a))
              = w ((1 − y) a − p y (1 − a))
              = w (a − y)                      for p = 1: the notes' dz
        ∂L/∂y = w ((p − 1) s − z)
        ∂L/∂p = w y s

    Saved for backward: z, y and, where given, p.

    Args:
        input: z, the logits, floating point, any shape.
        target: y in [0, 1], floating point, of the shape of ``input``.
        weight: w, broadcast to the shape of ``input``. Unlike PyTorch's it may require a gradient.
        size_average: deprecated, use ``reduction``.
        reduce: deprecated, use ``reduction``.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        pos_weight: p, the weight of the positive class, broadcast to the shape of ``input``: above 1 it favours
            recall, below 1 precision. Unlike PyTorch's it may require a gradient.

    Returns:
        L as a number, or with the shape of ``input`` for ``"none"``; finite for logits of ±1e4, NaN for NaN.

    Raises:
        TypeError: an argument is not floating point.
        ValueError: the shapes of ``input`` and ``target`` differ, or a weight does not broadcast.

    Source: the notes, "logistic regression: gradient descent"; SPEC A8.

    >>> z = torch.tensor([0.0, 1e4], requires_grad=True)
    >>> binary_cross_entropy_with_logits(z, torch.tensor([1.0, 0.0]), reduction="sum").backward()
    >>> z.grad
    tensor([-0.5000,  1.0000])
    """
    reduction = check_reduction(reduction, size_average, reduce)
    check_floating(input, "input")
    check_floating(target, "target")
    check_same_shape(input, target)
    dtype = torch.promote_types(input.dtype, target.dtype)
    p = None if pos_weight is None else expand_weight(pos_weight, input, dtype, "pos_weight")
    losses: Tensor = LogisticLossFunction.call(input.to(dtype), target.to(dtype), p)
    if weight is not None:
        losses = losses * expand_weight(weight, input, losses.dtype)
    return reduce_losses(losses, reduction)
