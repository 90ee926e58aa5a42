"""An entry that stood out along a direction, measured by itself: wrong, or right with a kink within the step.

A direction moves every entry at once, by a step that suits the smooth ones. Where one of them has a kink within that
step (a coordinate clipped at a border, a ReLU about to switch), its difference mixes the slopes of both sides.
"""

from __future__ import annotations

from typing import Literal

import torch

from torchnotes.gradcheck import _measure as measure
from torchnotes.gradcheck._directions import Probe
from torchnotes.gradcheck._evaluate import LoopEvaluator
from torchnotes.gradcheck._judge import BLIND, CERTAIN, VISIBLE
from torchnotes.gradcheck._kinks import branches, same_branches

EPS = 1e-7  # the middle of the ladder of steps
Outcome = Literal["wrong", "right", "unclear"]
OUTCOMES: tuple[Outcome, ...] = ("wrong", "right", "unclear")


def by_itself(probe: Probe, t: int, i: int, h: float, *, afford: bool = True) -> Outcome:
    """Judge one entry as the exact check does: at 24 steps, and at a kink between the slopes of the two sides.

    Where that cannot be afforded, an entry that is seen to cross a kink within the step is "unclear".

    Args:
        probe: what measures along directions.
        t: the entry's tensor.
        i: the entry, in row-major order.
        h: the largest step at which it stood out.
        afford: whether there are evaluations left for the 24 steps.
    """
    objective = probe.objective
    before = objective.evaluations
    tensor = objective.tensors[t].detach()
    with torch.no_grad():
        loop = LoopEvaluator(objective, objective())
        if afford:
            outcome = _at_every_step(probe, loop, t, i)
        else:
            outcome = "unclear" if _kinked(loop, tensor, i, h) else "wrong"
    probe.spent += round(objective.evaluations - before)
    return outcome


def _kinked(loop: LoopEvaluator, tensor: torch.Tensor, i: int, h: float) -> bool:
    up, down = (branches(lambda step=step: loop.at(tensor, i, step)) for step in (h, -h))  # type: ignore[misc]
    return not same_branches(up, down)


def _at_every_step(probe: Probe, loop: LoopEvaluator, t: int, i: int) -> Outcome:
    tensor = probe.objective.tensors[t].detach()
    index = torch.tensor([i], device=tensor.device)
    sigma = measure.noise(loop, t, index, EPS, loop.base)
    rungs = measure.ladder(loop, t, index, EPS, sigma)
    best, error, rung = (float(v) for v in rungs.best())
    exact = float(probe.exact[t].reshape(-1)[i])
    size = max(abs(best), abs(exact))
    if abs(best - exact) <= max(CERTAIN * error, VISIBLE * size):
        return "unclear" if error > BLIND * size else "right"
    k = int(rung)
    half, slack = abs(float(rungs.gap[0, 0, k])) / 2, CERTAIN * float(rungs.gap_noise[0, 0, k])
    between = abs(float(rungs.central[0, 0, k]) - exact) <= 1.02 * half + slack
    return "right" if between and _kinked(loop, tensor, i, float(rungs.steps[k]) / 8) else "wrong"
