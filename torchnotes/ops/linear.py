"""Linear map with bias, and its backward."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from torchnotes._checks import check_floating
from torchnotes.ops._function import Op, save


class LinearFunction(Op):
    """y = x Wᵀ + b over the last axis of x; x̄ = ȳ W, W̄ = ȳᵀ x, b̄ = Σ ȳ."""

    autocast = "low"

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return torch.nn.functional.linear(x, weight, bias)  # x Wᵀ + b in one call

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _ = inputs
        save(ctx, x, weight)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            grad_y @ weight if needs_x else None,
            rows(grad_y).T @ rows(x) if needs_weight else None,
            rows(grad_y).sum(0) if needs_bias else None,
        )

    @staticmethod
    def jvp(ctx: Any, tangent_x: Tensor | None, tangent_weight: Tensor | None, tangent_bias: Tensor | None) -> Tensor:
        x, weight = ctx.saved_tensors
        # ẏ = ẋ Wᵀ + x Ẇᵀ + ḃ, of which only the terms with a tangent are there.
        terms = []
        if tangent_x is not None:
            terms.append(tangent_x @ weight.T)
        if tangent_weight is not None:
            terms.append(x @ tangent_weight.T)
        if tangent_bias is not None:
            terms.append(tangent_bias.expand(*x.shape[:-1], -1))
        return sum(terms[1:], start=terms[0])


def rows(x: Tensor) -> Tensor:
    """All leading axes as one: (*, n) to (m, n)."""
    if x.dim() == 2:
        return x
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def linear(
    input: Float[Tensor, "*batch n_in"],
    weight: Float[Tensor, "n_out n_in"],
    bias: Float[Tensor, "n_out"] | None = None,
) -> Float[Tensor, "*batch n_out"]:
    """Linear map over the last axis: y = x Wᵀ + b.

    The notes write samples as columns, z = W a + b; here they are rows. Backward, for one entry: with
    y_ij = Σ_k x_ik w_jk + b_j,

    - ∂y_ij/∂x_ik = w_jk, and x̄_ik = Σ_j ȳ_ij w_jk, which is x̄ = ȳ W;
    - ∂y_ij/∂w_jk = x_ik, and w̄_jk = Σ_i ȳ_ij x_ik, which is W̄ = ȳᵀ x;
    - ∂y_ij/∂b_j = 1, and b̄_j = Σ_i ȳ_ij.

    There is no 1/m in these: it belongs to the mean in the cost and comes in with ȳ. x and W are saved, y is not; what
    does not require a gradient is not computed. Under autocast the product is taken in its lower precision.

    Args:
        input: x, floating point, (*, n_in).
        weight: W, (n_out, n_in), of x's dtype; a (n_in,) vector gives y of shape (*).
        bias: b, (n_out,), or None.

    Returns:
        y, (*, n_out).

    Raises:
        TypeError: an argument is not a floating-point tensor, or their dtypes differ.
        ValueError: the shapes do not fit.

    Source: the notes, "forward and backward propagation"; SPEC A1, G17.

    >>> linear(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0], [5.0, 6.0]]), torch.tensor([0.5, 0.0]))
    tensor([[11.5000, 17.0000]])
    """
    check_linear(input, weight, bias)
    if weight.dim() == 1:
        y: Tensor = LinearFunction.call(input, weight.unsqueeze(0), None if bias is None else bias.view(1))
        return y.squeeze(-1)
    return LinearFunction.call(input, weight, bias)


def check_linear(input: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Refuse what does not fit y = x Wᵀ + b, naming the size that is wrong."""
    check_floating(input, "input")
    check_floating(weight, "weight")
    if bias is not None:
        check_floating(bias, "bias")
    shape, given = weight.shape, input.shape
    if len(shape) not in (1, 2):
        raise ValueError(f"weight must have shape (n_out, n_in), got {tuple(shape)}; use a convolution for more axes.")
    if not given or given[-1] != shape[-1]:
        raise ValueError(
            f"input must have shape (*, n_in) with n_in = {shape[-1]} for a weight of shape "
            f"{tuple(shape)}, got {tuple(given)}; samples are rows, and weight is (n_out, n_in)."
        )
    if bias is not None and bias.shape != shape[:-1]:
        raise ValueError(
            f"bias must have shape {tuple(shape[:-1])} for a weight of shape {tuple(shape)}, "
            f"got {tuple(bias.shape)}; one number for each output."
        )
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.dtype != input.dtype:
            if not torch.is_autocast_enabled(input.device.type):
                raise TypeError(
                    f"{name} must have the dtype of input, got {_short(tensor)} against {_short(input)}; convert "
                    f"one of them, for example with input.to({name}.dtype)."
                )


def _short(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
