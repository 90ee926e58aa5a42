"""The random bits of dropout, and their application: where PyTorch spends most of dropout's time on a CPU.

``Tensor.bernoulli_`` draws one 64-bit number for each element. Four independent 16-bit lanes of one such number serve
four elements, at a resolution of 1/65536 in the probability; dividing by the probability that was realised,
rather than by the one that was asked for, keeps E[y] = x exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

LEVELS = 1 << 16  # values of one 16-bit lane
_LANES = 4  # lanes of one 64-bit draw
_BLOCK = 1 << 19  # elements that stay in the cache between the three passes of `scale_kept`


def realised_count(keep_prob: float) -> int:
    """How many of the 65536 values of a lane mean "keep": the nearest count, but neither none nor all of them."""
    return min(max(round(keep_prob * LEVELS), 1), LEVELS - 1)


def keep_mask(shape: Sequence[int], device: torch.device, count: int, generator: torch.Generator | None) -> Tensor:
    """A boolean mask of a shape, each entry True with probability ``count`` / 65536, in the order of the indices."""
    size = math.prod(shape)
    # All of int64 but its largest value. `Tensor.random_()` would leave the sign bit of one lane in four constant.
    words = torch.randint(
        -(1 << 63), (1 << 63) - 1, ((size + _LANES - 1) // _LANES,), device=device, generator=generator
    )
    lanes = words.view(torch.int16)[:size]
    return (lanes < count - LEVELS // 2).view(shape)


def scale_kept(x: Tensor, mask: Tensor, scale: float, *, overwrite: bool) -> Tensor:
    """Form x · mask · scale, in blocks and without temporaries where ``overwrite`` allows it."""
    if not (overwrite and x.numel() > _BLOCK and x.is_contiguous() and mask.is_contiguous()):
        return x * mask * scale
    y = torch.empty_like(x)
    blocks = (tensor.view(-1).split(_BLOCK) for tensor in (y, x, mask.view(torch.uint8)))
    for y_block, x_block, mask_block in zip(*blocks, strict=True):
        y_block.copy_(mask_block).mul_(x_block).mul_(scale)
    return y
