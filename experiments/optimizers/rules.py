"""The rules compared, and walks with them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from torchnotes.optim import Adam, GradientDescent, Momentum, RMSprop

Function = Callable[[Tensor], Tensor]
Rule = Callable[[list[Tensor], float], torch.optim.Optimizer]

RULES: dict[str, Rule] = {
    "gradient descent": lambda params, rate: GradientDescent(params, lr=rate),
    "momentum": lambda params, rate: Momentum(params, lr=rate, momentum=0.9),
    "RMSprop": lambda params, rate: RMSprop(params, lr=rate, alpha=0.9),
    "Adam": lambda params, rate: Adam(params, lr=rate),
}
COLORS = dict(zip(RULES, ("black", "tab:blue", "tab:orange", "tab:red"), strict=True))
CURVATURE = 50.0


def bowl(w: Tensor) -> Tensor:
    """½(x² + 50 y²): 50 times as steep across as along."""
    return 0.5 * (w[0] ** 2 + CURVATURE * w[1] ** 2)


def plateau(w: Tensor) -> Tensor:
    """½σ(w)²: a squared error through a saturated sigmoid; its slope far out is e⁻ʷ."""
    return 0.5 * torch.sigmoid(w).square().sum()


def saddle(w: Tensor) -> Tensor:
    """½(x² − y²) + ¼y⁴: a saddle at 0, minima at y = ±1."""
    return 0.5 * (w[0] ** 2 - w[1] ** 2) + 0.25 * w[1] ** 4


def walk(
    function: Function,
    start: list[float],
    rule: Rule,
    rate: float,
    steps: int,
    *,
    until: Callable[[Tensor], bool] = lambda w: False,
    noise: float = 0.0,
    seed: int = 0,
    device: str = "cpu",
) -> list[list[float]]:
    """The points visited, the start first, in float64; ends early where ``until`` says so, or beyond 10⁶.

    Args:
        function: to descend on.
        start: its argument.
        rule: makes the optimiser.
        rate: learning rate.
        steps: at most.
        until: whether a point is the end of the way.
        noise: standard deviation of what is added to every component of the gradient, as mini-batches do.
        seed: of the noise.
        device: where to compute.
    """
    w = torch.tensor(start, dtype=torch.float64, device=device, requires_grad=True)
    optimizer = rule([w], rate)
    generator = torch.Generator().manual_seed(seed)
    points = [w.detach().tolist()]
    for _ in range(steps):
        (grad,) = torch.autograd.grad(function(w), w)
        if noise:
            grad = grad + noise * torch.randn(w.shape, generator=generator, dtype=w.dtype).to(w)
        w.grad = grad
        optimizer.step()
        points.append(w.detach().tolist())
        if until(w.detach()) or max(map(abs, points[-1])) > 1e6:
            break
    return points
