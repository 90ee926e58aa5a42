"""Softmax cross-entropy for class indices and for class probabilities, and its backward."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from torchnotes._checks import check_floating, check_in_range, check_tensor, describe
from torchnotes.ops._function import Op, as_dtype, may_overwrite, number_beside, plain_eager, save
from torchnotes.ops._reduction import HALF, accumulation_dtype, check_reduction, reduce_losses
from torchnotes.ops.kernels._dispatch import chosen
from torchnotes.ops.softmax import SoftmaxFunction

_FEW = 1 << 15  # logits
_MINUS_ONES = {d: torch.full((_FEW, 1), -1.0, dtype=d, device="cpu") for d in (torch.float32, torch.float64)}
_NO_CLASS = -0x1F3D5B79A2C4E608  # an index that nobody uses: with it in its place, what is to be ignored is an error


class CrossEntropyFunction(Op):
    """L = Σ_i (share_i · (−log ŷ_iy) + floor_i · Σ_c w_c (−log ŷ_ic)), ŷ = softmax(z), y the class index.

    log ŷ is the second output: it depends on z, so its gradient counts when the backward is differentiated again. Of
    the size of z nothing else is kept.
    """

    autocast = "float32"

    @staticmethod
    def forward(
        z: Tensor,  # (N, C, ...) with dim = 1, or (C,) with dim = 0
        target: Tensor,  # (N, ...)
        weight: Tensor | None,  # (C,)
        ignore_index: int,
        reduction: str,
        smoothing: float,
        dim: int,
    ) -> tuple[Tensor, Tensor]:
        log_yhat = torch.log_softmax(z, dim)
        # −w_y log ŷ_y, then the sum or the weighted mean; ignored samples left out, NaN among them or not
        if reduction == "mean" and z.dtype in HALF:  # float16 holds neither a sum of many losses nor many samples
            losses = F.nll_loss(log_yhat, target, weight, ignore_index=ignore_index, reduction="none")
            counted = class_shares(target, weight, ignore_index, "sum", 0.0, z, dim)[1]
            loss = losses.float().sum() / counted.sum()
        else:
            loss = F.nll_loss(log_yhat, target, weight, ignore_index=ignore_index, reduction=reduction)
        if smoothing:
            _, _, floor = class_shares(target, weight, ignore_index, reduction, smoothing, z, dim)
            assert floor is not None
            rest = _weighted(log_yhat, weight, dim).sum(dim).masked_fill(target == ignore_index, 0) * floor
            loss = (1 - smoothing) * loss - (rest if reduction == "none" else rest.sum())
        return as_dtype(loss, z.dtype), log_yhat

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        _, target, weight, *ctx.options = inputs
        save(ctx, output[1], target, weight)
        if not torch.compiler.is_compiling():  # the compiler knows no such method; the zeros it makes are fused away
            ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None, grad_log: Tensor | None) -> tuple[Tensor | None, ...]:
        log_yhat, target, weight = ctx.saved_tensors
        ignore_index, reduction, smoothing, dim = ctx.options
        yhat, grad_z = log_yhat.exp(), None
        if grad_loss is not None:
            index, share, floor = class_shares(target, weight, ignore_index, reduction, smoothing, log_yhat, dim)
            overwrite = grad_log is None and may_overwrite(grad_loss)
            grad_z = logit_gradient(grad_loss, yhat, index, share, floor, weight, dim, overwrite=overwrite)
        if grad_log is not None:  # only where the backward itself is differentiated: through the log-softmax
            through = grad_log - yhat * grad_log.sum(dim, keepdim=True)
            grad_z = through if grad_z is None else grad_z + through
        return grad_z, *[None] * 6

    @staticmethod
    def jvp(ctx: Any, dz: Tensor | None, _: None, dweight: Tensor | None, *__: None) -> tuple[Tensor, Tensor]:
        if dweight is not None or dz is None:
            raise NotImplementedError(_NO_WEIGHT_GRADIENT)
        log_yhat, target, weight = ctx.saved_tensors
        ignore_index, reduction, smoothing, dim = ctx.options
        index, share, floor = class_shares(target, weight, ignore_index, reduction, smoothing, log_yhat, dim)
        dlog = dz - (log_yhat.exp() * dz).sum(dim, keepdim=True)
        dloss = -share * dlog.gather(dim, index.unsqueeze(dim)).squeeze(dim)
        if floor is not None:
            dloss = dloss - floor * _weighted(dlog, weight, dim).sum(dim)
        return (dloss if reduction == "none" else dloss.sum()).to(log_yhat.dtype), dlog


class CountedCrossEntropyFunction(Op):
    """The case met most, in the fewest calls: class indices of which none is ignored, no weights, no smoothing.

    L = −share · Σ_i log ŷ_iy and z̄_ij = L̄ · share · (ŷ_ij − [j = y]), where share is 1/m for the mean and else 1. The
    logits are saved, and ŷ formed again, which is cheaper for few of them than a second output. There is no ``jvp``:
    it runs where `_few` says so, and forward mode takes `CrossEntropyFunction`.
    """

    @staticmethod
    def forward(z: Tensor, target: Tensor, reduction: str) -> Tensor:
        return F.nll_loss(torch.log_softmax(z, 1), target, ignore_index=_NO_CLASS, reduction=reduction)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        z, target, ctx.reduction = inputs
        ctx.save_for_backward(z, target)

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, None, None]:
        z, target = ctx.saved_tensors
        yhat = SoftmaxFunction.call(z, 1).clone() if torch.is_grad_enabled() else torch.softmax(z, 1)
        difference = yhat.scatter_add_(1, target.unsqueeze(1), _minus_one_each(z))  # ŷ − y of the notes
        if ctx.reduction == "mean":  # · L̄/m, with 1/m as a constant of the product: no tensor is made of it
            return torch.addcmul(number_beside(0.0, z), difference, grad_loss, value=1 / len(target)), None, None
        return difference * (grad_loss if ctx.reduction == "sum" else grad_loss.unsqueeze(1)), None, None


def _minus_one_each(z: Tensor) -> Tensor:
    """−1 for each sample to scatter; of the tensor made once there are more than that, which does no harm."""
    return _MINUS_ONES[z.dtype] if type(z) is Tensor else number_beside(-1.0, z).expand(len(z), 1)


def _few(z: Tensor, target: Tensor, ignore_index: int) -> bool:
    """Whether the calls are most of the time, and `CountedCrossEntropyFunction` can tell whether it is right.

    It can where nothing but the indices' values may be wrong, and what is to be ignored is none of the classes.
    """
    return (
        isinstance(z, Tensor)
        and isinstance(target, Tensor)
        and target.dtype == torch.int64
        and target.dim() == 1
        and z.dim() == 2
        and z.dtype in (torch.float32, torch.float64)
        and 0 < z.numel() <= _FEW
        and z.is_cpu
        and plain_eager()
        and not 0 <= ignore_index < z.shape[1]
        and not chosen("cross_entropy", z)
    )


def logit_gradient(
    grad_loss: Tensor,
    yhat: Tensor,
    index: Tensor,
    share: Tensor,
    floor: Tensor | None,
    weight: Tensor | None,
    dim: int,
    *,
    overwrite: bool = False,
) -> Tensor:
    """z̄ = ŷ Σ_c q_c − q, where q is L̄ · share at the class y and L̄ · floor · w everywhere."""
    at_class = (grad_loss * share).to(yhat.dtype).unsqueeze(dim)
    mass, everywhere = at_class, None
    if floor is not None:
        everywhere = (grad_loss * floor).to(yhat.dtype).unsqueeze(dim)
        mass = at_class + everywhere * (yhat.shape[dim] if weight is None else weight.sum())
    grad_z = yhat.mul_(mass) if overwrite else yhat * mass
    grad_z = grad_z.scatter_add_(dim, index.unsqueeze(dim), at_class.neg())
    return grad_z if everywhere is None else grad_z.sub_(_weighted(everywhere, weight, dim))


def class_shares(
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    smoothing: float,
    like: Tensor,
    dim: int,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Class index, share and floor of each sample, all three 0 where it is ignored; no floor without ε."""
    kept = target != ignore_index
    index = target * kept
    dtype = accumulation_dtype(like.dtype)
    one = torch.ones((), dtype=dtype, device=like.device)
    counts = one if weight is None else weight.to(dtype)[index]
    if reduction == "mean":
        total = kept.sum(dtype=dtype) if weight is None else torch.where(kept, counts, 0).sum()
        one = total.reciprocal()
    # chosen, not multiplied: the mean of no sample at all is 0/0, and its gradient still 0
    share = torch.where(kept, one * counts * (1 - smoothing) if smoothing or weight is not None else one, 0)
    floor = torch.where(kept, one * (smoothing / like.shape[dim]), 0) if smoothing else None
    return index, share, floor


