"""Activations as `dense` and `MLP` need them: in place on a fresh z, and backward from what came out.

Dropout after the activation gives y = d · g(z) / p for a mask d of zeros and ones. Where d = 1, p y = g(z), and each
activation here has a slope that is a function s of its value, g'(z) = s(g(z)). So with the mask

    z̄ = ȳ · d/p · s(p y)

and where s(0) = 0 (ReLU, sigmoid) the mask can go: a dropped entry has y = 0 and so s = 0. Tanh, leaky ReLU and the
identity have a slope at 0, a kept zero and a dropped entry look alike, and the mask is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from torchnotes.ops._function import may_overwrite

_PIECE = 1 << 17  # elements


@dataclass(frozen=True)
class Activation:
    """One activation g.

    Attributes:
        forward: (z, α) to g(z).
        forward_: the same in place.
        slope: (a, α) to s(a) = g'(z) for a = g(z), in arithmetic that autograd can differentiate; None for 1.
        zero_at_zero: whether s(0) = 0.
        scale_free: whether s(c a) = s(a) for every c > 0, so that p y need not be formed.
    """

    forward: Callable[[Tensor, float], Tensor]
    forward_: Callable[[Tensor, float], Tensor]
    slope: Callable[[Tensor, float], Tensor] | None
    zero_at_zero: bool
    scale_free: bool


def _leaky_slope(a: Tensor, alpha: float) -> Tensor:
    if alpha <= 1:
        return a.sign().clamp_min(alpha)  # sign is 1 above zero, 0 or −1 elsewhere
    return torch.where(a > 0, torch.ones_like(a), alpha)


ACTIVATIONS = {
    "identity": Activation(lambda z, _: z, lambda z, _: z, None, zero_at_zero=False, scale_free=True),
    "relu": Activation(
        lambda z, _: z.clamp_min(0),
        lambda z, _: z.clamp_min_(0),
        lambda a, _: a.sign(),
        zero_at_zero=True,
        scale_free=True,
    ),
    "sigmoid": Activation(
        lambda z, _: torch.sigmoid(z),
        lambda z, _: z.sigmoid_(),
        lambda a, _: torch.rsub(a, 1) * a,
        zero_at_zero=True,
        scale_free=False,
    ),
    "tanh": Activation(
        lambda z, _: torch.tanh(z),
        lambda z, _: z.tanh_(),
        lambda a, _: torch.rsub(a * a, 1),
        zero_at_zero=False,
        scale_free=False,
    ),
    "leaky_relu": Activation(
        torch.nn.functional.leaky_relu,
        torch.nn.functional.leaky_relu_,
        _leaky_slope,
        zero_at_zero=False,
        scale_free=True,
    ),
}


def needs_mask(activation: str) -> bool:
    """Whether backward needs dropout's mask beside y."""
    return not ACTIVATIONS[activation].zero_at_zero


def activate(z: Tensor, activation: str, alpha: float, mask: Tensor | None, scale: float, *, overwrite: bool) -> Tensor:
    """Form y = g(z) · mask · scale, in the memory of z where ``overwrite`` allows it: z was made by the caller."""
    g = ACTIVATIONS[activation]
    if not overwrite:
        a = g.forward(z, alpha)
        return a if mask is None else a * mask * scale
    if mask is None:
        return g.forward_(z, alpha)
    for a, d in in_pieces(z, mask):
        g.forward_(a, alpha).mul_(d.view(torch.uint8).to(a.dtype)).mul_(scale)
    return z


def through(grad_y: Tensor, y: Tensor, activation: str, alpha: float, mask: Tensor | None, scale: float) -> Tensor:
    """Form z̄ = ȳ · d/p · s(p y), with scale = 1/p and the mask d where it was needed."""
    g = ACTIVATIONS[activation]
    if scale == 1:
        return grad_y if g.slope is None else g.slope(y, alpha) * grad_y
    if g.slope is None:
        return grad_y * scale if mask is None else grad_y * mask * scale
    if not may_overwrite(grad_y):
        slope = g.slope(y if g.scale_free else y / scale, alpha)
        return slope * grad_y * scale if mask is None else slope * grad_y * scale * mask
    grad_z = torch.empty_like(y)  # the same in its memory
    for out, v, a, *d in in_pieces(grad_z, grad_y, y, *(() if mask is None else (mask,))):
        torch.mul(g.slope(a if g.scale_free else a / scale, alpha), v, out=out).mul_(scale)
        if d:
            out.mul_(d[0].view(torch.uint8).to(out.dtype))
    return grad_z


def in_pieces(*tensors: Tensor) -> Iterable[tuple[Tensor, ...]]:
    """Tensors of one size cut alike, so that a piece goes through all its operations while it is in the cache."""
    if tensors[0].numel() <= _PIECE or not all(t.is_contiguous() for t in tensors):
        return [tensors]
    return zip(*(t.view(-1).split(_PIECE) for t in tensors), strict=True)
