"""Binary cross-entropy (logistic loss) of probabilities, and its backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchnotes._checks import check_floating, check_same_shape, describe
from torchnotes.ops._function import Op, save
from torchnotes.ops._reduction import (
    accumulation_dtype,
    check_reduction,
    expand_weight,
    reduce_losses,
    refuse_outside_unit_interval,
)


class BinaryCrossEntropyFunction(Op):
    """L = −(y log a + (1 − y) log(1 − a)), elementwise, each logarithm at least −100; ∂L/∂a = (a − y) / (a (1 − a)).

    Like PyTorch's, the denominator is at least ``smallest``, so that the gradient is finite where a is 0 or 1.
    """

    autocast = "float32"

    @staticmethod
    def forward(a: Tensor, y: Tensor, smallest: float) -> Tensor:
        return (y - 1) * _log_of_rest(a) - y * _log(a)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: Tensor) -> None:
        a, y, ctx.smallest = inputs
        save(ctx, a, y)

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        a, y = ctx.saved_tensors
        grad_a = grad_loss * _slope(a, y, ctx.smallest) if ctx.needs_input_grad[0] else None
        grad_y = grad_loss * (_log_of_rest(a) - _log(a)) if ctx.needs_input_grad[1] else None
        return grad_a, grad_y, None

    @staticmethod
    def jvp(ctx: Any, da: Tensor | None, dy: Tensor | None, _: None) -> Tensor:
        a, y = ctx.saved_tensors
        terms = []
        if da is not None:
            terms.append(da * _slope(a, y, ctx.smallest))
        if dy is not None:
            terms.append(dy * (_log_of_rest(a) - _log(a)))
        return sum(terms[1:], start=terms[0])


def _log(a: Tensor) -> Tensor:
    return a.log().clamp_min(-100)


def _log_of_rest(a: Tensor) -> Tensor:
    return torch.log1p(-a).clamp_min(-100)


def _slope(a: Tensor, y: Tensor, smallest: float) -> Tensor:
    return (a - y) / ((1 - a) * a).clamp_min(smallest)


def binary_cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Binary cross-entropy of a probability: L = −w (y log a + (1 − y) log(1 − a)), the notes' logistic loss.

    Both logarithms are cut at −100, as PyTorch does, so that a = 0 and a = 1 give a finite loss.

    Derivation of the backward::

        ∂L/∂a = −w (y/a − (1 − y)/(1 − a))
              = −w (y (1 − a) − (1 − y) a) / (a (1 − a))
              = w (a − y) / (a (1 − a))
        ∂L/∂y = w (log(1 − a) − log a)

    and through a = σ(z), whose slope is a (1 − a), the notes' dz = w (a − y). Only there does the division cancel:
    `binary_cross_entropy_with_logits` starts from z and never divides. Here the denominator is at least 1e-12, in
    float16 1/65504, so at a = 0, y = 1 the gradient is −1e12.

    Saved for backward: a and y.

    Args:
        input: a, probabilities in [0, 1], floating point, any shape.
        target: y in [0, 1], of the shape and dtype of ``input``.
        weight: w, broadcast to the shape of ``input``. Unlike PyTorch's it may require a gradient.
        size_average: deprecated, use ``reduction``.
        reduce: deprecated, use ``reduction``.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Returns:
        L as a number, or with the shape of ``input`` for ``"none"``; NaN where a or y is NaN.

    Raises:
        TypeError: ``input``, ``target`` or ``weight`` is not floating point, or their dtypes differ.
        ValueError: the shapes differ; ``weight`` does not broadcast; a value outside [0, 1] (looked for on the CPU
            only, and not under `torch.compile` or `torch.vmap`; the loss is NaN there where ``input`` is outside).

    Source: the notes, "logistic regression: cost function"; SPEC A8.

    >>> binary_cross_entropy(torch.tensor([0.9, 0.2]), torch.tensor([1.0, 0.0]), reduction="none")
    tensor([0.1054, 0.2231])
    """
    reduction = check_reduction(reduction, size_average, reduce)
    check_floating(input, "input")
    check_floating(target, "target")
    check_same_shape(input, target)
    if input.dtype != target.dtype:
        raise TypeError(
            f"target must have the dtype of input, got {describe(target)} against {describe(input)}; "
            "convert it with target.to(input.dtype)."
        )
    refuse_outside_unit_interval(input, "input", "apply the sigmoid, or use binary_cross_entropy_with_logits")
    refuse_outside_unit_interval(target, "target", "probabilities are what the loss is for")
    dtype = accumulation_dtype(input.dtype)
    # In the input's own dtype the reciprocal of the smallest denominator must still be finite.
    smallest = max(1e-12, 1 / torch.finfo(input.dtype).max)
    losses: Tensor = BinaryCrossEntropyFunction.call(input.to(dtype), target.to(dtype), smallest)
    if weight is not None:
        losses = losses * expand_weight(weight, input, losses.dtype)
    reduced = reduce_losses(losses, reduction)
    return reduced if torch.is_autocast_enabled(input.device.type) else reduced.to(input.dtype)
