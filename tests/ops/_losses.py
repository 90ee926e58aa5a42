"""The ops that sum over an axis, with their twins: softmax, the losses, batch normalisation and the penalties."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from torchnotes import ops


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(11), dtype=torch.float64)


INDEX = torch.tensor([2, 0, 1, -100, 2])
IMAGE_INDEX = torch.tensor([[[0, 2], [1, -100]], [[2, 2], [0, 1]]])
CLASS_WEIGHT = torch.tensor([0.5, 2.0, 1.5], dtype=torch.float64)
RUNNING = (torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64), torch.tensor([0.25, 1.0, 4.0], dtype=torch.float64))
UNIT = torch.rand(3, 4, generator=torch.Generator().manual_seed(12), dtype=torch.float64)


def summed_in(w: Tensor) -> Tensor:
    """Half precision raised to float32, in which the penalties add up."""
    return w if w.dtype == torch.float64 else w.float()


def of_logits(function: Any, **options: Any) -> Any:
    """A loss against class indices; tensors among the options follow the dtype of the logits."""

    def loss(z: Tensor) -> Tensor:
        index = INDEX if z.dim() == 2 else IMAGE_INDEX
        fitted = {k: v.to(z.dtype) if isinstance(v, Tensor) else v for k, v in options.items()}
        return function(z, index, **fitted)

    return loss


def of_probabilities(function: Any, **options: Any) -> Any:
    return lambda z, t: function(z, torch.softmax(t, 1), **options)


def of_sigmoid(function: Any, **options: Any) -> Any:
    """A loss of probabilities: a sigmoid puts the inputs into (0, 1), PyTorch's own on both sides."""
    return lambda z, t: function(torch.sigmoid(z), torch.sigmoid(t), **options)


def with_positive_weight() -> tuple[Any, Any]:
    """Ours as a function of all three, and the formula of the notes: PyTorch's has no derivative in the third."""

    def ours(z: Tensor, t: Tensor, p: Tensor) -> Tensor:
        return ops.binary_cross_entropy_with_logits(z, torch.sigmoid(t), pos_weight=p.square())

    def formula(z: Tensor, t: Tensor, p: Tensor) -> Tensor:
        y, a = torch.sigmoid(summed_in(t)), torch.sigmoid(summed_in(z))
        return -(summed_in(p).square() * y * a.log() + (1 - y) * (1 - a).log()).mean().to(z.dtype)

    return ours, formula


def in_training(eps: float) -> tuple[Any, Any]:
    """Ours, and batch normalisation in PyTorch's arithmetic.

    Not `F.batch_norm`: the Hessian that `torch.func` makes of it (2.13) has a wrong block ∂²/∂γ∂z, as a difference
    quotient or autograd on this arithmetic shows. And no running statistics: `torch.vmap` cannot update them.
    """

    def ours(z: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        return ops.batch_norm(z, None, None, gamma, beta, training=True, eps=eps)

    def twin(z: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        x = summed_in(z)
        axes, shape = [0, *range(2, z.dim())], (1, -1, *[1] * (z.dim() - 2))
        mean, var = x.mean(axes, keepdim=True), x.var(axes, correction=0, keepdim=True)
        y = (x - mean) / (var + eps).sqrt() * summed_in(gamma).view(shape) + summed_in(beta).view(shape)
        return y.to(z.dtype)

    return ours, twin


def in_evaluation(function: Any) -> Any:
    def norm(z: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        mean, var = (summed_in(v.to(z.dtype)) for v in RUNNING)  # in float32, as a half-precision net keeps them
        return function(z, mean, var, summed_in(gamma), summed_in(beta), False, eps=0.1)

    return norm


def cases(case: Any) -> list[Any]:
    nll, bce, logits = "cross_entropy", "binary_cross_entropy", "binary_cross_entropy_with_logits"
    found = []

    def add(label: str, wrap: Any, name: str, shapes: tuple[tuple[int, ...], ...], *args: Any, **options: Any) -> None:
        ours, theirs = getattr(ops, name), getattr(F, name)
        found.append(case(label, wrap(ours, *args, **options), wrap(theirs, *args, **options), shapes))

    for name in ("softmax", "log_softmax"):
        for dim in (0, -1):
            add(f"{name} {dim}", lambda f, dim: lambda x: f(x, dim=dim), name, ((3, 4),), dim)
    for reduction in ("mean", "sum", "none"):
        add(f"{nll} {reduction}", of_logits, nll, ((5, 3),), reduction=reduction)
    add(f"{nll} weight", of_logits, nll, ((5, 3),), weight=CLASS_WEIGHT)
    add(f"{nll} smooth", of_logits, nll, ((5, 3),), label_smoothing=0.2)
    add(f"{nll} weight, smooth", of_logits, nll, ((5, 3),), weight=CLASS_WEIGHT, label_smoothing=0.2)
    add(f"{nll} image", of_logits, nll, ((2, 3, 2, 2),), weight=CLASS_WEIGHT, label_smoothing=0.1, reduction="none")
    add(f"{nll} probabilities", of_probabilities, nll, ((5, 3), (5, 3)), label_smoothing=0.1)
    add(bce, of_sigmoid, bce, ((3, 4), (3, 4)))
    add(f"{bce} none", of_sigmoid, bce, ((3, 4), (3, 4)), reduction="none")
    add(logits, lambda f: lambda z, t: f(z, torch.sigmoid(t)), logits, ((3, 4), (3, 4)))
    add(
        f"{logits} weights",
        lambda f: lambda z: f(z, UNIT.to(z.dtype), UNIT[0].to(z.dtype), pos_weight=3 * UNIT[1].to(z.dtype)),
        logits,
        ((3, 4),),
    )
    found.append(case(f"{logits} all three", *with_positive_weight(), ((3, 4), (3, 4), (3, 4))))
    for shape in ((5, 3), (2, 3, 2, 2)):
        found.append(case(f"batch_norm {len(shape)}d", *in_training(0.01), (shape, (3,), (3,))))
        add(f"batch_norm {len(shape)}d evaluation", in_evaluation, "batch_norm", (shape, (3,), (3,)))
    add("batch_norm alone", lambda f: lambda z: f(z, None, None, training=True, eps=0.3), "batch_norm", ((4, 2, 3),))
    found += [
        case(
            "l1_penalty", lambda w: ops.l1_penalty(w, 0.3, 7), lambda w: 0.3 / 14 * summed_in(w).abs().sum(), ((3, 4),)
        ),
        case(
            "l2_penalty",
            lambda w: ops.l2_penalty(w, 0.3, 7),
            lambda w: 0.3 / 14 * summed_in(w).square().sum(),
            ((3, 4),),
        ),
        case(
            "l2_penalty, two",
            lambda v, w: ops.l2_penalty([v, w], 0.3, 7),
            lambda v, w: 0.3 / 14 * (summed_in(v).square().sum() + summed_in(w).square().sum()),
            ((3, 4), (2,)),
        ),
    ]
    return found
