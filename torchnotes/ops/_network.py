"""A whole fully connected network as one op: the notes' forward and backward loops over the layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from torchnotes.ops._activation import activate, needs_mask, through
from torchnotes.ops._function import Op, may_overwrite

Layer = tuple[str, float, float]  # after a linear map: the activation, its α, and 1/p of the dropout


class NetworkFunction(Op):
    """y⁽ˡ⁾ = d⁽ˡ⁾/p · g(y⁽ˡ⁻¹⁾ W⁽ˡ⁾ᵀ + b⁽ˡ⁾) for l = 1 … L, with y⁽⁰⁾ = x (m, n_0); all of them are outputs.

    Backward, from l = L down to 1, as the notes have it (there with samples as columns):

        z̄⁽ˡ⁾ = ȳ⁽ˡ⁾ · d⁽ˡ⁾/p · g'(z⁽ˡ⁾)
        W̄⁽ˡ⁾ = z̄⁽ˡ⁾ᵀ y⁽ˡ⁻¹⁾,  b̄⁽ˡ⁾ = Σ z̄⁽ˡ⁾
        ȳ⁽ˡ⁻¹⁾ = z̄⁽ˡ⁾ W⁽ˡ⁾

    The y⁽ˡ⁾ that backward needs are outputs and not hidden results, so that a second derivative, which flows back
    into them, arrives here as the ȳ⁽ˡ⁻¹⁾ that is added on the way. There is no ``jvp``: who wants forward mode, and
    who compiles, goes through the layers one by one.
    """

    autocast = "low"

    @staticmethod
    def forward(x: Tensor, layers: tuple[Layer, ...], *tensors: Tensor | None) -> tuple[Tensor, ...]:
        outputs = []
        overwrite = may_overwrite(x)
        for (activation, alpha, scale), weight, bias, mask in zip(
            layers, tensors[::3], tensors[1::3], tensors[2::3], strict=True
        ):
            assert weight is not None
            x = activate(linear(x, weight, bias), activation, alpha, mask, scale, overwrite=overwrite)
            outputs.append(x)
        return tuple(outputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, ctx.layers, *tensors = inputs
        masks = [
            mask if mask is not None and needs_mask(activation) else None
            for (activation, _, _), mask in zip(ctx.layers, tensors[2::3], strict=True)
        ]
        ctx.save_for_backward(x, *output, *tensors[::3], *masks)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        saved, depth, needed = ctx.saved_tensors, len(ctx.layers), ctx.needs_input_grad
        y, weights, masks = saved[: depth + 1], saved[depth + 1 : 2 * depth + 1], saved[2 * depth + 1 :]  # y[0] is x
        gradients: list[Tensor | None] = [None] * len(needed)
        grad_y = grad_outputs[-1]
        for i in range(depth - 1, -1, -1):
            grad_below = grad_outputs[i - 1] if i else None
            if grad_y is not None:
                activation, alpha, scale = ctx.layers[i]
                grad_z = through(grad_y, y[i + 1], activation, alpha, masks[i], scale)
                if needed[2 + 3 * i]:
                    gradients[2 + 3 * i] = torch.mm(grad_z.t(), y[i])
                if needed[3 + 3 * i]:
                    gradients[3 + 3 * i] = grad_z.sum(0)
                if i or needed[0]:
                    passed_down = torch.mm(grad_z, weights[i])
                    grad_below = passed_down if grad_below is None else passed_down + grad_below
            grad_y = grad_below
        gradients[0] = grad_y
        return tuple(gradients)
