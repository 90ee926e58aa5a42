"""Checking at any size: random directions, then group testing down to the wrong entries.

For a standard normal z, z · r is N(0, ‖r‖²), where r = dθ_approx − dθ is the notes' numerator: the mean of its squares
over a few directions estimates ‖r‖² without bias, with a χ² confidence interval. Where z · r exceeds its own error, the
same z is restricted to one half of θ: what is found there, subtracted, is what lies in the other half; and so on down
to single entries. One wrong entry among P takes log₂ P measurements. Gaussian directions cannot cancel a pair of
errors, as ±1 directions can.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from torchnotes.gradcheck._directions import Block, Probe, Region, halves, region_size, without
from torchnotes.gradcheck._distributed import place_in_group, summed
from torchnotes.gradcheck._evaluate import unravel
from torchnotes.gradcheck._patterns import describe_pattern
from torchnotes.gradcheck._standing_out import OUTCOMES, by_itself
from torchnotes.gradcheck.compare import BUG, Verdict, norm, ratio_of_norms
from torchnotes.gradcheck.report import Entry, GradientReport, ParameterReport

DIRECTIONS = 8
STANDS_OUT = 8.0
MOST_NAMED = 16
DENSE = 8  # equal parts of a tensor that, all wrong, make the whole tensor wrong
SAMPLED = 8
ALONE = 64  # evaluations that a single entry takes at most, measured by itself


@dataclass
class Search:
    """What group testing has found."""

    entries: list[tuple[int, int]] = field(default_factory=list)
    dense: set[int] = field(default_factory=set)
    unfinished: list[Region] = field(default_factory=list)
    kinks: list[tuple[int, int]] = field(default_factory=list)  # right, with a kink within the step
    unclear: bool = False  # something stood out of which nobody can say that it is wrong


EVALUATIONS = 65 + 5  # of a right gradient: calibration, eight directions, and what comes before


def check_projected(probe: Probe, budget: int, expect: Callable[[int], None] | None = None) -> GradientReport:
    """The projected check.

    Args:
        probe: measures along directions.
        budget: evaluations after which the search for wrong entries stops.
        expect: told how many evaluations there will be, once a search begins.
    """
    objective = probe.objective
    everything: Region = tuple(Block(t, 0, v.numel()) for t, v in enumerate(objective.tensors) if v.numel())
    round_off, truncation = probe.calibrate(everything)
    residuals = [probe.residual(everything, k) for k in range(DIRECTIONS)]
    exact = norm(*probe.exact)
    numerator = math.sqrt(sum(r * r for r in residuals) / DIRECTIONS)
    search, left = _search(probe, everything, residuals, budget, expect)
    failed = _stands_out(probe, left)
    judged = math.sqrt(sum(r * r for r in left) / DIRECTIONS)
    size = 2 * exact if numerator < 0.1 * exact else exact + math.sqrt(exact**2 + numerator**2)
    floors = round_off / size if size else 0.0, truncation / size if size else 0.0
    ratio = ratio_of_norms(numerator, size, 0.0)
    verdict, reason = _verdict(failed, exact, probe.error, search)
    reports = {name: _parameter(probe, t, search, judged, verdict) for t, name in enumerate(objective.names)}
    low, high = chi_square_interval(DIRECTIONS)
    return GradientReport(
        verdict=verdict,
        ratio=ratio,
        refined_ratio=ratio_of_norms(judged, size, 0.0),
        noise_floor=floors[0],
        truncation=floors[1],
        eps=probe.step,
        method=f"projected ({DIRECTIONS} directions, step {probe.step:.0e}{_processes()})",
        by_parameter=reports,
        reason=reason,
        smallest_visible=STANDS_OUT * probe.error,
        notes=tuple(_notes(probe, search)),
        interval=(ratio * low, ratio * high),
        evaluations=objective.evaluations,
    )


def _stands_out(probe: Probe, residuals: list[float]) -> bool:
    return not all(abs(r) <= STANDS_OUT * probe.error for r in residuals)


def _search(
    probe: Probe, region: Region, residuals: list[float], budget: int, expect: Callable[[int], None] | None
) -> tuple[Search, list[float]]:
    """Find what stands out; leave out the entries that are right but for a kink within the step, and look again.

    Returns:
        What was found, and the residuals of what was not left out.
    """
    search = Search()
    while _stands_out(probe, residuals) and all(map(math.isfinite, residuals)):
        if expect is not None:
            expect(min(budget, probe.spent + 4 * math.ceil(math.log2(region_size(region) + 1))))
        worst = max(range(DIRECTIONS), key=lambda k: abs(residuals[k]))
        _descend(probe, region, worst, residuals[worst], budget, search)
        left_out = _leave_out_kinks(probe, worst, budget, search)
        if search.unfinished and not search.entries and not search.dense:
            search.unclear |= all(probe.crosses_kink(r, worst) for r in search.unfinished)
        if search.entries or search.dense or search.unclear or not left_out:
            break
        if search.unfinished or probe.spent + 4 * DIRECTIONS > budget:
            search.unclear = True
            break
        region = without(region, left_out)
        residuals = [probe.residual(region, k) for k in range(DIRECTIONS)]
    return search, residuals


def _leave_out_kinks(probe: Probe, k: int, budget: int, search: Search) -> list[tuple[int, int]]:
    """Measure what was found entry by entry, as far as the budget goes; return those that are not seen to be wrong.

    Over a process group each entry is measured by one process. Whether the budget reaches is reckoned with the most
    that each may take, so that all processes reckon alike.
    """
    rank, world = place_in_group()
    found, start = list(search.entries), probe.spent
    outcomes = torch.zeros(len(found) + 1, dtype=torch.float64, device="cpu")
    for n, (t, i) in enumerate(found):
        if n % world == rank:
            h = 2 * max(abs(float(probe.direction(k, t)[i])), 1.0) * probe.step
            outcome = by_itself(probe, t, i, h, afford=start + (n + 1) * ALONE <= budget)
            outcomes[n] = OUTCOMES.index(outcome)
    outcomes[-1] = probe.spent - start
    *codes, spent = summed(outcomes, probe.objective.tensors[0].device).tolist()
    probe.spent = start + round(spent)
    right = []
    for entry, code in zip(found, codes, strict=True):
        if OUTCOMES[round(code)] != "wrong":
            search.entries.remove(entry)
            search.kinks.append(entry)
            search.unclear |= OUTCOMES[round(code)] == "unclear"
            right.append(entry)
    return right


def _processes() -> str:
    world = place_in_group()[1]
    return f", {world} processes" if world > 1 else ""


def _descend(probe: Probe, region: Region, k: int, residual: float, budget: int, search: Search) -> None:
    """Cut the largest region next, until single entries are left or the budget ends: broad faults show first."""
    threshold = STANDS_OUT * probe.error
    queue: list[tuple[int, int, Region, float]] = [(-region_size(region), 0, region, residual)]
    order = 0
    parts: dict[int, int] = {}
    while queue:
        _, _, here, value = heapq.heappop(queue)
        if len(here) == 1 and here[0].t in search.dense:
            continue
        if region_size(here) == 1:
            search.entries.append((here[0].t, here[0].lo))
            continue
        if probe.spent + 4 > budget or len(search.entries) >= MOST_NAMED:
            search.unfinished.append(here)
            continue
        left, right = halves(here)
        first = probe.residual(left, k)
        for part, rest in ((left, first), (right, value - first)):
            if abs(rest) > threshold:
                order += 1
                heapq.heappush(queue, (-region_size(part), order, part, rest))
                _note_dense(probe, part, parts, search)


def _note_dense(probe: Probe, part: Region, parts: dict[int, int], search: Search) -> None:
    """Count the wrong parts of a tensor once it is cut into about eight; if all are, the whole tensor is wrong."""
    if len(part) != 1:
        return
    count = probe.objective.tensors[part[0].t].numel()
    if count >= DENSE and count // (2 * DENSE) < part[0].size <= -(-count // DENSE):
        parts[part[0].t] = parts.get(part[0].t, 0) + 1
        if parts[part[0].t] == DENSE and _off_throughout(probe, part[0].t):
            search.dense.add(part[0].t)


def _off_throughout(probe: Probe, t: int) -> bool:
    """Whether a sample of a tensor's entries holds a wrong one; kinks here and there make every part stand out too."""
    entries = [_entry(probe, t, i) for i in _sample(probe, t)]
    return any(not e.error <= BUG * max(abs(e.exact), abs(e.approx)) for e in entries)


