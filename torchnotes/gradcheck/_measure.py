"""Derivatives with their errors: round-off from a difference table, truncation from steps that double."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from torchnotes.gradcheck._evaluate import Evaluator, taken
from torchnotes.gradcheck.differences import STENCILS, Stencil

#: The ladder's steps are ε · 2^k for these k: from 1.6e-9 to 1.3e-2 around ε = 1e-7.
LADDER = range(-6, 18)
TABLE = 9


def derivative(evaluator: Evaluator, t: int, index: Tensor, eps: float, stencil: Stencil) -> Tensor:
    """∂(cost)/∂θ_i by a stencil, for every cost and every entry asked for: (costs, n)."""
    tensor = evaluator.objective.tensors[t]
    total = torch.zeros(len(evaluator.objective.rows), len(index), dtype=torch.float64, device=tensor.device)
    length = torch.zeros(len(index), dtype=torch.float64, device=tensor.device)
    for k, weight in zip(stencil.offsets, stencil.weights, strict=True):
        if k == 0:
            continue
        step = torch.full((len(index),), k * eps, dtype=torch.float64, device=tensor.device)
        total += weight * evaluator.delta(t, index, step)
        length += weight * taken(tensor, index, step)
    return total / length


def table_noise(values: Tensor) -> Tensor:
    """Standard deviation of the round-off in values at equal steps, from their difference table.

    The k-th difference of a smooth function shrinks like h^k, while that of independent errors of size σ has
    variance σ² (2k)!/(k!)². At orders 3 to 5 and steps of 1e-7 only round-off is left; the middle one of the three
    estimates is taken.

    Args:
        values: f at equally spaced points along the last axis, at least 7 of them.

    Returns:
        σ, with the last axis gone.

    Source: R. W. Hamming, "Introduction to Applied Numerical Analysis", ch. 6; J. Moré and S. Wild, "Estimating
    computational noise", SIAM J. Sci. Comput. 33 (2011).

    >>> x = torch.arange(9, dtype=torch.float64)
    >>> table_noise(x**2)
    tensor(0., dtype=torch.float64)
    """
    estimates = []
    for k in (3, 4, 5):
        differences = torch.diff(values, n=k, dim=-1)
        variance = differences.square().mean(-1) * (math.factorial(k) ** 2 / math.factorial(2 * k))
        estimates.append(variance.sqrt())
    return torch.stack(estimates).median(0).values


def noise(evaluator: Evaluator, t: int, index: Tensor, eps: float, base: Tensor) -> Tensor:
    """Round-off of each cost, σ, as seen when the given entries of tensor t move by multiples of ε: (costs,).

    The upper quartile over the entries, and never less than half a unit in the last place of the cost's terms.
    """
    tensor = evaluator.objective.tensors[t]
    multiples = torch.arange(TABLE, dtype=torch.float64, device=tensor.device)  # one side: a kink at θ does no harm
    every = index.repeat_interleave(TABLE)
    step = (multiples * eps).repeat(len(index))
    change = evaluator.delta(t, every, step).view(-1, len(index), TABLE)
    off_grid = (taken(tensor, every, step) - step).view(len(index), TABLE)
    slope = (change[..., -1:] - change[..., :1]) / ((TABLE - 1) * eps)
    sigma = table_noise(change - slope * off_grid)
    sigma = torch.quantile(torch.nan_to_num(sigma, nan=math.inf), 0.75, dim=1)
    return torch.maximum(sigma, evaluator.objective.unit * _size(evaluator, base))


def _size(evaluator: Evaluator, base: Tensor) -> Tensor:
    terms = evaluator.objective.rows * base
    return torch.nan_to_num(terms.square().mean(1).sqrt() if terms.shape[1] > 2 else terms.abs().sum(1))


@dataclass(frozen=True)
class Ladder:
    """Central (D) and five-point (F) differences of a few entries at steps that double: (costs, n, steps)."""

    steps: Tensor
    central: Tensor
    central_error: Tensor
    five: Tensor
    five_error: Tensor
    gap: Tensor  # forward minus backward difference
    gap_noise: Tensor

    def best(self) -> tuple[Tensor, Tensor, Tensor]:
        """For each cost and entry the value of least estimated error, that error, and the rung it came from."""
        error, rung = self.five_error.min(-1)
        return self.five.gather(-1, rung[..., None])[..., 0], error, rung


def ladder(evaluator: Evaluator, t: int, index: Tensor, eps: float, sigma: Tensor) -> Ladder:
    """Measure the derivative of a few entries at 24 steps, each with an estimate of its error.

    The error of a rung is the larger of its round-off, gain · σ/h, and the disagreement with its neighbours, which
    bounds the truncation. F(h) = (4 D(h) − D(2h))/3 is the five-point difference.
    """
    tensor = evaluator.objective.tensors[t]
    count = len(LADDER)
    steps = eps * torch.tensor([2.0**k for k in LADDER], dtype=torch.float64, device=tensor.device)
    every, step = index.repeat_interleave(count), steps.repeat(len(index))
    shape = (-1, len(index), count)
    up, down = evaluator.delta(t, every, step).view(shape), evaluator.delta(t, every, -step).view(shape)
    h_up, h_down = (taken(tensor, every, s).view(len(index), count) for s in (step, -step))
    central = (up - down) / (h_up - h_down)
    gap = up / h_up - down / h_down
    five = (4 * central[..., :-1] - central[..., 1:]) / 3
    round_off = sigma[:, None, None] / steps
    return Ladder(
        steps,
        central,
        _error(central, STENCILS["central"].gain * round_off),
        five,
        _error(five, STENCILS["five-point"].gain * round_off[..., :-1]),
        gap,
        2 * round_off.expand_as(gap),
    )


def _error(values: Tensor, round_off: Tensor) -> Tensor:
    """Disagreement with the neighbouring rungs, but never less than the round-off; infinite where not finite."""
    jump = (values[..., 1:] - values[..., :-1]).abs()
    edge = torch.full_like(jump[..., :1], math.inf)
    next_one = torch.cat([jump, edge], -1)
    last_one = torch.cat([torch.zeros_like(edge), jump], -1)
    error = torch.maximum(torch.maximum(next_one, last_one), round_off.expand_as(values))
    return torch.nan_to_num(error, nan=math.inf)


@dataclass(frozen=True)
class Step:
    """A choice of stencil and step, with what it is expected to cost in accuracy, per entry and cost."""

    scheme: str
    eps: float
    round_off: Tensor
    truncation: Tensor

    @property
    def stencil(self) -> Stencil:
        """The stencil itself."""
        return STENCILS[self.scheme]

    @property
    def error(self) -> Tensor:
        """Both errors together, rms per entry: (costs,)."""
        return torch.hypot(self.round_off, self.truncation)


def given_step(rungs: Ladder, eps: float, sigma: Tensor) -> Step:
    """The notes' two-sided difference at the ε asked for."""
    k = -LADDER.start
    truncation = (rungs.central[..., k] - rungs.central[..., k + 1]).abs() / 3
    return Step("central", eps, STENCILS["central"].gain * sigma / eps, _typical(truncation))


