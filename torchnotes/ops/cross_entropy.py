"""Softmax cross-entropy for class indices and for class probabilities, and its backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchnotes._checks import check_floating, check_in_range, check_tensor, describe
from torchnotes.ops._function import Op, save
from torchnotes.ops._reduction import accumulation_dtype, check_reduction, reduce_losses


class CrossEntropyFunction(Op):
    """L_i = share_i · (−log ŷ_y) + floor_i · Σ_c w_c (−log ŷ_c), ŷ = softmax(z), y the class index.

    ŷ is the second output: it depends on z, so its gradient counts when the backward is differentiated again. Of the
    size of z nothing else is kept.
    """

    autocast = "float32"

    @staticmethod
    def forward(
        z: Tensor,  # (N, C, ...), or (C,) with dim = 0; those below (N, ...)
        index: Tensor,
        ignored: Tensor,
        share: Tensor,
        floor: Tensor | None,
        weight: Tensor | None,  # (C, 1, ...)
        dim: int,
        summed: bool,
    ) -> tuple[Tensor, Tensor]:
        yhat = torch.softmax(z, dim)
        # −log ŷ_y = log s + max z − z_y with s = Σ_c e^{z_c − max z}, and 1/s is the largest ŷ. (ŷ_y itself may be 0.)
        log_s = yhat.amax(dim).to(share.dtype).log().neg()
        top = z.amax(dim)
        loss = log_s + (top - z.gather(dim, index.unsqueeze(dim)).squeeze(dim))
        loss = loss * share
        if floor is not None:
            below = top.unsqueeze(dim) - z
            loss = loss + floor * (_dot(below, weight, dim) + log_s * _total(weight, z.shape[dim]))
        loss = loss.masked_fill(ignored, 0)  # an ignored sample may hold NaN, and NaN · 0 is NaN
        return (loss.sum() if summed else loss).to(z.dtype), yhat

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        _, index, _, share, floor, weight, ctx.dim, ctx.summed = inputs
        save(ctx, output[1], index, share, floor, weight)
        if not torch.compiler.is_compiling():  # the compiler knows no such method; the zeros it makes are fused away
            ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None, grad_yhat: Tensor | None) -> tuple[Tensor | None, ...]:
        yhat, index, share, floor, weight = ctx.saved_tensors
        dim = ctx.dim
        grad_z = None
        if grad_loss is not None:
            # z̄ = ŷ Σ_c q_c − q for each sample's target distribution q: share at the class y, floor · w everywhere
            at_class = (grad_loss * share).to(yhat.dtype).unsqueeze(dim)
            mass = at_class
            if floor is not None:
                everywhere = (grad_loss * floor).to(yhat.dtype).unsqueeze(dim)
                mass = at_class + everywhere * _total(weight, yhat.shape[dim])
            grad_z = (yhat * mass).scatter_add_(dim, index.unsqueeze(dim), at_class.neg())
            if floor is not None:
                grad_z = grad_z.sub_(everywhere if weight is None else everywhere * weight)
        if grad_yhat is not None:  # only where the backward itself is differentiated: through the softmax
            through = yhat * grad_yhat
            through = torch.addcmul(through, yhat, through.sum(dim, keepdim=True), value=-1)
            grad_z = through if grad_z is None else grad_z + through
        return grad_z, None, None, None, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, dz: Tensor, *others: Tensor | None) -> tuple[Tensor, Tensor]:
        yhat, index, share, floor, weight = ctx.saved_tensors
        dim = ctx.dim
        if any(other is not None for other in others):
            raise NotImplementedError(_NO_WEIGHT_GRADIENT)
        dyhat = yhat * dz
        mean = dyhat.sum(dim, keepdim=True)
        dyhat = dyhat - yhat * mean
        mean = mean.squeeze(dim).to(share.dtype)
        dloss = share * (mean - dz.gather(dim, index.unsqueeze(dim)).squeeze(dim))
        if floor is not None:
            dloss = dloss + floor * (mean * _total(weight, yhat.shape[dim]) - _dot(dz, weight, dim))
        return (dloss.sum() if ctx.summed else dloss).to(yhat.dtype), dyhat


def _dot(v: Tensor, weight: Tensor | None, dim: int) -> Tensor:
    return v.sum(dim) if weight is None else (v * weight).sum(dim)


def _total(weight: Tensor | None, classes: int) -> Tensor | float:
    return float(classes) if weight is None else weight.sum()


class SoftCrossEntropyFunction(Op):
    """L = −Σ_c q_c log ŷ_c for a target distribution q per sample; log ŷ is the second output.

    q̄ is made of log ŷ, and ŷ = e^{log ŷ}: so log ŷ is kept, not ŷ, whose logarithm may be lost to underflow.
    """

    autocast = "float32"

    @staticmethod
    def forward(z: Tensor, q: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        log_yhat = torch.log_softmax(z, dim)
        return (q * log_yhat).sum(dim).neg(), log_yhat

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: tuple[Tensor, Tensor]) -> None:
        save(ctx, output[1], inputs[1])
        ctx.dim = inputs[2]
        if not torch.compiler.is_compiling():
            ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None, grad_log: Tensor | None) -> tuple[Tensor | None, ...]:
        log_yhat, q = ctx.saved_tensors
        dim = ctx.dim
        grad_z = grad_q = None
        if ctx.needs_input_grad[0]:
            # The loss is linear in log ŷ: all that arrives there is −L̄ q, and what the second output brings.
            arriving = grad_log
            if grad_loss is not None:
                from_loss = q * grad_loss.unsqueeze(dim).neg()
                arriving = from_loss if arriving is None else arriving + from_loss
            if arriving is not None:
                grad_z = torch.addcmul(arriving, log_yhat.exp(), arriving.sum(dim, keepdim=True), value=-1)
        if ctx.needs_input_grad[1] and grad_loss is not None:
            grad_q = log_yhat * grad_loss.unsqueeze(dim).neg()
        return grad_z, grad_q, None

    @staticmethod
    def jvp(ctx: Any, dz: Tensor | None, dq: Tensor | None, _: None) -> tuple[Tensor, Tensor]:
        log_yhat, q = ctx.saved_tensors
        dim = ctx.dim
        dlog = torch.zeros_like(log_yhat)
        dloss = None
        if dz is not None:
            dlog = dz - (log_yhat.exp() * dz).sum(dim, keepdim=True)
            dloss = (q * dlog).sum(dim).neg()
        if dq is not None:
            from_q = (dq * log_yhat).sum(dim).neg()
            dloss = from_q if dloss is None else dloss + from_q
        assert dloss is not None
        return dloss, dlog


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Softmax and cross-entropy in one: L = −Σ_c w_c y_c log ŷ_c with ŷ = softmax(z), z the logits.

    For a class index y it is L = −w_y log ŷ_y = w_y (log Σ_c e^{z_c} − z_y). Label smoothing ε puts
    y_c ← (1 − ε) y_c + ε/C. The mean over class indices is weighted, Σ_i L_i / Σ_i w_{y_i}, and leaves ignored samples
    out; the mean over probabilities divides by the number of samples.

    Derivation of the backward, for one sample with target distribution q (w and ε included)::

        L = −Σ_c q_c z_c + (Σ_c q_c) log Σ_k e^{z_k}
        ∂L/∂z_j = −q_j + (Σ_c q_c) e^{z_j} / Σ_k e^{z_k}
                = ŷ_j Σ_c q_c − q_j
        ∂L/∂q_j = −log ŷ_j

    and with Σ q = 1 that is the notes' dz = ŷ − y. For a class index q has one entry, so z̄ is ŷ · L̄ with L̄ taken off
    at the class. Forward mode: L̇ = Σ_c (∂L/∂z_c) ż_c.

    Saved for backward: ŷ, the class indices and one number per sample; for probabilities log ŷ and q instead. ŷ is an
    output of the op, not a by-product, so that second derivatives pass through it: ŷ̄ goes back as in `softmax`.

    Args:
        input: z, floating point, (N, C), (C,) for a single sample, or (N, C, d1, d2, ...).
        target: class indices, integers of shape (N,), () or (N, d1, d2, ...); or probabilities, floating point, in
            the shape of ``input``.
        weight: w, one number for each class, (C,). Has a gradient for probabilities only, as in PyTorch.
        size_average: deprecated, use ``reduction``.
        ignore_index: a class index whose samples count for nothing; class indices only.
        reduce: deprecated, use ``reduction``.
        reduction: ``"mean"``, ``"sum"``, or ``"none"`` for one loss per sample.
        label_smoothing: ε in [0, 1].

    Returns:
        L as a number, or with the shape of the class indices for ``"none"``. The mean of no sample at all is NaN.

    Raises:
        TypeError: ``input`` is not floating point, or ``target`` neither class indices nor probabilities.
        ValueError: the shapes of ``input`` and ``target`` or ``weight`` do not agree; ``label_smoothing`` or
            ``reduction`` is none of the above; ``ignore_index`` with probabilities; ``weight`` requires a gradient
            with class indices.
        IndexError: a class index is not in [0, C) (on a CPU; on a GPU the kernel asserts).

    Source: the notes, "multi-class classification"; SPEC A9.

    >>> z = torch.tensor([[5.0, 2.0, -1.0, 3.0]], requires_grad=True)
    >>> cross_entropy(z, torch.tensor([1])).backward()  # −log 0.042
    >>> z.grad
    tensor([[ 0.8420, -0.9581,  0.0021,  0.1140]])
    """
    reduction = check_reduction(reduction, size_average, reduce)
    check_floating(input, "input")
    check_tensor(target, "target")
    if input.dim() == 0:
        raise ValueError(f"input must have an axis of classes, got {describe(input)}; use shape (N, C) or (C,).")
    dim = 0 if input.dim() == 1 else 1
    if weight is not None:
        _check_weight(weight, input.shape[dim])
    if label_smoothing != 0.0:
        check_in_range(label_smoothing, "label_smoothing", 0.0, 1.0, remedy="0.1 is usual, 0 turns it off")
    if target.shape == input.shape:
        return _for_probabilities(input, target, weight, ignore_index, reduction, label_smoothing, dim)
    _check_index_shape(input, target, dim)
    if dim == 0:
        target = target.reshape(())  # (1,) is taken for a single sample too, as PyTorch does
    if weight is not None and weight.requires_grad:
        raise ValueError(_NO_WEIGHT_GRADIENT)
    try:
        return _for_indices(input, target, weight, ignore_index, reduction, label_smoothing, dim)
    except (IndexError, RuntimeError):
        _explain_index(target, ignore_index, input.shape[dim])
        raise


