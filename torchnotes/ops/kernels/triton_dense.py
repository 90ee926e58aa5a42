"""What follows the matrix product of a layer, and what precedes it in the backward, in one pass each.

Forward: z ← d/p · g(z + b), in the memory of the product. Backward: z̄ = ȳ · d/p · g'(z) with g' from y, and the column
sums that b̄ needs, in the same pass. The sums are deterministic: each tile adds its rows in a fixed order, and a second
sum adds the tiles'; no atomics.
"""

from __future__ import annotations

from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from torchnotes.ops._activation import needs_mask, through
from torchnotes.ops._function import Op, may_overwrite, save
from torchnotes.ops.kernels.random_mask import LEVELS
from torchnotes.ops.kernels.triton_dropout import kept_like
from torchnotes.ops.kernels.triton_random import (
    LANES,
    accumulator,
    draw_seed,
    kept,
    lane_stride,
    on_device_of,
    random_words,
)
from torchnotes.ops.linear import rows


@triton.jit
@no_type_check
def _tanh(x):
    """Tanh by expm1, exact to round-off at both ends.

    tanh |x| = −m / (2 + m) with m = e^{−2|x|} − 1. Near 0 that difference cancels; with u = e^{−2|x|} as rounded,
    (u − 1) / log u · (−2|x|) does not, since the error of u is in both (W. Kahan).
    """
    exponent = -2.0 * tl.abs(x)
    u = tl.exp(exponent)
    near = (u >= 0.5) & (u < 1.0)
    cancelling = tl.where(near, u, 0.5)
    m = tl.where(near, (cancelling - 1.0) * exponent / tl.log(cancelling), tl.where(u == 1.0, exponent, u - 1.0))
    y = -m / (2.0 + m)
    return tl.where(x < 0, -y, y)


@triton.jit
@no_type_check
def _activated(z, ALPHA: tl.constexpr, ACTIVATION: tl.constexpr):
    """Apply g; each form lets NaN through."""
    if ACTIVATION == "relu":
        z = tl.where(z < 0, 0.0, z)
    elif ACTIVATION == "leaky_relu":
        z = tl.where(z > 0, z, ALPHA * z)
    elif ACTIVATION == "sigmoid":
        z = 1.0 / (1.0 + tl.exp(-z))
    elif ACTIVATION == "tanh":
        z = _tanh(z)
    return z


@triton.jit
@no_type_check
def _through(grad, a, ALPHA: tl.constexpr, ACTIVATION: tl.constexpr):
    """Form ā · g'(z), with the slope by a = g(z)."""
    if ACTIVATION == "relu":
        grad = tl.where(a <= 0, 0.0, grad)
    elif ACTIVATION == "leaky_relu":
        grad = tl.where(a > 0, grad, ALPHA * grad)
    elif ACTIVATION == "sigmoid":
        grad = grad * (a * (1.0 - a))
    elif ACTIVATION == "tanh":
        grad = grad * (1.0 - a * a)
    return grad


