"""Dropout in one pass over x and one over ȳ: the mask is never stored, only the seed it is made from."""

from __future__ import annotations

from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from torchnotes.ops._function import Op, may_overwrite, save
from torchnotes.ops.kernels.random_mask import LEVELS
from torchnotes.ops.kernels.triton_random import (
    LANES,
    accumulator,
    draw_seed,
    kept,
    lane_stride,
    on_device_of,
    random_words,
)


@triton.jit(do_not_specialize=["count"])
@no_type_check
def _dropout_kernel(
    x_ptr, y_ptr, seed_ptr, size, stride, count, LANES: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr
):
    """Multiply by d / p, for ``BLOCK`` counters, which is eight times as many elements."""
    start = tl.program_id(0).to(tl.int64) * BLOCK
    offsets = tl.arange(0, BLOCK)
    first = start
    xs = ()
    for _ in tl.static_range(LANES):  # all loads first: memory works while the numbers are made
        inside = (offsets < stride - start) & (offsets < size - first)
        xs = xs + (tl.load(x_ptr + first + offsets, mask=inside, other=0),)  # noqa: RUF005 (Triton knows no *xs)
        first += stride
    words = random_words(seed_ptr, start + offsets)
    scale = 65536.0 / count.to(ACC)  # 1/p for the p that the comparison of the bits realises
    first = start
    for lane in tl.static_range(LANES):
        inside = (offsets < stride - start) & (offsets < size - first)
        factor = tl.where(kept(words, lane, count), scale, 0.0).to(ACC)
        tl.store(y_ptr + first + offsets, xs[lane].to(ACC) * factor, mask=inside)  # a product: NaN stays NaN
        first += stride


def _run(x: Tensor, seed: Tensor, count: int) -> Tensor:
    """Form x · d / p, contiguous."""
    x = x.contiguous()
    y = torch.empty_like(x)
    size, stride = x.numel(), lane_stride(x.shape)
    if size == 0:
        return y
    block = 2048 // x.element_size()  # 16 bytes for each of 128 threads in each lane
    with on_device_of(x):
        _dropout_kernel[(triton.cdiv(stride, block),)](
            x, y, seed, size, stride, count, LANES, accumulator(x.dtype), block, num_warps=4
        )
    return y


def kept_like(x: Tensor, seed: Tensor, count: int) -> Tensor:
    """The mask of a seed, made visible: True where an element is kept."""
    return _run(torch.ones(x.shape, device=x.device), seed, count) > 0


class DropoutKernelFunction(Op):
    """y = x · d / p with d made of the seed, and made again for x̄ = ȳ · d / p: eight bytes are saved."""

    @staticmethod
    def forward(x: Tensor, seed: Tensor, count: int) -> Tensor:
        return _run(x, seed, count)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, seed, ctx.count = inputs
        save(ctx, seed)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, None, None]:
        (seed,) = ctx.saved_tensors
        if may_overwrite(grad_y):
            return _run(grad_y, seed, ctx.count), None, None
        # Differentiated or batched in its turn: arithmetic, with the same mask.
        return grad_y * kept_like(grad_y, seed, ctx.count) * (LEVELS / ctx.count), None, None


def dropout(x: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    """Keep each element of x with probability p = count / 65536 and divide it by p; the rest is 0."""
    y: Tensor = DropoutKernelFunction.call(x, draw_seed(x, generator), count)
    return y