def _for_indices(
    z: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, reduction: str, smoothing: float, dim: int
) -> Tensor:
    ignored = target == ignore_index
    index = target.long().masked_fill(ignored, 0)
    dtype = accumulation_dtype(z.dtype)
    kept = ignored.logical_not().to(dtype)
    share = kept if weight is None else kept * weight.to(dtype)[index]
    if reduction == "mean":
        count = share.sum()
        share = share / count
        kept = kept / count if smoothing and weight is not None else share
    floor = column = None
    if smoothing:
        floor = kept * (smoothing / z.shape[dim])
        share = share * (1 - smoothing)
        column = None if weight is None else weight.to(z.dtype).reshape([-1] + [1] * (z.dim() - dim - 1))
    loss: Tensor
    loss, _ = CrossEntropyFunction.call(z, index, ignored, share, floor, column, dim, reduction != "none")
    return loss


def _for_probabilities(
    z: Tensor, y: Tensor, weight: Tensor | None, ignore_index: int, reduction: str, smoothing: float, dim: int
) -> Tensor:
    if not y.is_floating_point():
        raise TypeError(
            f"target must hold floating-point probabilities where it has the shape of input, got {describe(y)}; "
            "convert it with target.to(input.dtype), or drop the axis of classes for class indices."
        )
    if ignore_index >= 0:
        raise ValueError(
            f"ignore_index must be left out for a target of probabilities, got {ignore_index}; "
            "give the samples to ignore a target of zeros."
        )
    dtype = torch.promote_types(z.dtype, y.dtype)
    q = y.to(dtype)
    if smoothing:
        q = q * (1 - smoothing) + smoothing / z.shape[dim]
    if weight is not None:
        q = q * weight.reshape([-1] + [1] * (z.dim() - dim - 1))
    losses: Tensor
    losses, _ = SoftCrossEntropyFunction.call(z.to(dtype), q, dim)
    return reduce_losses(losses, reduction)


