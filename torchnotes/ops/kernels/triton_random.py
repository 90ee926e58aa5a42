"""The random numbers of the dropout kernels: Philox-4x32-10, a function of a seed and a counter, with no state.

Because a number depends on nothing but (seed, counter), the backward asks for it again instead of keeping it. One
call gives 128 bits: eight lanes of 16 bits, for eight elements; an element is kept where its lane is below k, so with
probability k/65536 (the same resolution as on a CPU, see `random_mask`).

Which element gets which lane is fixed by the shape alone, never by a kernel's tiling: with the elements numbered in the
order of their indices, ``element = lane * stride + counter`` for 0 ≤ counter < stride, with `lane_stride` as stride.
The eight elements of one call are thus far apart, so that each of a kernel's eight loads and stores is coalesced. The
lanes of a matrix start on whole rows, so that a kernel that works in tiles of rows and columns (`triton_dense`) and
one that works on a flat tensor (`triton_dropout`) draw the same mask.

Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

LANES = 8


@triton.jit
@no_type_check
def random_words(seed_ptr, counter):
    """Four 32-bit words for each 64-bit counter.

    The seed is loaded once for each counter, not once: a load is what fixes how the compiler spreads a tensor over the
    threads, and with the seed spread like x no random bit has to cross shared memory to meet its element.
    """
    seed = tl.load(seed_ptr + counter * 0)
    low = counter.to(tl.uint32)
    high = (counter >> 32).to(tl.uint32)
    zero = low * 0
    return tl.philox(seed, low, high, zero, zero)


@triton.jit
@no_type_check
def kept(words, LANE: tl.constexpr, count):
    """Whether the 16 bits of a lane, as a number, are below ``count`` ≤ 65535; both are shifted to the left end."""
    word = words[LANE // 2]
    if LANE % 2 == 0:
        word = word << 16
    return word < (count.to(tl.uint32) << 16)


def draw_seed(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw one 64-bit seed from the generator, on the tensor's device: nothing waits for the GPU."""
    return torch.randint(-(1 << 63), (1 << 63) - 1, (1,), device=like.device, generator=generator)


def lane_stride(shape: torch.Size) -> int:
    """How many counters a tensor of this shape takes: an eighth of its elements, in whole rows from 8 rows on."""
    size = shape.numel()
    columns = shape[-1] if shape else 1
    rows = size // max(columns, 1)
    if rows >= LANES:
        return columns * -(-rows // LANES)
    return -(-size // LANES)


def accumulator(dtype: torch.dtype) -> Any:
    """The dtype a kernel computes in."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def on_device_of(x: Tensor) -> AbstractContextManager[Any]:
    """Make the GPU of ``x`` current: a kernel is launched there."""
    if not x.is_cuda or x.device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(x.device)
