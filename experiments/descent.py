"""Full-batch training, step by step: every step sees the whole training set, so that J is one function throughout."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from torchnotes.optim import GradientDescent

Cost = Callable[[Tensor, Tensor], Tensor]


def descend(
    model: torch.nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    loss: Cost,
    steps: int,
    rate: float = 0.1,
    optimizer: torch.optim.Optimizer | None = None,
    penalty: Callable[[torch.nn.Module], Tensor] | None = None,
    until: float = -math.inf,
    each: Callable[[int], None] | None = None,
) -> list[float]:
    """Train a model in place and return J at every step, as it was before the step was taken.

    Args:
        model: in the mode it should be trained in.
        x: inputs of the whole training set.
        y: its targets.
        loss: ``loss(model(x), y)``.
        steps: how many at most.
        rate: of gradient descent, if no optimiser is given.
        optimizer: instead of gradient descent.
        penalty: added to the cost.
        until: stop as soon as J is this low; a J that is not finite stops as well.
        each: called before each step with its number, from 0.
    """
    optimizer = optimizer or GradientDescent(model.parameters(), lr=rate)
    costs: list[float] = []
    for step in range(steps):
        if each is not None:
            each(step)
        cost = loss(model(x), y)
        if penalty is not None:
            cost = cost + penalty(model)
        costs.append(float(cost.detach()))
        if costs[-1] <= until or not math.isfinite(costs[-1]):
            break
        optimizer.zero_grad()
        cost.backward()
        optimizer.step()
    return costs


def steps_to(costs: Sequence[float], target: float) -> float:
    """The number of steps after which J was first at or below a target; infinite if it never was."""
    return next((float(step) for step, cost in enumerate(costs) if cost <= target), math.inf)


@torch.no_grad()
def binary_error(model: torch.nn.Module, x: Tensor, y: Tensor) -> float:
    """The share of samples on the wrong side of logit 0, in evaluation mode."""
    training = model.training
    wrong = (model.eval()(x) > 0) != y.bool()
    model.train(training)
    return float(wrong.double().mean())
