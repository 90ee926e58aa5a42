"""How many critical points are minima: of random quadratic forms, and of the costs of small nets."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from experiments.datasets import moons

# Probability that a symmetric matrix of independent normal entries (variance 2 on the diagonal, 1 off it) has only
# positive eigenvalues; (2 − √2)/4 and (π − 2√2)/(4π): Dean and Majumdar, Physical Review E 77 (2008).
KNOWN = {1: 0.5, 2: (2 - math.sqrt(2)) / 4, 3: (math.pi - 2 * math.sqrt(2)) / (4 * math.pi)}


def positive_share(dimension: int, matrices: int, seed: int) -> float:
    """The share of random symmetric matrices all of whose eigenvalues are positive."""
    generator = torch.Generator().manual_seed(seed + 1000 * dimension)
    found = 0
    for size in [20_000] * (matrices // 20_000) + [matrices % 20_000]:
        half = torch.randn(size, dimension, dimension, generator=generator)
        # Positive definite where a Cholesky factor exists, which is quicker than the eigenvalues
        found += int((torch.linalg.cholesky_ex(half + half.mT).info == 0).sum())
    return found / matrices


def _cost(theta: Tensor, hidden: int, x: Tensor, y: Tensor) -> Tensor:
    w1, b1, w2, b2 = theta.split([2 * hidden, hidden, hidden, 1])
    out = torch.tanh(x @ w1.view(hidden, 2).T + b1) @ w2 + b2
    cost: Tensor = 0.5 * (out - y).square().mean()
    return cost


def net_points(hidden: int, starts: int, steps: int, seed: int) -> tuple[int, int]:
    """Look for points with ∇J = 0 of a tanh net on the two moons from random starts; (found, minima among them).

    Damped Newton steps on ‖∇J‖², which go to a saddle as readily as to a minimum:
    θ ← θ − (H² + μI)⁻¹ H ∇J, with μ raised where ‖∇J‖ did not fall. Points that ran off (‖θ‖ > 50) do not count, and
    those whose gradient is above 1e-7 neither. A minimum has no eigenvalue of H below −1e-6.
    """
    x, y = moons(40, seed=seed, noise=0.2)
    x, y = x.double(), 2 * y.double().flatten() - 1
    size = 4 * hidden + 1
    generator = torch.Generator().manual_seed(seed + hidden)
    theta = 1.5 * torch.randn(starts, size, generator=generator, dtype=torch.float64)

    def cost(t: Tensor) -> Tensor:
        return _cost(t, hidden, x, y)

    gradient = torch.func.vmap(torch.func.grad(cost))
    hessian = torch.func.vmap(torch.func.hessian(cost))
    damping = torch.full((starts, 1, 1), 1e-2, dtype=torch.float64)
    identity = torch.eye(size, dtype=torch.float64)
    g, h = gradient(theta), hessian(theta)
    for _ in range(steps):
        step = torch.linalg.solve(h @ h + damping * identity, (h @ g.unsqueeze(-1))).squeeze(-1)
        tried = theta - step
        better = gradient(tried).norm(dim=1) < g.norm(dim=1)
        theta = torch.where(better[:, None], tried, theta)
        damping = torch.where(better[:, None, None], damping / 3, damping * 4).clamp(1e-13, 1e4)
        g, h = gradient(theta), hessian(theta)
    kept = (g.norm(dim=1) < 1e-7) & (theta.norm(dim=1) < 50)
    lowest = torch.linalg.eigvalsh(h[kept]).amin(1)
    return int(kept.sum()), int((lowest > -1e-6).sum())
