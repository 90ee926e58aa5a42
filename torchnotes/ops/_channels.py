"""Arithmetic channel by channel on (N, C, ...): z − μ, what is added up of it, and the affine maps of it."""

from __future__ import annotations

import torch
from torch import Tensor

_PIECE = 1 << 19  # numbers of a batch of images that are worked on at a time
_FEW = 1 << 10  # samples whose sums ATen may form in one pass, one after the other: of more it loses digits


def axes(z: Tensor) -> list[int]:
    """All axes but the channels'."""
    return [0, *range(2, z.dim())]


def column(v: Tensor, z: Tensor) -> Tensor:
    """One number a channel, (C,), shaped to broadcast along z, (N, C, ...)."""
    return v if z.dim() == 2 else v.reshape(-1, *(1 for _ in z.shape[2:]))


def moments(x: Tensor, alone: bool) -> tuple[Tensor, Tensor, Centred | CentredBySamples]:
    """The mean μ and the variance σ² = Σ (x − μ)²/m of each channel, and x − μ as of `centre`.

    Subtracted before it is squared: E[x²] − μ² would cancel.
    """
    if alone and x.dim() == 2 and len(x) <= _FEW and x.is_cpu:
        mean, var = torch.batch_norm_update_stats(x, None, None, 0.0)
        return mean, var, centre(x, mean, alone)
    mean = x.mean(axes(x))
    centred = centre(x, mean, alone)
    return mean, centred.mean_square(), centred


def centre(x: Tensor, mean: Tensor, alone: bool) -> Centred | CentredBySamples:
    """The numbers x − μ, to compute with.

    Args:
        x: (N, C, ...).
        mean: μ, (C,).
        alone: nobody differentiates or batches what is done with them: see `may_overwrite`.
    """
    if alone and x.dim() > 2 and x.numel() > _PIECE:
        return CentredBySamples(x, mean)
    return Centred(x, mean, alone)


class Centred:
    """d = x − μ, formed once; ``alone`` where nobody else looks at it, so that its memory may be used again."""

    def __init__(self, x: Tensor, mean: Tensor, alone: bool) -> None:
        self.d = x - column(mean, x)
        self.alone = alone

    def mean_square(self) -> Tensor:
        """Σ d²/m of each channel."""
        return (self.d * self.d).mean(axes(self.d))

    def sums(self, g: Tensor) -> tuple[Tensor, Tensor]:
        """Σ g and Σ g d of each channel."""
        return g.sum(axes(g)), (g * self.d).sum(axes(g))

    def affine(
        self, slope: Tensor, constant: Tensor | None, factor: Tensor | None = None, g: Tensor | None = None
    ) -> Tensor:
        """Form slope · d + constant + factor · g, all but g one number a channel; the last that is done with d."""
        d, slope = self.d, column(slope, self.d)
        out = d if self.alone else None
        if constant is None:
            y = torch.mul(d, slope, out=out)
        elif d.dim() == 2:
            y = torch.addcmul(constant, d, slope, out=out)
        else:  # the fused form is slow where a number a channel is stretched along an image
            y = torch.add(torch.mul(d, slope, out=out), column(constant, d), out=out)
        return y if factor is None or g is None else torch.addcmul(y, g, column(factor, g), out=out)


class CentredBySamples:
    """The same of a batch of images, some samples at a time: d is formed anew where it is used, and stays in the cache.

    Writing it to memory and reading it back takes longer than to subtract.
    """

    def __init__(self, x: Tensor, mean: Tensor) -> None:
        self.mean = column(mean, x)
        self.x = x
        self.samples = max(1, _PIECE * len(x) // x.numel())
        self.pieces = x.split(self.samples)

    def mean_square(self) -> Tensor:
        """Σ d²/m of each channel."""
        buffer = torch.empty_like(self.pieces[0])
        total = self.x.new_empty(len(self.pieces), self.x.shape[1])
        for x, sums in zip(self.pieces, total, strict=True):
            d = torch.sub(x, self.mean, out=buffer[: len(x)])
            torch.sum(d.mul_(d), axes(d), out=sums)
        return total.sum(0) / (self.x.numel() // self.x.shape[1])

    def sums(self, g: Tensor) -> tuple[Tensor, Tensor]:
        """Σ g and Σ g d of each channel."""
        buffer = torch.empty_like(self.pieces[0])
        total = self.x.new_empty(len(self.pieces), 2, self.x.shape[1])
        for x, part, (sums, dots) in zip(self.pieces, g.split(self.samples), total, strict=True):
            torch.sum(part, axes(part), out=sums)
            d = torch.sub(x, self.mean, out=buffer[: len(x)])
            torch.sum(d.mul_(part), axes(d), out=dots)
        sums, dots = total.sum(0)
        return sums, dots

    def affine(
        self, slope: Tensor, constant: Tensor | None, factor: Tensor | None = None, g: Tensor | None = None
    ) -> Tensor:
        """Form slope · d + constant + factor · g, all but g one number a channel."""
        result = torch.empty_like(self.x)
        slope = column(slope, result)
        incoming = [None] * len(self.pieces) if g is None else g.split(self.samples)
        for x, part, y in zip(self.pieces, incoming, result.split(self.samples), strict=True):
            torch.sub(x, self.mean, out=y).mul_(slope)
            if constant is not None:
                y.add_(column(constant, y))
            if factor is not None and part is not None:
                y.addcmul_(part, column(factor, y))
        return result