_NO_WEIGHT_GRADIENT = (
    "weight must not require a gradient with class indices as target, which it only rescales; pass weight.detach(), "
    "or a one-hot target of probabilities, for which it has one."
)


def _check_weight(weight: Tensor, classes: int) -> None:
    check_floating(weight, "weight")
    if weight.shape != (classes,):
        raise ValueError(
            f"weight must hold one number for each of the {classes} classes, got {describe(weight)}; "
            f"give it shape ({classes},)."
        )


def _check_index_shape(z: Tensor, target: Tensor, dim: int) -> None:
    """Refuse a target that is neither of the shape of class indices nor of a type that can be one."""
    wanted = z.shape[:dim] + z.shape[dim + 1 :]
    if target.shape != wanted and not (dim == 0 and target.shape == (1,)):
        remedy = "check how target was batched"
        if target.shape == (*wanted, 1):
            remedy = "drop the extra axis with target.squeeze(-1)"
        elif target.dim() == 1 and target.shape == z.shape[:1]:
            remedy = "give every position its own class"
        raise ValueError(
            f"target must have shape {tuple(wanted)} (class indices) or {tuple(z.shape)} (probabilities) for input of "
            f"shape {tuple(z.shape)}, got {describe(target)}; {remedy}."
        )
    if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
        raise TypeError(
            f"target must hold integer class indices where it has no axis of classes, got {describe(target)}; "
            f"convert it with target.long(), or give it shape {tuple(z.shape)} for probabilities."
        )


def _explain_index(target: Tensor, ignore_index: int, classes: int) -> None:
    """Say which class index made the op fail, if one did."""
    outside = target[((target < 0) | (target >= classes)) & (target != ignore_index)]
    if outside.numel():
        raise IndexError(
            f"target must hold class indices in [0, {classes - 1}] or ignore_index={ignore_index}, got "
            f"{int(outside[0])}; check the labels against the {classes} outputs."
        ) from None