def _sample(probe: Probe, t: int) -> list[int]:
    generator = torch.Generator().manual_seed(t)
    return [int(i) for i in torch.randint(probe.objective.tensors[t].numel(), (SAMPLED,), generator=generator)]


def _verdict(failed: bool, exact: float, error: float, search: Search) -> tuple[Verdict, str]:
    if failed and search.unclear and not search.entries and not search.dense:
        return "inconclusive", "what stands out along random directions lies at kinks, or could not be told from them"
    if failed:
        where = (
            f"{len(search.entries)} wrong entries named" if search.entries else "the wrong entries were not all found"
        )
        return "wrong", f"the gradient differs along random directions by more than the numerical error; {where}"
    if error > 1e-3 * exact and exact > 0:
        return "inconclusive", f"the numerical error along a direction, {error:.1e}, hides the gradient, {exact:.1e}"
    return "correct", f"agrees along {DIRECTIONS} random directions to within the numerical error, {error:.1e}"


def _notes(probe: Probe, search: Search) -> list[str]:
    notes = [f"{probe.spent} evaluations of J"]
    if search.kinks:
        notes.append(f"entries with a kink within the step, measured by themselves: {len(search.kinks)}")
    if search.unfinished:
        where = [f"{probe.objective.names[b.t]}[{b.lo}:{b.hi}] (flat)" for r in search.unfinished[:3] for b in r[:1]]
        notes.append(f"the search ended early; more is wrong in {', '.join(where)}")
    return notes


