"""Batch normalisation, and its backward."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from torchnotes._checks import check_floating, check_in_range, describe
from torchnotes.ops._channels import axes, centre, column, moments
from torchnotes.ops._function import Op, as_dtype, may_overwrite, save
from torchnotes.ops._reduction import accumulation_dtype


class BatchNormFunction(Op):
    """z̃ = γ (z − μ) r + β with r = 1/√(σ² + ε), μ and σ² taken over all axes but that of the channels.

    μ and σ² are further outputs: they depend on z, so gradients arrive there when the backward is differentiated
    again. They, z and γ are kept; nothing of the size of z but z itself.
    """

    @staticmethod
    def forward(
        z: Tensor,  # (N, C, ...)
        gamma: Tensor | None,  # (C,), as the following three
        beta: Tensor | None,
        running_mean: Tensor | None,  # updated in place
        running_var: Tensor | None,
        eps: float,
        step: float,
        unbiased: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        x = as_dtype(z, accumulation_dtype(z.dtype))
        mean, var, centred = moments(x, may_overwrite(z))
        if running_mean is not None and running_var is not None:
            _update(running_mean, running_var, mean, var, _count(z), step, unbiased)
        r = (var + eps).rsqrt()
        y = centred.affine(r if gamma is None else r * gamma, beta)
        return as_dtype(y, z.dtype), mean, var

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        z, gamma, beta, _, _, ctx.eps, _, _ = inputs
        _, mean, var = output
        save(ctx, z, gamma, mean, var)
        ctx.beta_dtype = None if beta is None else beta.dtype
        if not torch.compiler.is_compiling():  # the compiler knows no such method, and folds the zeros it makes
            ctx.set_materialize_grads(False)

    @staticmethod
    def backward(
        ctx: Any, grad_y: Tensor | None, grad_mean: Tensor | None, grad_var: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        z, gamma, mean, var = ctx.saved_tensors
        count = _count(z)
        x = as_dtype(z, mean.dtype)
        if grad_y is None:
            slope, constant = _through_statistics(mean, grad_mean, grad_var, count)
            return as_dtype(centre(x, mean, alone=False).affine(slope, constant), z.dtype), *[None] * 7
        g = as_dtype(grad_y, mean.dtype)
        first = grad_mean is None and grad_var is None  # nothing came back to μ and σ²
        centred = centre(x, mean, first and may_overwrite(grad_y))
        r = (var + ctx.eps).rsqrt()
        factor = r if gamma is None else r * gamma
        grad_beta, dot = centred.sums(g)
        grad_gamma = dot * r
        grad_z = None
        if ctx.needs_input_grad[0]:
            # z̄ = factor · ȳ + slope · (z − μ) + constant, each of the three one number a channel
            share = factor * (-1 / count)
            slope, constant = share * r * grad_gamma, share * grad_beta
            if not first:
                more_slope, more_constant = _through_statistics(mean, grad_mean, grad_var, count)
                slope, constant = slope + more_slope, constant + more_constant
            grad_z = as_dtype(centred.affine(slope, constant, factor, g), z.dtype)
        return (
            grad_z,
            None if gamma is None else as_dtype(grad_gamma, gamma.dtype),
            None if ctx.beta_dtype is None else as_dtype(grad_beta, ctx.beta_dtype),
            *[None] * 5,
        )

    @staticmethod
    def jvp(
        ctx: Any, dz: Tensor | None, dgamma: Tensor | None, dbeta: Tensor | None, *_: None
    ) -> tuple[Tensor, Tensor, Tensor]:
        z, gamma, mean, var = ctx.saved_tensors
        dtype, count = mean.dtype, _count(z)
        centred = z.to(dtype) - column(mean, z)
        r = (var + ctx.eps).rsqrt()
        dy, dmean, dvar = torch.zeros_like(centred), torch.zeros_like(mean), torch.zeros_like(var)
        if dz is not None:
            dx = dz.to(dtype)
            factor = r if gamma is None else r * gamma
            dmean = dx.mean(axes(z))
            dvar = (centred * dx).sum(axes(z)) * (2 / count)
            dy = dx * column(factor, z)
            slope, constant = -factor * r * r * dvar / 2, -factor * dmean  # ṙ = −r³ σ̇²/2
            dy = dy + centred * column(slope, z) + column(constant, z)
        if dgamma is not None:
            dy = dy + centred * column(r * dgamma, z)
        if dbeta is not None:
            dy = dy + column(dbeta, z)
        return dy.to(z.dtype), dmean, dvar


class FixedNormFunction(Op):
    """z̃ = γ (z − μ) r + β with r = 1/√(σ² + ε), μ and σ² given: linear in z."""

    @staticmethod
    def forward(z: Tensor, gamma: Tensor | None, beta: Tensor | None, mean: Tensor, var: Tensor, eps: float) -> Tensor:
        x = as_dtype(z, accumulation_dtype(z.dtype))
        r = (var + eps).rsqrt()
        return as_dtype(centre(x, mean, may_overwrite(z)).affine(r if gamma is None else r * gamma, beta), z.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        z, gamma, beta, mean, var, ctx.eps = inputs
        save(ctx, z, gamma, mean, var)
        ctx.beta_dtype = None if beta is None else beta.dtype

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        z, gamma, mean, var = ctx.saved_tensors
        needs_z, needs_gamma, needs_beta = ctx.needs_input_grad[:3]
        dtype = accumulation_dtype(z.dtype)
        g = as_dtype(grad_y, dtype)
        r = (var + ctx.eps).rsqrt()
        grad_z = grad_gamma = grad_beta = None
        if needs_z:
            grad_z = (g * column(r if gamma is None else r * gamma, z)).to(z.dtype)
        if needs_gamma or needs_beta:
            grad_beta, dot = centre(as_dtype(z, dtype), mean, may_overwrite(grad_y)).sums(g)
            grad_gamma = (dot * r).to(gamma.dtype) if needs_gamma else None
            grad_beta = grad_beta.to(ctx.beta_dtype) if needs_beta else None
        return grad_z, grad_gamma, grad_beta, None, None, None

    @staticmethod
    def jvp(ctx: Any, dz: Tensor | None, dgamma: Tensor | None, dbeta: Tensor | None, *_: None) -> Tensor:
        z, gamma, mean, var = ctx.saved_tensors
        dtype = accumulation_dtype(z.dtype)
        r = (var + ctx.eps).rsqrt()
        terms = []
        if dz is not None:
            terms.append(dz.to(dtype) * column(r if gamma is None else r * gamma, z))
        if dgamma is not None:
            terms.append((z.to(dtype) - column(mean, z)) * column(r * dgamma, z))
        if dbeta is not None:
            terms.append(column(dbeta, z).expand_as(z))
        return sum(terms[1:], start=terms[0]).to(z.dtype)


def _through_statistics(
    like: Tensor, grad_mean: Tensor | None, grad_var: Tensor | None, count: int
) -> tuple[Tensor, Tensor]:
    """The slope along z − μ and the constant that arrive by σ² and μ: ∂σ²/∂z = 2 (z − μ)/m and ∂μ/∂z = 1/m."""
    slope = torch.zeros_like(like) if grad_var is None else grad_var * (2 / count)
    constant = torch.zeros_like(like) if grad_mean is None else grad_mean / count
    return slope, constant


def _update(
    running_mean: Tensor, running_var: Tensor, mean: Tensor, var: Tensor, count: int, step: float, unbiased: bool
) -> None:
    """Move each: v ← v + step · (new − v), for the statistics of a batch of ``count`` numbers a channel."""
    if unbiased:
        var = var * (count / (count - 1))
    running_mean.lerp_(as_dtype(mean, running_mean.dtype), step)
    running_var.lerp_(as_dtype(var, running_var.dtype), step)


def _count(z: Tensor) -> int:
    """m: how many numbers each channel has."""
    return z.shape[0] * math.prod(z.shape[2:])


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    average: float | None = None,
) -> Tensor:
    """Batch normalisation of each channel: z̃ = γ (z − μ)/√(σ² + ε) + β.

    In training μ = Σz/m and σ² = Σ(z − μ)²/m are the batch's own, over the m numbers of the channel; otherwise they are
    the running ones. With γ = √(σ² + ε) and β = μ it is the identity.

    Derivation of the backward in training, with d = z − μ, r = 1/√(σ² + ε), ẑ = d r, per channel::

        β̄ = Σ z̃̄,  γ̄ = Σ z̃̄ ẑ,  ẑ̄ = γ z̃̄
        ∂μ/∂z_i = 1/m;  ∂σ²/∂z_i = 2 d_i/m  (the part through μ is −2 Σd/m² = 0)
        ∂r/∂z_i = −½ r³ · 2 d_i/m = −r³ d_i/m
        z̄_i = r ẑ̄_i − (r/m) Σ ẑ̄ + (∂r/∂z_i) Σ ẑ̄ d
            = γ r (z̃̄_i − Σ z̃̄/m − ẑ_i Σ z̃̄ ẑ/m)
            = γ r (z̃̄_i − β̄/m − ẑ_i γ̄/m)

    so what goes back has mean 0 and no component along ẑ. In evaluation μ and r are constants: z̄ = γ r z̃̄.

    Saved for backward: z, γ and the C means and variances, as PyTorch does.

    **Running statistics**, updated in place in training. PyTorch's average, the default, keeps the unbiased variance
    and gives ``momentum`` to the new batch::

        v ← (1 − momentum) v + momentum · new,    new variance σ² m/(m − 1)

    The notes' average keeps the biased σ² and names the other weight, v ← β v + (1 − β) · new. Ask for it by name
    with ``average=β``, which takes the place of ``momentum``; β = 1 − momentum converts the mean, and the variances
    differ by the factor m/(m − 1) as well.

    Args:
        input: z, floating point, (N, C) or (N, C, d1, ...).
        running_mean: (C,), or None for no running statistics.
        running_var: (C,), or None together with ``running_mean``.
        weight: γ, (C,); None for 1.
        bias: β, (C,); None for 0.
        training: use the batch's statistics, and update the running ones where there are any.
        momentum: PyTorch's weight of the new batch.
        eps: ε.
        average: the notes' β, the weight of the past, for the notes' average; None for PyTorch's.

    Returns:
        z̃ with the shape and dtype of ``input``; half precision is computed in float32.

    Raises:
        TypeError: an argument is not floating point.
        ValueError: a per-channel argument is not of shape (C,); one running statistic without the other; none in
            evaluation; a running statistic that requires a gradient; one value a channel in training, which has no
            variance; ``eps`` negative, or 0 in training; ``average`` outside [0, 1].

    Source: the notes, "batch normalisation"; SPEC A11, G15; Ioffe and Szegedy (2015).

    >>> z = torch.tensor([[1.0, 10.0], [3.0, 30.0]])
    >>> mean, var = torch.zeros(2), torch.ones(2)
    >>> batch_norm(z, mean, var, training=True, average=0.9)
    tensor([[-1.0000, -1.0000],
            [ 1.0000,  1.0000]])
    >>> mean, var
    (tensor([0.2000, 2.0000]), tensor([ 1.0000, 10.9000]))
    """
    check_floating(input, "input")
    if input.shape == (0,):  # no channel of no sample, which PyTorch lets pass
        input = input.reshape(0, 0)
        return batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps).reshape(0)
    if input.dim() < 2:
        raise ValueError(f"input must have shape (N, C) or (N, C, ...), got {describe(input)}; add a batch axis.")
    _check_channels(input, running_mean=running_mean, running_var=running_var, weight=weight, bias=bias)
    if (running_mean is None) != (running_var is None):
        raise ValueError(
            f"running_mean and running_var must both be given or both be None, got running_mean "
            f"{describe(running_mean)} and running_var {describe(running_var)}; pass both or neither."
        )
    if (training and eps <= 0.0) or eps < 0.0 or math.isnan(eps):
        must = "positive during training" if training else "0 or more"
        raise ValueError(f"eps must be {must}, got {eps}; 1e-5 is usual.")
    if not training:
        if running_mean is None or running_var is None:
            raise ValueError(
                "running_mean and running_var must be given in evaluation, got None; pass training=True to use the "
                "statistics of the batch."
            )
        y: Tensor = FixedNormFunction.call(input, weight, bias, running_mean, running_var, eps)
        return y
    if not input.numel():  # no statistics to take, and none to update
        shape = input.shape[1:2]
        y = FixedNormFunction.call(input, weight, bias, input.new_zeros(shape), input.new_ones(shape), eps)
        return y
    if _count(input) == 1:
        raise ValueError(
            f"Expected more than 1 value per channel when training, got input size {tuple(input.shape)}; "
            "use a larger batch, or training=False."
        )
    if average is not None:
        check_in_range(average, "average", 0.0, 1.0, remedy="0.9 averages over about ten batches")
    step, unbiased = (momentum, True) if average is None else (1 - average, False)
    # A compiled graph takes no update inside the op; a torch.func transform takes none outside it.
    inside = (running_mean, running_var) if not torch.compiler.is_compiling() else (None, None)
    y, mean, var = BatchNormFunction.call(input, weight, bias, *inside, eps, step, unbiased)
    if torch.compiler.is_compiling() and running_mean is not None and running_var is not None:
        with torch.no_grad():
            _update(running_mean, running_var, mean, var, _count(input), step, unbiased)
    return y


def _check_channels(input: Tensor, **per_channel: Tensor | None) -> None:
    for name, value in per_channel.items():
        if value is None:
            continue
        check_floating(value, name)
        if value.shape != input.shape[1:2]:
            raise ValueError(
                f"{name} must hold one number for each of the {input.shape[1]} channels, got {describe(value)}; "
                f"give it shape ({input.shape[1]},), or check the axes of input {tuple(input.shape)}."
            )
        if name.startswith("running") and value.requires_grad:
            raise ValueError(f"{name} must not require a gradient, which it has none of; pass {name}.detach().")
