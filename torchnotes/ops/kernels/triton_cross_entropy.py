"""Softmax cross-entropy for class indices: one pass over the logits forward, and one over logits and gradient backward.

The forward reads each logit once, by the online softmax: a running maximum m and Σ e^{z − m}, which is multiplied by
e^{m − m'} whenever a larger m' turns up. Of a sample it leaves two numbers, max z and log Σ e^{z − max z}; ŷ is
never stored, the backward makes it again from the logits. (Their sum, the logsumexp, would do with one number, but
loses digits: near 10⁴ a float32 is good to 10⁻³.)

Source: Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018.
"""

from __future__ import annotations

from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from torchnotes.ops._function import Op, may_overwrite, save
from torchnotes.ops._reduction import accumulation_dtype
from torchnotes.ops.kernels.triton_random import accumulator, on_device_of
from torchnotes.ops.softmax import SoftmaxFunction

_FORWARD_BLOCK = 8192  # classes in one step of the running maximum
_BACKWARD_BLOCK = 2048
_SMALL = 1024  # the fewest elements of a tile: with few classes it takes several samples


@triton.jit
@no_type_check
def _forward_kernel(
    z_ptr,
    target_ptr,
    weight_ptr,
    loss_ptr,
    share_ptr,
    top_ptr,
    log_ptr,
    samples,
    classes,
    row_stride,
    column_stride,
    ignore_index,
    SMOOTHING: tl.constexpr,  # ε
    FLOOR: tl.constexpr,  # ε/C
    WEIGHT: tl.constexpr,
    ACC: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write each sample's L = (1 − ε) w_y (l + m − z_y) + ε/C Σ_c w_c (l + m − z_c), m = max z, l = log Σ e^{z − m}."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    real = row < samples
    column = tl.arange(0, BLOCK)
    top = tl.full((ROWS,), float("-inf"), ACC)
    total = tl.zeros((ROWS,), ACC)
    below = tl.zeros((ROWS,), ACC)  # Σ_c w_c (m − z_c) over the classes seen so far
    seen = tl.zeros((ROWS,), ACC)  # Σ_c w_c over them
    for start in range(0, classes, BLOCK):
        exists = start + column < classes
        inside = real[:, None] & exists[None, :]
        at = row[:, None] * row_stride + (start + column)[None, :].to(tl.int64) * column_stride
        z = tl.load(z_ptr + at, mask=inside, other=float("-inf")).to(ACC)
        larger = tl.maximum(top, tl.max(z, 1))
        m = tl.where(larger == float("-inf"), 0.0, larger)  # −inf − (−inf) is no number; e^{−inf − 0} is 0
        total = total * tl.exp(top - m) + tl.sum(tl.exp(z - m[:, None]), 1)
        if SMOOTHING > 0:
            weight = tl.where(exists, 1.0, 0.0).to(ACC)
            if WEIGHT:
                weight = tl.load(weight_ptr + start + column, mask=exists, other=0).to(ACC)
            below += seen * (m - tl.where(top == float("-inf"), m, top))
            below += tl.sum(weight[None, :] * tl.where(inside, m[:, None] - z, 0.0), 1)
            seen += tl.sum(weight, 0)
        top = larger
    target = tl.load(target_ptr + row, mask=real, other=0).to(tl.int64)
    kept = real & (target != ignore_index)
    valid = kept & (target >= 0) & (target < classes)
    top = tl.where(real, top, 0.0)
    top = tl.where(kept & (valid == 0), float("nan"), top)  # no such class: NaN, and nothing is read where it points
    log_total = tl.log(tl.where(real, total, 1.0))
    z_y = tl.load(z_ptr + row * row_stride + target * column_stride, mask=valid, other=0).to(ACC)
    share = tl.where(kept, 1.0, 0.0).to(ACC)
    if WEIGHT:
        share = tl.load(weight_ptr + target, mask=valid, other=0).to(ACC)
    loss = share * (1.0 - SMOOTHING) * (log_total + (top - z_y))
    if SMOOTHING > 0:
        loss += (below + log_total * seen) * FLOOR
    tl.store(loss_ptr + row, tl.where(kept, loss, 0.0), mask=real)  # an ignored sample may hold NaN, and NaN · 0 is NaN
    tl.store(share_ptr + row, share, mask=real)
    tl.store(top_ptr + row, top, mask=real)
    tl.store(log_ptr + row, log_total, mask=real)


@triton.jit
@no_type_check
def _backward_kernel(
    z_ptr,
    target_ptr,
    weight_ptr,
    weight_total_ptr,
    share_ptr,
    top_ptr,
    log_ptr,
    grad_loss_ptr,
    grad_z_ptr,
    samples,
    classes,
    row_stride,
    column_stride,
    grad_loss_stride,
    ignore_index,
    SMOOTHING: tl.constexpr,  # ε
    FLOOR: tl.constexpr,  # ε/C
    WEIGHT: tl.constexpr,
    ACC: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write z̄ = ŷ Σ_c q_c − q, with q = L̄ (1 − ε) w_y at the class and L̄ ε/C w everywhere."""
    across = tl.cdiv(classes, BLOCK)
    row = (tl.program_id(0) // across).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = (tl.program_id(0) % across) * BLOCK + tl.arange(0, BLOCK)
    real = row < samples
    exists = column < classes
    inside = real[:, None] & exists[None, :]
    at = row[:, None] * row_stride + column[None, :].to(tl.int64) * column_stride
    z = tl.load(z_ptr + at, mask=inside, other=0).to(ACC)
    top = tl.load(top_ptr + row, mask=real, other=0)
    log_total = tl.load(log_ptr + row, mask=real, other=0)
    target = tl.load(target_ptr + row, mask=real, other=0).to(tl.int64)
    grad_loss = tl.load(grad_loss_ptr + row * grad_loss_stride, mask=real, other=0).to(ACC)
    at_class = grad_loss * (1.0 - SMOOTHING) * tl.load(share_ptr + row, mask=real, other=0)
    mass = at_class
    if SMOOTHING > 0:
        everywhere = tl.where(target != ignore_index, grad_loss * FLOOR, 0.0)
        if WEIGHT:
            mass = at_class + everywhere * tl.load(weight_total_ptr).to(ACC)
        else:
            mass = at_class + everywhere * classes
    yhat = tl.exp((z - top[:, None]) - log_total[:, None])
    grad = yhat * mass[:, None] - tl.where(column[None, :] == target[:, None], at_class[:, None], 0.0)
    if SMOOTHING > 0:
        if WEIGHT:
            weight = tl.load(weight_ptr + column, mask=exists, other=0).to(ACC)
            grad = grad - everywhere[:, None] * weight[None, :]
        else:
            grad = grad - everywhere[:, None]
    tl.store(grad_z_ptr + row[:, None] * classes + column[None, :], grad, mask=inside)


def _tiling(classes: int, largest: int) -> tuple[int, int, int]:
    """Rows and columns of a tile, and warps for it."""
    block = min(triton.next_power_of_2(classes), largest)
    return max(1, _SMALL // block), block, 8 if block > _BACKWARD_BLOCK else 4


class CrossEntropyKernelFunction(Op):
    """Cross-entropy of z (N, C) with class indices; saved are z, the indices and three numbers for each sample.

    Those numbers, max z, log Σ e^{z − max z} and w_y, are outputs so that they can be saved; nobody outside sees them.
    Where the backward is differentiated again it makes ŷ from z by `softmax`, so that no derivative passes through
    them.
    """

    @staticmethod
    def forward(
        z: Tensor,
        target: Tensor,
        weight: Tensor | None,
        ignore_index: int,
        reduction: str,
        smoothing: float,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        samples, classes = z.shape
        inner = accumulation_dtype(z.dtype)
        loss, share, top, log_total = (torch.empty(samples, dtype=inner, device=z.device) for _ in range(4))
        rows, block, warps = _tiling(classes, _FORWARD_BLOCK)
        with on_device_of(z):
            _forward_kernel[(triton.cdiv(samples, rows),)](
                z,
                target.contiguous(),
                z if weight is None else weight.contiguous(),
                loss,
                share,
                top,
                log_total,
                samples,
                classes,
                *z.stride(),
                ignore_index,
                smoothing,
                smoothing / classes,
                weight is not None,
                accumulator(z.dtype),
                rows,
                block,
                num_warps=warps,
            )
        if reduction != "none":
            loss = loss.sum()
        if reduction == "mean":
            loss = loss / share.sum()
        return loss.to(dtype), share, top, log_total

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        z, target, weight, *ctx.options, _ = inputs
        save(ctx, z, target, weight, *output[1:])
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        z, target, weight, share, top, log_total = ctx.saved_tensors
        ignore_index, reduction, smoothing = ctx.options
        if grad_loss is None:
            return (None,) * 7
        unit = grad_loss.to(share.dtype)
        if reduction == "mean":
            unit = unit / share.sum()
        if may_overwrite(grad_loss):
            grad_z = _logit_gradient(unit, z, target, weight, share, top, log_total, ignore_index, smoothing)
        else:
            grad_z = _plain_logit_gradient(unit, z, target, weight, share, ignore_index, smoothing)
        return grad_z, *[None] * 6


def _logit_gradient(
    unit: Tensor,
    z: Tensor,
    target: Tensor,
    weight: Tensor | None,
    share: Tensor,
    top: Tensor,
    log_total: Tensor,
    ignore_index: int,
    smoothing: float,
) -> Tensor:
    samples, classes = z.shape
    grad_z = torch.empty((samples, classes), dtype=z.dtype, device=z.device)
    rows, block, warps = _tiling(classes, _BACKWARD_BLOCK)
    with on_device_of(z):
        _backward_kernel[(triton.cdiv(samples, rows) * triton.cdiv(classes, block),)](
            z,
            target.contiguous(),
            z if weight is None else weight.contiguous(),
            z if weight is None else weight.sum(dtype=share.dtype),
            share,
            top,
            log_total,
            unit,
            grad_z,
            samples,
            classes,
            *z.stride(),
            unit.stride(0) if unit.dim() else 0,
            ignore_index,
            smoothing,
            smoothing / classes,
            weight is not None,
            accumulator(z.dtype),
            rows,
            block,
            num_warps=warps,
        )
    return grad_z


def _plain_logit_gradient(
    unit: Tensor,
    z: Tensor,
    target: Tensor,
    weight: Tensor | None,
    share: Tensor,
    ignore_index: int,
    smoothing: float,
) -> Tensor:
    """The same by arithmetic, for a backward that is differentiated or batched in its turn."""
    yhat = SoftmaxFunction.call(z.to(share.dtype), 1)
    kept = target != ignore_index
    at_class = (unit * share * (1 - smoothing)).unsqueeze(1)
    everywhere = (unit * kept * (smoothing / z.shape[1])).unsqueeze(1)
    weights = torch.ones_like(yhat[0]) if weight is None else weight.to(share.dtype)
    index = torch.where(kept, target, 0).long().unsqueeze(1)
    one_hot = torch.zeros_like(yhat).scatter(1, index, 1.0)
    grad_z = yhat * (at_class + everywhere * weights.sum()) - one_hot * at_class - everywhere * weights
    return grad_z.to(z.dtype)


def cross_entropy(
    z: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, reduction: str, smoothing: float
) -> Tensor:
    """`torchnotes.ops.cross_entropy` of z (N, C), N and C at least 1, and class indices (N,)."""
    # Autocast wants the loss in float32. The kernel computes in it anyway: the logits need not be copied.
    dtype = accumulation_dtype(z.dtype) if torch.is_autocast_enabled(z.device.type) else z.dtype
    loss: Tensor
    loss, *_ = CrossEntropyKernelFunction.call(z, target, weight, ignore_index, reduction, smoothing, dtype)
    return loss