@triton.jit
@no_type_check
def _tile(columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Rows and columns of this program's tile, in the first lane."""
    across = tl.cdiv(columns, COLUMNS)
    row = (tl.program_id(0) // across).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = (tl.program_id(0) % across) * COLUMNS + tl.arange(0, COLUMNS)
    return row, column


@triton.jit(do_not_specialize=["count"])
@no_type_check
def _forward_kernel(
    z_ptr,
    bias_ptr,
    seed_ptr,
    size,
    stride,
    columns,
    count,
    ALPHA: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BIAS: tl.constexpr,
    DROP: tl.constexpr,
    LANES: tl.constexpr,
    ACC: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Overwrite z by d/p · g(z + b)."""
    row, column = _tile(columns, ROWS, COLUMNS)
    counter = row[:, None] * columns + column[None, :]
    inside_lane = (column[None, :] < columns) & (counter < stride)
    bias = tl.zeros((COLUMNS,), ACC)
    if BIAS:
        bias = tl.load(bias_ptr + column, mask=column < columns, other=0).to(ACC)
    element = counter
    zs = ()
    for _ in tl.static_range(LANES):  # all loads first: memory works while the numbers are made
        zs = zs + (tl.load(z_ptr + element, mask=inside_lane & (element < size), other=0),)  # noqa: RUF005
        element += stride
    if DROP:
        words = random_words(seed_ptr, counter)
        scale = 65536.0 / count.to(ACC)
    element = counter
    for lane in tl.static_range(LANES):
        y = _activated(zs[lane].to(ACC) + bias[None, :], ALPHA, ACTIVATION)
        if DROP:
            y = y * tl.where(kept(words, lane, count), scale, 0.0).to(ACC)
        tl.store(z_ptr + element, y, mask=inside_lane & (element < size))
        element += stride


@triton.jit(do_not_specialize=["count"])
@no_type_check
def _backward_kernel(
    grad_y_ptr,
    y_ptr,
    grad_z_ptr,
    partial_ptr,
    seed_ptr,
    size,
    stride,
    columns,
    lane_rows,
    grad_row_stride,
    grad_column_stride,
    count,
    ALPHA: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BIAS: tl.constexpr,
    DROP: tl.constexpr,
    MASK: tl.constexpr,
    LANES: tl.constexpr,
    ACC: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Write z̄ = ȳ · d/p · g'(z), and this tile's column sums of it."""
    row, column = _tile(columns, ROWS, COLUMNS)
    counter = row[:, None] * columns + column[None, :]
    inside_lane = (column[None, :] < columns) & (counter < stride)
    element = counter
    grad_row = row
    ys = ()
    grads = ()
    for _ in tl.static_range(LANES):
        inside = inside_lane & (element < size)
        at = grad_row[:, None] * grad_row_stride + column[None, :].to(tl.int64) * grad_column_stride
        ys = ys + (tl.load(y_ptr + element, mask=inside, other=0),)  # noqa: RUF005
        grads = grads + (tl.load(grad_y_ptr + at, mask=inside, other=0),)  # noqa: RUF005
        element += stride
        grad_row += lane_rows
    scale = 65536.0 / count.to(ACC)
    if MASK:
        words = random_words(seed_ptr, counter)
    total = tl.zeros((ROWS, COLUMNS), ACC)
    element = counter
    for lane in tl.static_range(LANES):
        grad = grads[lane].to(ACC)
        a = ys[lane].to(ACC)
        if DROP:
            a = a / scale
            if MASK:
                grad = grad * tl.where(kept(words, lane, count), scale, 0.0).to(ACC)
            else:
                grad = grad * scale
        grad = _through(grad, a, ALPHA, ACTIVATION)
        tl.store(grad_z_ptr + element, grad, mask=inside_lane & (element < size))
        total += grad
        element += stride
    if BIAS:
        band = (tl.program_id(0) // tl.cdiv(columns, COLUMNS)).to(tl.int64)
        tl.store(partial_ptr + band * columns + column, tl.sum(total, 0), mask=column < columns)


def _tiling(y: Tensor, lane_rows: int) -> tuple[int, int, int, int]:
    """Rows and columns of a tile, 16 bytes for each of 128 threads in each lane; bands of rows, and tiles in all."""
    columns = y.shape[-1]
    tile_columns = min(128, triton.next_power_of_2(columns))
    tile_rows = max(1, 2048 // y.element_size() // tile_columns)
    bands = triton.cdiv(lane_rows, tile_rows)
    return tile_rows, tile_columns, bands, bands * triton.cdiv(columns, tile_columns)


def _epilogue(z: Tensor, bias: Tensor | None, seed: Tensor | None, activation: str, alpha: float, count: int) -> None:
    """Overwrite z, contiguous, by d/p · g(z + b)."""
    columns, stride = z.shape[-1], lane_stride(z.shape)
    tile_rows, tile_columns, _, tiles = _tiling(z, stride // columns)
    with on_device_of(z):
        _forward_kernel[(tiles,)](
            z,
            z if bias is None else bias.contiguous(),
            z if seed is None else seed,
            z.numel(),
            stride,
            columns,
            count,
            alpha,
            activation,
            bias is not None,
            seed is not None,
            LANES,
            accumulator(z.dtype),
            tile_rows,
            tile_columns,
            num_warps=4,
        )


def _prologue(
    grad_y: Tensor, y: Tensor, seed: Tensor | None, activation: str, alpha: float, count: int, needs_bias: bool
) -> tuple[Tensor, Tensor | None]:
    """z̄, and b̄ where it is wanted."""
    columns, stride = y.shape[-1], lane_stride(y.shape)
    lane_rows = stride // columns
    tile_rows, tile_columns, bands, tiles = _tiling(y, lane_rows)
    grad_rows = rows(grad_y)
    grad_z = torch.empty_like(y)
    sums = torch.float64 if y.dtype == torch.float64 else torch.float32
    partial = torch.empty((bands, columns) if needs_bias else (0,), dtype=sums, device=y.device)
    with on_device_of(y):
        _backward_kernel[(tiles,)](
            grad_rows,
            y,
            grad_z,
            partial,
            y if seed is None else seed,
            y.numel(),
            stride,
            columns,
            lane_rows,
            *grad_rows.stride(),
            count,
            alpha,
            activation,
            needs_bias,
            count < LEVELS,
            seed is not None,
            LANES,
            accumulator(y.dtype),
            tile_rows,
            tile_columns,
            num_warps=4,
        )
    return grad_z, partial.sum(0).to(y.dtype) if needs_bias else None


class DenseKernelFunction(Op):
    """y = d/p · g(x Wᵀ + b) with d made of a seed; as `DenseFunction`, with eight bytes in the place of a mask."""

    autocast = "low"

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor | None, seed: Tensor | None, activation: str, alpha: float, count: int
    ) -> Tensor:
        y = (x @ weight.T).contiguous()
        _epilogue(y, bias, seed, activation, alpha, count)
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, seed, ctx.activation, ctx.alpha, ctx.count = inputs
        save(ctx, x, weight, output, seed if needs_mask(ctx.activation) else None)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, y, seed = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        if may_overwrite(grad_y):
            grad_z, grad_bias = _prologue(grad_y, y, seed, ctx.activation, ctx.alpha, ctx.count, needs_bias)
        else:  # differentiated or batched in its turn: arithmetic, with the same mask
            mask = None if seed is None else kept_like(y, seed, ctx.count)
            grad_z = through(grad_y, y, ctx.activation, ctx.alpha, mask, LEVELS / ctx.count)
            grad_bias = rows(grad_z).sum(0) if needs_bias else None
        return (
            grad_z @ weight if needs_x else None,
            rows(grad_z).T @ rows(x) if needs_weight else None,
            grad_bias,
            *(None, None, None, None),
        )


def dense(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str,
    alpha: float,
    count: int | None,
    generator: torch.Generator | None,
) -> Tensor:
    """Form y = d/p · g(x Wᵀ + b) for p = count / 65536, without dropout where ``count`` is None; 8 rows or more."""
    seed = None if count is None else draw_seed(x, generator)
    y: Tensor = DenseKernelFunction.call(x, weight, bias, seed, activation, alpha, LEVELS if count is None else count)
    return y
