"""Evaluating the costs at perturbed coordinates: the plain loop, and the interface the faster ways share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from torchnotes.gradcheck._objective import Objective


class Evaluator(Protocol):
    """Anything that can tell how the costs change when single entries of θ do."""

    name: str
    objective: Objective

    def delta(self, t: int, index: Tensor, step: Tensor) -> Tensor:
        """Change of every cost when entry ``index[n]`` of tensor ``t`` becomes θ + ``step[n]``: (costs, n)."""


class LoopEvaluator:
    """One evaluation of y for every perturbed entry: works for any function, and is what the others are held to."""

    name = "loop"

    def __init__(self, objective: Objective, base: Tensor, tick: Callable[[int], None] | None = None) -> None:
        self.objective, self.base, self._tick = objective, base.detach(), tick

    def delta(self, t: int, index: Tensor, step: Tensor) -> Tensor:
        """See `Evaluator.delta`."""
        objective = self.objective
        tensor = objective.tensors[t].detach()
        change = torch.empty(len(index), len(self.base), dtype=torch.float64, device=self.base.device)
        with torch.no_grad():
            for n, (i, h) in enumerate(zip(index.tolist(), step.tolist(), strict=True)):
                change[n] = self.at(tensor, i, h)
                if self._tick is not None:
                    self._tick(1)
        return objective.rows @ change.T

    def at(self, tensor: Tensor, i: int, h: float) -> Tensor:
        """The change of y when one entry is moved by h; the entry is put back whatever happens.

        NaN where f cannot be evaluated there: a probability moved below 0, say.
        """
        where = unravel(i, tensor.shape)
        here = tensor[where].clone()
        tensor[where] = here + h
        try:
            return (self.objective() - self.base).detach()
        except (RuntimeError, ValueError) as error:
            tensor[where] = here
            return outside_domain(self.base, error, self.objective)
        finally:
            tensor[where] = here


def outside_domain(base: Tensor, error: Exception, at_theta: Callable[[], object]) -> Tensor:
    """NaN in place of a change of y that could not be computed.

    Only where y can still be evaluated at θ itself: an error that has nothing to do with the step is raised.
    """
    if isinstance(error, (torch.OutOfMemoryError, NotImplementedError)):
        raise error
    at_theta()
    return torch.full_like(base, torch.nan)


def unravel(i: int, shape: torch.Size | tuple[int, ...]) -> tuple[int, ...]:
    """The index, axis by axis, of the i-th entry in row-major order."""
    where = []
    for size in reversed(shape):
        i, k = divmod(i, size)
        where.append(k)
    return tuple(reversed(where))


def taken(tensor: Tensor, index: Tensor, step: Tensor) -> Tensor:
    """The step that floating-point arithmetic really takes, (θ + h) − θ."""
    here = tensor.detach().reshape(-1)[index]
    return (here + step) - here