def _parameter(probe: Probe, t: int, search: Search, numerator: float, verdict: Verdict) -> ParameterReport:
    """One tensor's report: its wrong entries measured one by one, or a sample of them where all are wrong."""
    tensor, exact = probe.objective.tensors[t], probe.exact[t].reshape(-1)
    found = [i for owner, i in search.entries if owner == t]
    if t in search.dense:
        found = _sample(probe, t)
    entries = [_entry(probe, t, i) for i in found]
    wrong = tensor.numel() if t in search.dense else len(found)
    more = any(b.t == t for r in search.unfinished for b in r if len(r) == 1)
    bad = bool(wrong) or (more and verdict == "wrong")
    size = norm(exact)
    pattern = _pattern(entries, tensor, t in search.dense)
    own: Verdict = "wrong" if bad else ("correct" if verdict in ("correct", "wrong") else verdict)
    bound = ratio_of_norms(numerator, size, size) if not verdict == "wrong" or bad else 0.0
    return ParameterReport(
        name=probe.objective.names[t],
        shape=tuple(tensor.shape),
        verdict=own,
        ratio=min(bound, 1.0),
        refined_ratio=min(bound, 1.0),
        noise_floor=min(ratio_of_norms(probe.error, size, size), 1.0),
        truncation=0.0,
        eps=probe.step,
        scheme="five-point",
        smallest_visible=STANDS_OUT * probe.error,
        rms=size / math.sqrt(max(tensor.numel(), 1)),
        wrong=wrong,
        kinks=sum(owner == t for owner, _ in search.kinks),
        pattern=pattern,
        reason=f"{wrong} wrong entries found by group testing" if bad else "no part of it stood out",
        worst=tuple(sorted(entries, key=lambda e: -e.error)),
    )


def _entry(probe: Probe, t: int, i: int) -> Entry:
    """One entry's difference quotient: along z restricted to it, divided by z there."""
    tensor = probe.objective.tensors[t]
    z = float(probe.direction(0, t)[i])
    h = probe.step / max(abs(z), 1e-3) * 4
    approx = probe.slope((Block(t, i, i + 1),), 0, h) / z
    exact = float(probe.exact[t].reshape(-1)[i])
    return Entry(probe.objective.names[t], unravel(i, tensor.shape), exact, approx, abs(approx - exact))


def _pattern(entries: list[Entry], tensor: Tensor, dense: bool) -> str:
    if not entries:
        return ""
    if not dense:
        shown = ", ".join("[" + ", ".join(map(str, e.index)) + "]" for e in entries[:4])
        return f"{len(entries)} of {tensor.numel()} entries wrong: {shown}"
    exact = torch.tensor([e.exact for e in entries], dtype=torch.float64)
    approx = torch.tensor([e.approx for e in entries], dtype=torch.float64)
    theta = torch.stack([tensor.detach()[e.index] for e in entries]).double()
    return f"wrong throughout; in a sample of {len(entries)}: {describe_pattern(exact, approx, theta)}"


def chi_square_interval(k: int, level: float = 0.95) -> tuple[float, float]:
    """Factors on √(mean of k squares) that make a confidence interval for the standard deviation.

    >>> low, high = chi_square_interval(8)
    >>> round(low, 3), round(high, 3)
    (0.675, 1.916)
    """
    tail = (1 - level) / 2
    return math.sqrt(k / _chi_square(k, 1 - tail)), math.sqrt(k / _chi_square(k, tail))


def _chi_square(k: int, p: float) -> float:
    """The quantile of χ²_k, by bisection of the regularised incomplete gamma function."""
    low, high = 0.0, 10.0 * k + 50
    half = torch.tensor(k / 2, dtype=torch.float64)
    for _ in range(80):
        middle = (low + high) / 2
        below = float(torch.special.gammainc(half, torch.tensor(middle / 2, dtype=torch.float64)))
        low, high = (middle, high) if below < p else (low, middle)
    return (low + high) / 2