def _weighted(v: Tensor, weight: Tensor | None, dim: int) -> Tensor:
    """V times w along the axis of the classes."""
    return v if weight is None else v * weight.to(v.dtype).reshape([-1] + [1] * (v.dim() - dim - 1))


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

    Saved for backward: log ŷ, from which ŷ = e^{log ŷ}, with the class indices or q, and w. log ŷ is an output of the
    op and not a by-product, so that second derivatives pass through it: what arrives there goes back as in
    `log_softmax`. Of few logits on a CPU, with no weights, no smoothing and nothing ignored, z itself is saved and ŷ
    formed again.

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
        IndexError: a class index is not in [0, C) (on a CPU; a GPU's kernel asserts it, or makes the loss NaN).

    Source: the notes, "multi-class classification"; SPEC A9.

    >>> z = torch.tensor([[5.0, 2.0, -1.0, 3.0]], requires_grad=True)
    >>> cross_entropy(z, torch.tensor([1])).backward()  # −log 0.042
    >>> z.grad
    tensor([[ 0.8420, -0.9581,  0.0021,  0.1140]])
    """
    reduction = check_reduction(reduction, size_average, reduce)
    loss: Tensor
    if weight is None and not label_smoothing and _few(input, target, ignore_index):
        try:
            loss = CountedCrossEntropyFunction.call(input, target, reduction)
            return loss
        except (IndexError, RuntimeError, ValueError):  # a sample to ignore, or what is refused below
            pass
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
    if input.dim() == 2 and input.numel() and chosen("cross_entropy", input):
        from torchnotes.ops.kernels import triton_cross_entropy

        return triton_cross_entropy.cross_entropy(input, target, weight, ignore_index, reduction, label_smoothing)
    try:
        loss, _ = CrossEntropyFunction.call(input, target.long(), weight, ignore_index, reduction, label_smoothing, dim)
    except (IndexError, RuntimeError):
        _explain_index(target, ignore_index, input.shape[dim])
        raise
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
