"""The derivative along one line, with its error: for directions instead of coordinates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from torchnotes.gradcheck._evaluate import outside_domain
from torchnotes.gradcheck._measure import table_noise
from torchnotes.gradcheck._objective import ULP

#: Steps of the full measurement, times the scale of the line: 4^k from 2^-32 to 2^-2.
RUNGS = tuple(4.0**k for k in range(-16, 0))
QUICK = (2.0**-13, 2.0**-17)
AGREES = 1e-7


@dataclass(frozen=True)
class Slope:
    """A derivative along a line.

    Attributes:
        value: the derivative of every cost.
        error: its estimated error.
        bent: whether the slopes on the two sides differ however small the step: a kink at the point itself.
    """

    value: Tensor
    error: Tensor
    bent: bool = False

    def differs(self, exact: Tensor, factor: float = 10.0, relative: float = 1e-6) -> bool:
        """Whether a claimed derivative lies outside the error, by more than arithmetic explains."""
        gap = (self.value - exact).abs()
        size = torch.maximum(self.value.abs(), exact.abs())
        return bool(((gap > factor * self.error) & (gap > relative * size)).any()) or not bool(
            torch.isfinite(exact).all()
        )


def slope(
    change: Callable[[float], Tensor], exact: Tensor, *, scale: float = 1.0, size: float = 0.0, unit: float = ULP
) -> Slope:
    """The derivative at 0 of ``change(h)``, measured with as few evaluations as its agreement with ``exact`` allows.

    Four evaluations each at two steps give two five-point differences. Where neither agrees with the claimed
    derivative to 1e-7, the line is measured at 16 steps and the one of least estimated error is taken.

    Args:
        change: the costs' change from their value at h = 0.
        exact: the claimed derivative of each cost.
        scale: a step along the line that counts as large.
        size: magnitude of the costs, which with ``unit`` bounds their round-off from below.
        unit: relative round-off of one evaluation.
    """
    change = _within_domain(change, exact)
    quick = [_five_point(change, h * scale) for h in QUICK]
    spread = (quick[0] - quick[1]).abs()
    for value in quick:
        gap = (value - exact).abs()
        if bool((gap <= AGREES * exact.abs()).all()):
            return Slope(value, torch.maximum(spread, gap))
    return _measured(change, scale, unit * size)


def _within_domain(change: Callable[[float], Tensor], like: Tensor) -> Callable[[float], Tensor]:
    """The same, with NaN where it cannot be evaluated."""

    def guarded(h: float) -> Tensor:
        try:
            return change(h)
        except (RuntimeError, ValueError) as error:
            return outside_domain(like, error, lambda: change(0.0))

    return guarded


def _five_point(change: Callable[[float], Tensor], h: float) -> Tensor:
    inner, outer = change(h) - change(-h), change(2 * h) - change(-2 * h)
    return (8 * inner - outer) / (12 * h)


def _measured(change: Callable[[float], Tensor], scale: float, least: float) -> Slope:
    spacing = 2.0**-26 * scale
    sigma = table_noise(torch.stack([change(k * spacing) for k in range(-4, 5)], -1)).clamp_min(least)
    steps = torch.tensor(RUNGS, dtype=torch.float64, device=sigma.device) * scale
    up = torch.stack([change(float(h)) for h in steps], -1)
    down = torch.stack([change(-float(h)) for h in steps], -1)
    central = (up - down) / (2 * steps)
    better = (16 * central[..., :-1] - central[..., 1:]) / 15  # Richardson for steps h and 4h
    jump = (better[..., 1:] - better[..., :-1]).abs()
    edge = torch.full_like(jump[..., :1], torch.inf)
    error = torch.maximum(torch.cat([jump, edge], -1), torch.cat([edge, jump], -1))
    error = torch.nan_to_num(torch.maximum(error, sigma[:, None] / steps[:-1]), nan=torch.inf)
    smallest, rung = error.min(-1)
    gap = ((up + down) / steps).abs()
    here = gap.gather(-1, rung[:, None])[:, 0]
    wider = gap.gather(-1, rung[:, None] + 1)[:, 0]
    bent = (here > 20 * sigma / steps[rung]) & (here > 0.7 * wider)
    return Slope(better.gather(-1, rung[:, None])[:, 0], smallest, bool(bent.any()))