def better_step(rungs: Ladder, sigma: Tensor, enough: Tensor) -> Step:
    """The stencil and step of least error over the sampled entries, worst cost first.

    The two-sided difference is kept, at half the work, where its error is below ``enough`` or nearly as small.
    """
    best: Step | None = None
    for scheme, errors in (("central", rungs.central_error), ("five-point", rungs.five_error)):
        usable = errors[..., :-1].amax(1)  # (costs, steps): the worst entry decides, so that few cross a kink
        scale = usable.min(1, keepdim=True).values.clamp_min(torch.finfo(torch.float64).tiny)
        k = int((usable / scale).amax(0).argmin())
        h = float(rungs.steps[k])
        values = rungs.central if scheme == "central" else rungs.five
        order = 3 if scheme == "central" else 15
        truncation = _typical((values[..., k] - values[..., k + 1]).abs() / order)
        step = Step(scheme, h, STENCILS[scheme].gain * sigma / h, truncation)
        if best is None:
            best = step
        elif bool((best.error > enough).any()) and float(step.error.max()) < 0.3 * float(best.error.max()):
            best = step
    assert best is not None
    return best


def _typical(error: Tensor) -> Tensor:
    """1.5 × the median over the sampled entries: an entry across a kink must not set the tolerance of all."""
    return 1.5 * torch.nan_to_num(error, nan=math.inf).median(1).values
