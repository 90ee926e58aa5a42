"""From measured derivatives to a verdict on one tensor: what differs by more than its own numerical error."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from torchnotes.gradcheck import _measure as measure
from torchnotes.gradcheck._evaluate import Evaluator, LoopEvaluator, taken
from torchnotes.gradcheck._kinks import branches, same_branches
from torchnotes.gradcheck._objective import Objective
from torchnotes.gradcheck.compare import RIGHT, Verdict, norm, ratio_of_norms

SAMPLE = 8
LOOK = 6.0  # errors beyond which an entry is measured again by itself
CERTAIN = 8.0  # its own errors beyond which an entry measured by itself is wrong
VISIBLE = 1e-6  # relative size below which a difference in one entry is no bug but arithmetic
BLIND = 1e-3  # an error this large (relative) hides what the notes call a bug: no verdict
MOST_EXAMINED = 2048
GRAINS = 4


@dataclass
class Evidence:
    """All that was measured about one tensor; leading axis: the costs that were read."""

    name: str
    shape: torch.Size
    exact: Tensor
    first: Tensor
    first_step: measure.Step
    approx: Tensor
    step: measure.Step
    sigma: Tensor
    wrong: Tensor  # (costs, entries); the masks below are over the entries alone
    kink: Tensor
    off_kink: Tensor
    unclear: Tensor
    examined: int = 0
    skipped: int = 0
    detached: bool = False
    idle: bool = False  # no entry could be moved: nothing of it was checked
    grain: Tensor | None = None  # the gradient's own round-off, where it was asked for


@dataclass(frozen=True)
class Lens:
    """How to measure: what is asked for differences, the plain loop for runs that must be traced, and the notes' ε."""

    evaluator: Evaluator
    loop: LoopEvaluator
    eps: float
    generator: torch.Generator
    _grains: list[list[Tensor]] = field(default_factory=list)

    def grain(self, t: int) -> Tensor:
        """The round-off of the gradient under test itself, entry by entry: (costs, entries).

        Measured: how far it moves when every entry of θ does by a unit in the last place, within one smooth piece.
        A backward that recomputes x − mean(x) from rounded terms has a gradient of 1e-13 where the forward, and so
        every difference, is exactly 0.
        """
        if not self._grains:
            self._grains.append(_grain(self.loop.objective, self.generator))
        return self._grains[0][t]


def _grain(objective: Objective, generator: torch.Generator) -> list[Tensor]:
    tensors = [t.detach() for t in objective.tensors]
    kept = [t.clone() for t in tensors]

    def flat() -> list[Tensor]:
        found = objective.gradients()
        return [
            torch.stack([torch.zeros_like(v).reshape(-1) if g[t] is None else g[t].detach().reshape(-1) for g in found])  # type: ignore[union-attr]
            for t, v in enumerate(tensors)
        ]

    here, taken_here = flat(), branches(objective)
    grain = [torch.zeros_like(g) for g in here]
    if any(
        norm(torch.nan_to_num(a - b)) > 2.0**-40 * norm(torch.nan_to_num(b)) for a, b in zip(flat(), here, strict=True)
    ):
        return grain  # a backward that gives something else every time has no round-off to plead
    try:
        for _ in range(GRAINS):
            for tensor, was in zip(tensors, kept, strict=True):
                sign = torch.randint(2, was.shape, generator=generator).to(was) * 2 - 1
                tensor.copy_(was * (1 + 2.0**-52 * sign))
            if same_branches(branches(objective), taken_here):
                grain = [torch.maximum(a, (b - c).abs()) for a, b, c in zip(grain, flat(), here, strict=True)]
    finally:
        for tensor, was in zip(tensors, kept, strict=True):
            tensor.copy_(was)
    return [torch.nan_to_num(8 * g, posinf=0.0) for g in grain]


def gather(lens: Lens, t: int, exact: Tensor) -> Evidence:
    """Measure tensor t's derivative at every entry, again with a better step where needed, and look closer.

    Args:
        lens: how to measure.
        t: which tensor.
        exact: its gradient under test: (costs, entries).
    """
    evaluator, loop, eps, generator = lens.evaluator, lens.loop, lens.eps, lens.generator
    tensor = evaluator.objective.tensors[t]
    if not tensor.numel():
        return _vacuous(evaluator.objective.names[t], tensor, exact, eps)
    entries = torch.arange(tensor.numel(), device=tensor.device)
    finite = torch.isfinite(tensor.detach().reshape(-1))
    if not bool(finite.any()):
        return _vacuous(evaluator.objective.names[t], tensor, exact, eps)
    choice = entries[finite]
    some = choice[torch.randperm(len(choice), generator=generator)[:SAMPLE].to(tensor.device)]
    sigma = measure.noise(evaluator, t, some, eps, loop.base)
    rungs = measure.ladder(evaluator, t, some, eps, sigma)
    step = measure.given_step(rungs, eps, sigma)
    first = measure.derivative(evaluator, t, entries, eps, step.stencil)
    first[:, ~finite] = exact[:, ~finite]  # an infinite entry has no neighbours to take a difference with
    nothing = torch.zeros_like(entries, dtype=torch.bool)
    evidence = Evidence(
        evaluator.objective.names[t], tensor.shape, exact, first, step, first.clone(), step, sigma,
        nothing.expand(len(exact), -1).clone(), nothing.clone(), nothing.clone(), nothing.clone(),
    )  # fmt: skip
    if _needs_better(evidence):
        better = measure.better_step(rungs, sigma, 0.01 * RIGHT * exact.square().mean(1).sqrt())
        if float((better.error / step.error).max()) < 0.25:
            again = measure.derivative(evaluator, t, entries, better.eps, better.stencil)
            evidence.approx = torch.where(finite, again, first)
            evidence.step = better
    _look_closer(evidence, lens, t)
    return evidence


