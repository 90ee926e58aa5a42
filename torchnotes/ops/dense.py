"""A whole layer, linear map, activation and dropout, as one op with one backward."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from torchnotes._checks import check_generator, check_in_range
from torchnotes.ops._activation import ACTIVATIONS, activate, needs_mask, through
from torchnotes.ops._function import Op, may_overwrite, save
from torchnotes.ops.dropout import check_keep_prob, draw_mask
from torchnotes.ops.kernels._dispatch import dense_chosen
from torchnotes.ops.kernels.random_mask import realised_count
from torchnotes.ops.linear import check_linear, rows


class DenseFunction(Op):
    """y = d/p · g(x Wᵀ + b); with z̄ = ȳ · d/p · g'(z): x̄ = z̄ W, W̄ = z̄ᵀ x, b̄ = Σ z̄. Saved: x, W, y."""

    autocast = "low"

    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        mask: Tensor | None,
        activation: str,
        alpha: float,
        scale: float,
    ) -> Tensor:
        z = torch.nn.functional.linear(x, weight, bias)
        return activate(z, activation, alpha, mask, scale, overwrite=may_overwrite(z))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, mask, ctx.activation, ctx.alpha, ctx.scale = inputs
        save(ctx, x, weight, output, mask if needs_mask(ctx.activation) else None)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, y, mask = ctx.saved_tensors
        grad_z = through(grad_y, y, ctx.activation, ctx.alpha, mask, ctx.scale)
        needs_x, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        return (
            grad_z @ weight if needs_x else None,
            rows(grad_z).T @ rows(x) if needs_weight else None,
            rows(grad_z).sum(0) if needs_bias else None,
            *(None, None, None, None),
        )

    @staticmethod
    def jvp(
        ctx: Any,
        tangent_x: Tensor | None,
        tangent_weight: Tensor | None,
        tangent_bias: Tensor | None,
        *_: None,
    ) -> Tensor:
        x, weight, y, mask = ctx.saved_tensors
        terms = []
        if tangent_x is not None:
            terms.append(tangent_x @ weight.T)
        if tangent_weight is not None:
            terms.append(x @ tangent_weight.T)
        if tangent_bias is not None:
            terms.append(tangent_bias.expand_as(y))
        tangent_z = sum(terms[1:], start=terms[0])
        return through(tangent_z, y, ctx.activation, ctx.alpha, mask, ctx.scale)  # elementwise: ẏ = ż · d/p · g'(z)


def dense(
    input: Float[Tensor, "*batch n_in"],
    weight: Float[Tensor, "n_out n_in"],
    bias: Float[Tensor, "n_out"] | None = None,
    *,
    activation: str = "relu",
    keep_prob: float = 1.0,
    training: bool = True,
    negative_slope: float = 0.01,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "*batch n_out"]:
    """One layer of the notes' network in one op: y = dropout(g(x Wᵀ + b)).

    Backward, the notes' equations with d the mask and p the probability of keeping: z = x Wᵀ + b, y = d · g(z) / p, so

    - z̄ = ȳ · d/p · g'(z), elementwise; g'(z) is a function of g(z), which is p y wherever d = 1:

      ==========  ====================  =====================================
      activation  g'(z) by a = g(z)     z̄ with a = p y
      ==========  ====================  =====================================
      relu        [a > 0]               ȳ · [y > 0] / p
      sigmoid     a (1 − a)             ȳ · y (1 − p y)
      tanh        1 − a²                ȳ · d/p · (1 − p² y²)
      leaky_relu  1 or α                ȳ · d/p · (1 where y > 0, else α)
      identity    1                     ȳ · d/p
      ==========  ====================  =====================================

    - x̄ = z̄ W, W̄ = z̄ᵀ x, b̄ = Σ z̄.

    Saved: x, W and y. Neither z nor the activation before dropout is kept; the mask, one byte an element, only where
    it is in the formula, since for ReLU and sigmoid a dropped entry is one with y = 0. The second derivative is exact.

    Args:
        input: x, floating point, (*, n_in).
        weight: W, (n_out, n_in), of x's dtype.
        bias: b, (n_out,), or None.
        activation: g, one of the names above.
        keep_prob: p in (0, 1], see `dropout`; 1 means no dropout.
        training: False leaves dropout out.
        negative_slope: α ≥ 0 of leaky ReLU; unused by the others.
        generator: where dropout's random numbers come from; the global generator if None.

    Returns:
        y, (*, n_out). Under autocast the product is taken, and y given, in its lower precision.

    Raises:
        TypeError: an argument is not a floating-point tensor, or dtypes differ.
        ValueError: shapes do not fit, the activation has no such name, ``keep_prob`` or ``negative_slope`` is out of
            range, the generator is on another device.

    Source: the notes, "building blocks of a deep neural network"; SPEC A12.

    >>> x, weight = torch.tensor([[1.0, -1.0]]), torch.tensor([[2.0, 1.0], [1.0, 2.0]])
    >>> dense(x, weight)
    tensor([[1., 0.]])
    """
    check_linear(input, weight, bias)
    if weight.dim() != 2:
        raise ValueError(f"weight must have shape (n_out, n_in), got {tuple(weight.shape)}; add the missing axis.")
    check_activation(activation)
    check_keep_prob(keep_prob)
    if activation == "leaky_relu":
        check_alpha(negative_slope)
    if dense_chosen(input, weight.shape[0]):
        from torchnotes.ops.kernels import triton_dense

        check_generator(generator, input.device)
        count = realised_count(keep_prob) if training and keep_prob < 1 else None
        return triton_dense.dense(input, weight, bias, activation, negative_slope, count, generator)
    mask, scale = None, 1.0
    if training and keep_prob < 1:
        mask, scale = draw_mask((*input.shape[:-1], weight.shape[0]), input.device, keep_prob, generator)
    return DenseFunction.call(input, weight, bias, mask, activation, negative_slope, scale)


def check_activation(activation: object) -> None:
    """Refuse a name that is not in the table."""
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise ValueError(
            f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}; "
            "for another one compose linear, the activation and dropout."
        )


def check_alpha(negative_slope: float) -> None:
    """Refuse a slope with which y would not tell the sign of z."""
    check_in_range(
        negative_slope, "negative_slope", 0, float("inf"), remedy="for a negative one compose linear and leaky_relu"
    )
