"""Inverted dropout, and its backward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from torchnotes._checks import check_floating, check_generator, check_in_range
from torchnotes.ops._function import Op, save
from torchnotes.ops.kernels._dispatch import chosen
from torchnotes.ops.kernels.random_mask import LEVELS, keep_mask, realised_count, scale_kept


class DropoutFunction(Op):
    """y = x · d / p for a given mask d, linear in x: x̄ = ȳ · d / p and ẏ = ẋ · d / p, each the op itself."""

    @staticmethod
    def forward(x: Tensor, mask: Tensor, scale: float) -> Tensor:
        return scale_kept(x, mask, scale)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, mask, ctx.scale = inputs
        save(ctx, mask)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, None, None]:
        (mask,) = ctx.saved_tensors
        return scale_kept(grad_y, mask, ctx.scale), None, None

    @staticmethod
    def jvp(ctx: Any, tangent_x: Tensor, *_: None) -> Tensor:
        (mask,) = ctx.saved_tensors
        return tangent_x * mask * ctx.scale


def dropout(
    input: Float[Tensor, "*shape"],
    *,
    keep_prob: float,
    training: bool = True,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "*shape"]:
    """Inverted dropout: y = x · d / p, with d = 1 with probability p = ``keep_prob`` and 0 otherwise, entry by entry.

    Backward: the mask does not depend on x, so x̄ = ȳ · d / p with the mask of the forward pass, and the second
    derivative is 0. Only the mask is saved, one byte an element. Dividing by p keeps E[y] = x, so that nothing needs
    to be done at evaluation, where y = x. Every call draws a fresh mask, for every sample.

    p is realised as k / 65536 with the nearest whole k from 1 to 65535, and that is what y is divided by: E[y] = x
    holds exactly, whatever the rounding of p. The variance of y given x is x² (1 − p) / p.

    Args:
        input: floating-point tensor of any shape.
        keep_prob: p, the probability of keeping an element, in (0, 1]; PyTorch's ``p`` is 1 − ``keep_prob``.
        training: False makes it the identity.
        generator: where the random numbers come from, on the device of the input; the global generator if None. The
            same state gives the same mask, whatever the strides of the input, and under `torch.compile` the mask of
            eager code. (The compiler takes no generator into a graph: a call with one runs in eager code, and
            ``fullgraph=True`` refuses it.)

    Returns:
        y with the shape, dtype and device of the input; the input itself when nothing is to be dropped.

    Raises:
        TypeError: the input is not a floating-point tensor, or ``keep_prob`` is not a number.
        ValueError: ``keep_prob`` is outside (0, 1], or the generator is on another device.

    Source: the notes, "dropout regularisation"; SPEC A10.

    >>> x = torch.ones(8)
    >>> y = dropout(x, keep_prob=0.5, generator=torch.Generator().manual_seed(0))
    >>> bool(((y == 0) | (y == 2)).all()), dropout(x, keep_prob=0.5, training=False) is x
    (True, True)
    """
    check_floating(input, "input")
    check_keep_prob(keep_prob)
    if not training or keep_prob == 1:
        return input
    if chosen("dropout", input):
        from torchnotes.ops.kernels import triton_dropout

        check_generator(generator, input.device)
        return triton_dropout.dropout(input, realised_count(keep_prob), generator)
    mask, scale = draw_mask(input.shape, input.device, keep_prob, generator)
    return DropoutFunction.call(input, mask, scale)


def draw_mask(
    shape: Sequence[int], device: torch.device, keep_prob: float, generator: torch.Generator | None
) -> tuple[Tensor, float]:
    """A fresh mask, and 1/p for the p that was realised."""
    check_generator(generator, device)
    count = realised_count(keep_prob)
    return keep_mask(shape, device, count, generator), LEVELS / count


def check_keep_prob(keep_prob: float, name: str = "keep_prob") -> None:
    """Refuse a probability outside (0, 1]."""
    if type(keep_prob) is float and 0 < keep_prob <= 1:  # almost always, and the full check costs as much as a small op
        return
    check_in_range(
        keep_prob, name, 0, 1, low_open=True, remedy="it is the share kept, 1 - p of torch.nn.functional.dropout"
    )