def _vacuous(name: str, tensor: Tensor, exact: Tensor, eps: float) -> Evidence:
    nothing = torch.zeros(tensor.numel(), dtype=torch.bool, device=tensor.device)
    zero = torch.zeros(len(exact), dtype=torch.float64, device=tensor.device)
    step = measure.Step("central", eps, zero, zero)
    return Evidence(
        name, tensor.shape, exact, exact, step, exact, step, zero, nothing.expand(len(exact), -1), nothing, nothing,
        nothing, idle=True,
    )  # fmt: skip


def _needs_better(evidence: Evidence) -> bool:
    """Whether, for any cost, round-off and truncation together are too coarse for the notes' threshold."""
    for approx, exact, error in zip(evidence.approx, evidence.exact, evidence.step.error.tolist(), strict=True):
        residual, size = norm(approx - exact), norm(approx) + norm(exact)
        floor = error * math.sqrt(len(exact))
        right = residual <= RIGHT * size and floor <= RIGHT * size and size > 10 * floor
        if not right and size > 0:
            return True
    return False


def _look_closer(evidence: Evidence, lens: Lens, t: int) -> None:
    """Measure the entries that stand out one by one, largest first, until what is left is within the errors."""
    excess = _excess(evidence)
    order = torch.argsort(excess, descending=True)
    order = order[excess[order] > LOOK]
    size, start = 8, 0
    while start < len(order):
        if start >= MOST_EXAMINED:
            evidence.skipped = len(order) - start
            break
        batch = order[start : start + size]
        wrong = _examine(evidence, lens, t, batch)
        start += size
        if start >= 32 and bool(evidence.wrong[:, order[:start]].any(0).all()):
            evidence.wrong[:, order] = (
                _stand_out(evidence)[:, order] > LOOK
            )  # all that were looked at are wrong: the rest stand out as much
            break
        size = 64 if wrong == len(batch) else 32
    evidence.examined = min(start, len(order))


def _excess(evidence: Evidence) -> Tensor:
    return _stand_out(evidence).amax(0)


def _stand_out(evidence: Evidence) -> Tensor:
    """By how many of its expected errors each entry differs: (costs, entries)."""
    residual = (evidence.approx - evidence.exact).abs()
    tiny = torch.finfo(torch.float64).tiny
    excess = residual / evidence.step.error[:, None].clamp_min(tiny)
    trifling = residual <= 1e-9 * torch.maximum(evidence.approx.abs(), evidence.exact.abs())
    excess = torch.where(trifling, 0.0, excess)
    return torch.nan_to_num(excess, nan=math.inf)


def _examine(evidence: Evidence, lens: Lens, t: int, batch: Tensor) -> int:
    """Measure entries by themselves; mark each as wrong, at a kink, unclear or cleared; return how many are wrong."""
    rungs = measure.ladder(lens.evaluator, t, batch, lens.eps, evidence.sigma)
    best, error, rung = rungs.best()
    exact = evidence.exact[:, batch]
    residual = (best - exact).abs()
    size = torch.maximum(best.abs(), exact.abs())
    spread = evidence.exact.square().mean(1).sqrt()[:, None]
    wrong = (residual > CERTAIN * error) & (residual > VISIBLE * size) & (residual > 1e-10 * spread)
    if bool(wrong.any()):
        evidence.grain = lens.grain(t)
        wrong &= residual > evidence.grain[:, batch]
    wrong |= ~torch.isfinite(exact)
    coarse = (error > BLIND * size) & (residual > LOOK * evidence.step.error[:, None])
    unclear = ~torch.isfinite(best) | (~wrong & coarse)
    gap = rungs.gap.gather(-1, rung[..., None])[..., 0].abs()
    next_gap = rungs.gap.gather(-1, rung[..., None] + 1)[..., 0].abs()
    gap_noise = rungs.gap_noise.gather(-1, rung[..., None])[..., 0]
    bent = (gap > LOOK * gap_noise) & (gap > 0.7 * next_gap)
    for n, i in enumerate(batch.tolist()):
        if not bool(wrong[:, n].any() | unclear[:, n].any()):
            evidence.approx[:, i] = best[:, n]
        elif bool(bent[:, n].any()) or bool(unclear[:, n].any()):
            steps = rungs.steps[rung[:, n]]
            _at_kink(evidence, lens.loop, t, i, float(steps.min()), certain=bool(wrong[:, n].any()))
        else:
            evidence.wrong[:, i] = wrong[:, n]
            evidence.approx[:, i] = best[:, n]
    return int(evidence.wrong[:, batch].any(0).sum())


