"""The random bits of dropout, and their application: where PyTorch spends most of dropout's time on a CPU.

``Tensor.bernoulli_`` draws one 64-bit number for each element. Four independent 16-bit lanes of one such number serve
four elements, at a resolution of 1/65536 in the probability; dividing by the probability that was realised,
rather than by the one that was asked for, keeps E[y] = x exact. On a CPU the numbers are numpy's: SFC64, seeded with
192 bits from PyTorch's generator, takes half the time a word, and numpy compares 16-bit numbers in a tenth. For a few
elements those calls take longer than `torch.bernoulli`, which then draws with the same probability.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.random.bit_generator import ISeedSequence
from torch import Tensor
from torch.compiler import is_compiling

from torchnotes.ops._function import factor_beside, may_overwrite, plain_eager
from torchnotes.ops.kernels.memory import large_like

LEVELS = 1 << 16  # values of one 16-bit lane
_LANES = 4  # lanes of one 64-bit draw
# All of int64 but its largest value. `Tensor.random_()` would leave the sign bit of one lane in four constant.
_WORDS = (-(1 << 63), (1 << 63) - 1)
_SEED_WORDS = 3  # the state of SFC64 but for its counter
_DRAWN = 1 << 15  # elements whose random numbers are drawn at a time: 64 KiB of them, which stay in the cache
_BLOCK = 1 << 21  # elements scaled at a time: 8 MiB, so that two threads do not wait for one page of 2 MiB
_FEW = 1 << 10  # elements up to which the calls cost more than the random bits
_SMALL = 1 << 12  # elements below which a call costs more than its work


def realised_count(keep_prob: float) -> int:
    """How many of the 65536 values of a lane mean "keep": the nearest count, but neither none nor all of them."""
    return min(max(round(keep_prob * LEVELS), 1), LEVELS - 1)


def keep_mask(shape: Sequence[int], device: torch.device, count: int, generator: torch.Generator | None) -> Tensor:
    """A boolean mask of a shape, each entry True with probability ``count`` / 65536, in the order of the indices."""
    size, threshold = math.prod(shape), count - LEVELS // 2
    if size <= _FEW:
        return torch.bernoulli(torch.empty(shape, dtype=torch.bool, device=device), count / LEVELS, generator=generator)
    if device.type == "cpu":
        seed = torch.randint(*_WORDS, (_SEED_WORDS,), generator=generator)
        of_seed = _mask_of_seed if plain_eager() else torch.ops.torchnotes.mask_of_seed
        return of_seed(seed, size, threshold).view(shape)
    words = torch.randint(*_WORDS, ((size + _LANES - 1) // _LANES,), device=device, generator=generator)
    return _below(words, size, threshold).view(shape)


def _below(words: Tensor, size: int, threshold: int) -> Tensor:
    """Whether each lane lies below the threshold."""
    return _lanes(words)[:size] < threshold


def _lanes(words: Tensor) -> Tensor:
    """The four 16-bit numbers of each word, the lowest first."""
    if plain_eager():
        return words.view(torch.int16)
    # The same in arithmetic, for torch 2.11 has no `torch.vmap` rule for the view: to the top, and down with the sign.
    shifted = torch.stack([words << 48, words << 32, words << 16, words], dim=-1)
    return (shifted >> 48).flatten()


class _Words(ISeedSequence):
    """Seeds a bit generator with the very words given; numpy's own hashes them first, for longer than a small mask."""

    def __init__(self, words: np.ndarray[Any, Any]) -> None:
        self.words = words

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> Any:
        if len(self.words) != n_words:  # numpy would read beyond them
            raise ValueError(f"the seed must have {n_words} words, got {len(self.words)}.")
        return self.words


def _mask_of_seed(seed: Tensor, size: int, threshold: int) -> Tensor:
    """Whether each lane of the words drawn from a seed lies below the threshold."""
    bits = np.random.SFC64(_Words(seed.numpy().view(np.uint64)))  # type: ignore[arg-type]  # stubs want their own class
    mask = torch.empty(size, dtype=torch.bool)
    kept, below = mask.numpy(), np.int16(threshold)
    for start in range(0, size, _DRAWN):
        block = kept[start : start + _DRAWN]
        words = bits.random_raw((len(block) + _LANES - 1) // _LANES)
        np.less(words.view(np.int16)[: len(block)], below, out=block)
    return mask


# To the compiler and to transforms it is one opaque function of the seed. The seed is drawn by PyTorch in their sight,
# so that it comes from the same generator, in the same order, as it does without them.
_opaque = torch.library.custom_op(
    "torchnotes::mask_of_seed",
    _mask_of_seed,
    mutates_args=(),
    schema="(Tensor seed, SymInt size, int threshold) -> Tensor",
)
_opaque.register_fake(lambda seed, size, threshold: seed.new_empty(size, dtype=torch.bool))


@_opaque.register_vmap
def _masks_of_seeds(
    info: Any, in_dims: tuple[int, None, None], seeds: Tensor, size: int, threshold: int
) -> tuple[Tensor, int]:
    """One mask for each seed, where `torch.vmap` has drawn one for each sample."""
    each = seeds.movedim(in_dims[0], 0)
    return torch.stack([torch.ops.torchnotes.mask_of_seed(seed, size, threshold) for seed in each]), 0


def scale_kept(x: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Form x · mask · scale, without temporaries where nobody differentiates."""
    if is_compiling() or x.numel() < _SMALL or not may_overwrite(x):
        return x * mask * factor_beside(scale, x)
    large = large_like(x)
    if large is None or not (x.is_contiguous() and mask.is_contiguous()):
        y = torch.empty_like(x) if large is None else large
        return y.copy_(mask.view(torch.uint8)).mul_(x).mul_(scale)  # three times as fast as a product with booleans
    pieces = zip(large.view(-1).split(_BLOCK), mask.view(-1).split(_BLOCK), x.view(-1).split(_BLOCK), strict=True)
    for y, d, piece in pieces:  # the same, each piece from first to last while it is in the cache
        y.copy_(d.view(torch.uint8)).mul_(piece).mul_(scale)
    return large
