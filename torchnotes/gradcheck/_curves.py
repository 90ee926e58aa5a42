"""One curve for all the weights of a unit: the cost as a function of how far the unit's value is shifted.

Moving W[j, k] by h shifts unit j's value in sample s by δ = h · x[s, k] and does nothing else. Whatever k is, and on
whichever side, that sample's term of the cost is the same function of one number, l_sj(δ). So the curve is measured
once, and every weight reads it at its own δ:

    l_sj(δ) − l_sj(0) = Σ_p C_p[j, s] · (δ / r_s)^p,      r_s = |h| max_k |x[s, k]|
    J(W[j, k] + h t) − J = Σ_p t^p Σ_s C_p[j, s] · u[s, k]^p,      u[s, k] = x[s, k] / max_k |x[s, k]|

a matrix product for each power p in place of n_in evaluations. The C_p are those of the polynomial through values of
l_sj that were really computed, by running the layers that follow at a few δ from −r_s to r_s. These are differences of
the cost, then, as the plain loop takes them: no derivative goes into them, neither a rule nor the model's own backward.

What is assumed is that the curve is smooth between the points, and that is checked for every unit and sample at two
points held out, one on each side. Where the polynomial misses them by more than round-off, it is given those points
and held to two others; where it still misses (a kink of ReLU, a step too large), the weights are moved one by one.

Round-off of l_sj, of size σ_s, is measured too: second differences at shifts of r_s · 2⁻²⁰ hold nothing else. Summed
over the samples it is less than the round-off of J, one float64 number in which J(θ + h) and J(θ − h) each end. The
caller rounds there too: else the notes' ratio at ε = 1e-7 would come out ten times smaller than their formula gives it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Terms = Callable[[Tensor, Tensor], Tensor]
"""(units (n,), their shifts (n, samples)) -> every sample's term of the cost: (n, samples)."""

POINTS = (1.0, 0.7, 0.4, 0.9)  # shifts ±r_s · these, in the order of their use: the next one is held out
NOISE_UNITS = 8
TINY = 2.0**-20
SIGMAS = 8.0
FEW_ROUGH = 0.1  # share of curves that miss, up to which they are kinks; beyond it, more points are tried
TOO_ROUGH = 0.5  # beyond which nothing is gained


@dataclass(frozen=True)
class Fit:
    """The curves of some units.

    Attributes:
        coefficients: C, one matrix for each power from 1: (powers, units, samples).
        rough: curves that the polynomial does not follow: (units, samples).
        noise: σ_s, the round-off of each sample's term: (samples,).
    """

    coefficients: Tensor
    rough: Tensor
    noise: Tensor

    @property
    def useless(self) -> bool:
        """Whether too few curves are smooth for any to be worth reading."""
        return float(self.rough.double().mean()) > TOO_ROUGH


class Curves:
    """The curves of one affine layer, y = x Wᵀ + b.

    Args:
        terms: evaluates the layers that follow and the loss.
        x: the layer's input: (samples, n_in).
    """

    def __init__(self, terms: Terms, x: Tensor) -> None:
        self._terms = terms
        self._reach = x.abs().amax(1)
        self._powers = [x / torch.where(self._reach > 0, self._reach, 1.0).unsqueeze(1)]
        self._base = terms(torch.zeros(1, dtype=torch.long, device=x.device), torch.zeros_like(self._reach)[None])

    def fit(self, units: Tensor, h: float) -> Fit:
        """Measure the curves of some units for weights moved by up to ±h.

        Args:
            units: which: (n,).
            h: the step, positive.
        """
        reach = h * self._reach
        noise = self._noise(units[:NOISE_UNITS], reach)
        slack = torch.maximum(SIGMAS * noise, 2.0**-50 * self._base[0].abs())
        values, points = self._pair(units, reach, POINTS[0]), [POINTS[0], -POINTS[0]]
        fit = None
        for held_out in POINTS[1:]:
            there = self._pair(units, reach, held_out)
            powers = torch.arange(1, len(points) + 1, device=reach.device)
            solve = torch.linalg.inv(_column(points, values).unsqueeze(1) ** powers)  # (powers, points)
            coefficients = torch.einsum("pq,qns->pns", solve, values)
            outside = _column([held_out, -held_out], values).unsqueeze(1) ** powers
            missed = torch.einsum("qp,pns->qns", outside, coefficients) - there
            fit = Fit(coefficients, _misses(missed, slack), noise)
            if float(fit.rough.double().mean()) <= FEW_ROUGH:
                break
            values, points = torch.cat([values, there]), [*points, held_out, -held_out]
        assert fit is not None
        return fit

    def read(self, fit: Fit, unit: Tensor, source: Tensor, fraction: Tensor) -> Tensor:
        """Differences of the cost, of smooth curves alone, for weights W[j, k] moved by ``fraction`` · h: (n,).

        Args:
            fit: the curves of some units.
            unit: the unit j of each weight, as a position in ``fit``.
            source: its input k.
            fraction: the part of h, signed, by which it is moved.
        """
        total = torch.zeros_like(fraction)
        for p, coefficients in enumerate(fit.coefficients):
            while len(self._powers) <= p:
                self._powers.append(self._powers[-1] * self._powers[0])
            smooth = torch.where(fit.rough, 0.0, coefficients)
            total += fraction ** (p + 1) * (smooth @ self._powers[p])[unit, source]
        return total

    def _pair(self, units: Tensor, reach: Tensor, point: float) -> Tensor:
        """Every sample's change at shifts of ± point · r_s: (2, units, samples)."""
        n = len(units)
        shift = torch.cat([(point * reach).expand(n, -1), (-point * reach).expand(n, -1)])
        return (self._terms(units.repeat(2), shift) - self._base).view(2, n, -1)

    def _noise(self, units: Tensor, reach: Tensor) -> Tensor:
        """σ_s from l(ν) + l(−ν) − 2 l(0), whose variance is 6 σ_s²: (samples,)."""
        second = self._pair(units, reach, TINY).sum(0)
        return (second.square().mean(0) / 6).sqrt()


def _column(points: list[float], like: Tensor) -> Tensor:
    return torch.tensor(points, dtype=like.dtype, device=like.device)


def _misses(missed: Tensor, slack: Tensor) -> Tensor:
    """Which curves miss, by themselves or, all samples of a unit, by what their misses sum to: (units, samples)."""
    rough = ~(missed.abs() <= slack).all(0)
    together = torch.where(rough, 0.0, missed).sum(2).abs()  # (2, units): errors of one sign add up, round-off does not
    return rough | ~(together <= slack.square().sum().sqrt()).all(0).unsqueeze(1)