def _at_kink(evidence: Evidence, loop: LoopEvaluator, t: int, i: int, h: float, *, certain: bool) -> None:
    """Where the slope differs between the two sides: ask only that the gradient lie between them."""
    tensor = loop.objective.tensors[t].detach()
    index = torch.tensor([i], device=tensor.device)
    smallest = h / 8
    structural = not same_branches(
        branches(lambda: loop.at(tensor, i, smallest)), branches(lambda: loop.at(tensor, i, -smallest))
    )
    slopes = []
    for step in (h, -h):
        s = torch.tensor([step], dtype=torch.float64, device=tensor.device)
        slopes.append((loop.delta(t, index, s) / taken(tensor, index, s))[:, 0])
    low, high = torch.minimum(*slopes), torch.maximum(*slopes)
    slack = 0.02 * (high - low) + CERTAIN * 2 * evidence.sigma / h
    inside = (evidence.exact[:, i] >= low - slack) & (evidence.exact[:, i] <= high + slack)
    if not structural and not bool(torch.isfinite(low + high).all()):
        evidence.unclear[i] = True
    elif bool(inside.all()):
        evidence.kink[i] = True
    elif structural:
        evidence.off_kink[i] = True
    elif certain:
        evidence.wrong[:, i] = ~inside
    else:
        evidence.unclear[i] = True


@dataclass(frozen=True)
class Judgement:
    """The verdict on one tensor and one cost."""

    verdict: Verdict
    ratio: float
    refined: float
    noise: float
    truncation: float
    visible: float
    zero: bool
    reason: str


def judge(evidence: Evidence, row: int) -> Judgement:
    """Read the evidence on one tensor for one of the costs."""
    usable = ~(evidence.kink | evidence.off_kink | evidence.unclear)
    exact, approx = evidence.exact[row], evidence.approx[row]
    residual = norm((approx - exact)[usable])
    size = norm(approx[usable]) + norm(exact[usable])
    root = math.sqrt(max(int(usable.sum()), 1))
    round_off, truncation = (float(e[row]) * root for e in (evidence.step.round_off, evidence.step.truncation))
    floor = math.hypot(round_off, truncation)
    if evidence.grain is not None:
        floor = math.hypot(floor, norm(evidence.grain[row][usable]))
    ratio = ratio_of_norms(norm(evidence.first[row] - exact), norm(evidence.first[row]), norm(exact))
    refined = ratio_of_norms(residual, norm(approx[usable]), norm(exact[usable]))
    zero = size <= 10 * floor
    verdict, reason = _decide(evidence, row, residual, size, floor, refined, zero=zero)
    scale = size if size else 1.0
    entry = float(evidence.step.error[row]) * LOOK
    first = evidence.first_step
    return Judgement(
        verdict, ratio, refined,
        float(first.round_off[row]) * math.sqrt(len(exact)) / scale,
        float(first.truncation[row]) * math.sqrt(len(exact)) / scale,
        entry, zero, reason,
    )  # fmt: skip


def _decide(  # noqa: PLR0911 - a decision list, read from the top
    evidence: Evidence, row: int, residual: float, size: float, floor: float, refined: float, *, zero: bool
) -> tuple[Verdict, str]:
    at = f"at ε = {evidence.step.eps:.0e} ({evidence.step.scheme})"
    count = int(evidence.wrong[row].sum())
    if count:
        return "wrong", f"{count} of {evidence.wrong.shape[1]} entries differ by more than their numerical error"
    if not math.isfinite(residual):
        return "wrong", "the gradient is not finite"
    if residual > 10 * floor and refined > VISIBLE:
        return "wrong", f"the difference is {residual / max(floor, 1e-300):.0f} times the numerical error {at}"
    if int(evidence.off_kink.sum()):
        return "suspect", f"{int(evidence.off_kink.sum())} entries at a kink lie outside the one-sided slopes"
    if evidence.skipped:
        return "inconclusive", f"{evidence.skipped} entries that stand out were not looked at one by one"
    if int(evidence.unclear.sum()):
        return "inconclusive", f"{int(evidence.unclear.sum())} entries could not be measured to {BLIND:g}"
    if evidence.idle:
        return "correct", "no finite entry: nothing of it was checked"
    if zero:
        return "correct", "zero to within the noise floor"
    if floor > BLIND * size:
        return "inconclusive", f"the numerical error is {floor / size:.0e} of the gradient {at}"
    if refined > RIGHT and residual > 10 * floor:
        return "suspect", f"the difference is {residual / max(floor, 1e-300):.0f} times the numerical error {at}"
    return "correct", f"within the numerical error {at}"
