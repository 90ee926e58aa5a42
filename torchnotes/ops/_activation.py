"""Activations as `dense` and `MLP` need them: in place on a fresh z, and backward from what came out.

Dropout after the activation gives y = d · g(z) / p for a mask d of zeros and ones. Where d = 1, p y = g(z), and each
activation here has a slope that is a function s of its value, g'(z) = s(g(z)). So with the mask

    z̄ = ȳ · d/p · s(p y)

and where s(0) = 0 (ReLU, sigmoid) the mask can go: a dropped entry has y = 0 and so s = 0. Tanh, leaky ReLU and the
identity have a slope at 0, a kept zero and a dropped entry look alike, and the mask is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from torchnotes.ops._function import may_overwrite

_BLOCK = 1 << 18  # elements that stay in the cache from one pass to the next


@dataclass(frozen=True)
class Activation:
    """One activation g.

    Attributes:
        forward: (z, α) to g(z).
        forward_: the same in place.
        backward: (ā, a, α) to z̄ = ā · s(a) with a = g(z), in arithmetic that autograd can differentiate.
        zero_at_zero: whether s(0) = 0.
    """

    forward: Callable[[Tensor, float], Tensor]
    forward_: Callable[[Tensor, float], Tensor]
    backward: Callable[[Tensor, Tensor, float], Tensor]
    zero_at_zero: bool


ACTIVATIONS = {
    "identity": Activation(lambda z, _: z, lambda z, _: z, lambda grad, _, __: grad, zero_at_zero=False),
    "relu": Activation(
        lambda z, _: z.clamp_min(0),
        lambda z, _: z.clamp_min_(0),
        lambda grad, a, _: a.sign() * grad,
        zero_at_zero=True,
    ),
    "sigmoid": Activation(
        lambda z, _: torch.sigmoid(z),
        lambda z, _: z.sigmoid_(),
        lambda grad, a, _: (1 - a) * a * grad,
        zero_at_zero=True,
    ),
    "tanh": Activation(
        lambda z, _: torch.tanh(z),
        lambda z, _: z.tanh_(),
        lambda grad, a, _: (1 - a * a) * grad,
        zero_at_zero=False,
    ),
    "leaky_relu": Activation(
        torch.nn.functional.leaky_relu,
        torch.nn.functional.leaky_relu_,
        lambda grad, a, alpha: torch.where(a > 0, grad, grad * alpha),
        zero_at_zero=False,
    ),
}


def needs_mask(activation: str) -> bool:
    """Whether backward needs dropout's mask beside y."""
    return not ACTIVATIONS[activation].zero_at_zero


def activate(z: Tensor, activation: str, alpha: float, mask: Tensor | None, scale: float, *, overwrite: bool) -> Tensor:
    """Form y = g(z) · mask · scale, in the memory of z where ``overwrite`` allows it: z was made by the caller."""
    g = ACTIVATIONS[activation]
    if not overwrite or (mask is not None and not _aligned(z, mask)):
        a = g.forward(z, alpha)
        return a if mask is None else a * mask * scale
    if mask is None:
        return g.forward_(z, alpha)
    for z_block, mask_block in _blocks(z, mask.view(torch.uint8)):
        g.forward_(z_block, alpha).mul_(mask_block.to(z.dtype)).mul_(scale)
    return z


def through(grad_y: Tensor, y: Tensor, activation: str, alpha: float, mask: Tensor | None, scale: float) -> Tensor:
    """Form z̄ = ȳ · d/p · s(p y), with scale = 1/p and the mask d where it was needed."""
    if scale != 1 and y.numel() > _BLOCK and may_overwrite(grad_y) and _aligned(grad_y, y, *_present(mask)):
        grad_z = torch.empty_like(y)
        masks = () if mask is None else (mask.view(torch.uint8),)
        for grad_z_block, grad_block, y_block, *mask_block in _blocks(grad_z, grad_y, y, *masks):
            block = mask_block[0].to(y.dtype) if mask_block else None
            grad_z_block.copy_(_through(grad_block, y_block, activation, alpha, block, scale))
        return grad_z
    return _through(grad_y, y, activation, alpha, mask, scale)


def _through(grad_y: Tensor, y: Tensor, activation: str, alpha: float, mask: Tensor | None, scale: float) -> Tensor:
    backward = ACTIVATIONS[activation].backward
    if scale == 1:
        return backward(grad_y, y, alpha)
    grad_a = grad_y * scale if mask is None else grad_y * mask * scale
    return backward(grad_a, y / scale, alpha)


def _present(mask: Tensor | None) -> tuple[Tensor, ...]:
    return () if mask is None else (mask,)


def _aligned(*tensors: Tensor) -> bool:
    return all(tensor.is_contiguous() for tensor in tensors)


def _blocks(*tensors: Tensor) -> zip[tuple[Tensor, ...]]:
    return zip(*(tensor.view(-1).split(_BLOCK) for tensor in tensors), strict=True)
