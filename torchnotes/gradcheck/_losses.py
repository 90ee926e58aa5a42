"""The data cost of many outputs at once, by the fastest way that gives what the loss gives."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

Way = Callable[[Tensor], Tensor]
Each = Callable[[Tensor, Tensor], Tensor]


class ManyLosses:
    """The loss of a stack of outputs that differ from a base output.

    A loss that is the mean or sum of one term a sample is taken with ``reduction="none"`` over all samples of all
    outputs as one batch. Another is taken by ``vmap``; what neither gives rightly, one by one.

    Args:
        loss: ``loss(output, target)``, or ``loss(output)`` where the target is None.
        target: its target.
        base: the output at θ: (samples, width).
    """

    def __init__(self, loss: Callable[..., Tensor], target: Any, base: Tensor) -> None:
        self._loss, self._target, self._base = loss, target, base
        self._targets: dict[int, Tensor] = {}
        self._way: Way | None = None
        self._each: Tensor | None = None
        self._single, self._summed = _without_reduction(loss, target)

    def __call__(self, outputs: Tensor) -> Tensor:
        """(n, samples, width) -> (n,)."""
        if self._way is None:
            self._way = self._choose(outputs[:3])
        return self._way(outputs)

    def _choose(self, outputs: Tensor) -> Way:
        ways: list[Way] = [torch.vmap(self._one)] if self._single is None else [self._by_rows, torch.vmap(self._one)]
        return next((w for w in ways if self._same(w, outputs)), self._loop)

    @property
    def separable(self) -> bool:
        """Whether the loss is the mean or sum of one term a sample."""
        if self._way is None:
            self._way = self._choose(self._base.expand(2, *self._base.shape))
        return self._way == self._by_rows

    def terms(self, outputs: Tensor) -> Tensor:
        """What each sample adds to a separable loss: (n, samples, width) -> (n, samples)."""
        each = self._terms(outputs, self._repeated(len(outputs)))
        return each.sum(2) if self._summed else each.sum(2) / each[0].numel()

    def where(self, rows: Tensor, outputs: Tensor) -> Tensor:
        """The same for outputs (n, rows, width) of some samples, where all the others are as in the base."""
        n = len(outputs)
        if self._way != self._by_rows:
            whole = self._base.expand(n, *self._base.shape).clone()
            whole[:, rows] = outputs
            return self(whole)
        if self._each is None:
            self._each = self._terms(self._base.unsqueeze(0), self._repeated(1))
        each = self._each.expand(n, *self._each.shape[1:]).clone()
        each[:, rows] = self._terms(outputs, self._repeated(n, rows))
        return self._reduce(each)

    def _one(self, output: Tensor) -> Tensor:
        return (self._loss(output) if self._target is None else self._loss(output, self._target)).reshape(())

    def _loop(self, outputs: Tensor) -> Tensor:
        return torch.stack([self._one(o) for o in outputs])

    def _by_rows(self, outputs: Tensor) -> Tensor:
        n = len(outputs)
        if n not in self._targets:
            self._targets.clear()
            self._targets[n] = self._repeated(n)
        return self._reduce(self._terms(outputs, self._targets[n]))

    def _repeated(self, n: int, rows: Tensor | None = None) -> Tensor:
        target: Tensor = self._target if rows is None else self._target[rows]
        return target.repeat(n, *[1] * (target.dim() - 1))

    def _terms(self, outputs: Tensor, target: Tensor) -> Tensor:
        assert self._single is not None
        return self._single(outputs.flatten(0, 1), target).view(*outputs.shape[:2], -1)

    def _reduce(self, each: Tensor) -> Tensor:
        each = each.flatten(1)
        return each.sum(1) if self._summed else each.mean(1)

    def _same(self, way: Way, outputs: Tensor) -> bool:
        """Whether a way gives the loss, at the outputs and at others in which every sample is moved."""
        ripple = 1 + 0.1 * torch.sin(torch.arange(outputs.numel(), dtype=outputs.dtype, device=outputs.device))
        try:
            return all(close(way(o), self._loop(o)) for o in (outputs, outputs * ripple.view_as(outputs)))
        except (RuntimeError, ValueError, TypeError, NotImplementedError):
            return False


def _without_reduction(loss: Any, target: Any) -> tuple[Each | None, bool]:
    """The loss with a term for each sample, where it knows ``reduction`` as PyTorch's do; and whether it sums them."""
    if not isinstance(target, Tensor) or not target.dim():
        return None, False
    if not isinstance(loss, nn.Module):
        return partial(loss, reduction="none"), False
    reduction = getattr(loss, "reduction", None)
    if reduction not in ("mean", "sum"):
        return None, False
    single = copy.copy(loss)
    single.reduction = "none"  # type: ignore[assignment]
    return single, reduction == "sum"


def close(a: Tensor, b: Tensor) -> bool:
    """Equal to round-off."""
    return a.shape == b.shape and bool(torch.allclose(a, b, rtol=1e-12, atol=1e-14))
