"""From the evidence on every tensor to one report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from torchnotes.gradcheck._evaluate import unravel
from torchnotes.gradcheck._judge import Evidence, Judgement, judge
from torchnotes.gradcheck._patterns import describe_pattern
from torchnotes.gradcheck.compare import SEVERITY, Verdict, norm, ratio_of_norms, worst_verdict
from torchnotes.gradcheck.report import CostReport, Entry, Finding, GradientReport, ParameterReport

KEPT = 32  # worst entries kept for each parameter


@dataclass
class Context:
    """What the report needs to know beyond the tensors."""

    eps: float
    method: str
    cost_names: Sequence[str]
    cost_values: Sequence[float]
    sizes: dict[int, str]
    thetas: Sequence[Tensor]
    penalty_row: int | None = None
    separate: bool = False  # costs are J, data, penalty; otherwise all of them are one function's cotangents


def parameter_report(evidence: Evidence, theta: Tensor, context: Context) -> tuple[ParameterReport, list[Judgement]]:
    """One tensor's report, and its judgement for every cost."""
    judgements = [judge(evidence, row) for row in range(len(evidence.exact))]
    worst_row = min(
        range(len(judgements)), key=lambda k: (SEVERITY.index(judgements[k].verdict), -judgements[k].refined)
    )
    shown = judgements[0] if context.separate else judgements[worst_row]
    blamed = judgements[worst_row]
    pattern = ""
    if blamed.verdict == "wrong":
        penalty = evidence.approx[context.penalty_row] if context.penalty_row is not None else None
        pattern = describe_pattern(
            evidence.exact[worst_row].view(evidence.shape),
            evidence.approx[worst_row].view(evidence.shape),
            theta.detach(),
            wrong=evidence.wrong[worst_row] if bool(evidence.wrong[worst_row].any()) else None,
            penalty=None if penalty is None or worst_row == context.penalty_row else penalty.view(evidence.shape),
            sizes=context.sizes,
            detached=evidence.detached,
        )
    reason = blamed.reason
    if context.separate and worst_row and blamed.verdict != judgements[0].verdict:
        reason = f"{context.cost_names[worst_row]} alone: {reason}"
    report = ParameterReport(
        name=evidence.name,
        shape=tuple(evidence.shape),
        verdict=blamed.verdict,
        ratio=shown.ratio,
        refined_ratio=shown.refined,
        noise_floor=shown.noise,
        truncation=shown.truncation,
        eps=evidence.step.eps,
        scheme=evidence.step.scheme,
        smallest_visible=shown.visible,
        rms=norm(evidence.exact[0]) / math.sqrt(max(evidence.exact.shape[1], 1)),
        wrong=int(evidence.wrong.any(0).sum()),
        kinks=int(evidence.kink.sum() + evidence.off_kink.sum()),
        pattern=pattern,
        reason=reason,
        worst=_worst_entries(evidence, worst_row),
    )
    return report, judgements


def _worst_entries(evidence: Evidence, row: int) -> tuple[Entry, ...]:
    exact, approx = evidence.exact[row], evidence.approx[row]
    if not exact.numel():
        return ()
    error = torch.nan_to_num((approx - exact).abs(), nan=math.inf)
    # Entries known to be wrong come before larger differences that were explained.
    order = torch.argsort(
        error + torch.where(evidence.wrong[row], error.nan_to_num(posinf=0.0).max() + 1, 0.0), descending=True
    )
    order = order[:KEPT]
    values = zip(order.tolist(), exact[order].tolist(), approx[order].tolist(), error[order].tolist(), strict=True)
    return tuple(Entry(evidence.name, unravel(i, evidence.shape), e, a, apart) for i, e, a, apart in values)


def assemble(
    evidences: Sequence[Evidence],
    context: Context,
    *,
    findings: Sequence[Finding] = (),
    modules: Sequence[Finding] = (),
    culprits: Sequence[str] = (),
    notes: Sequence[str] = (),
    evaluations: float = 0.0,
    seconds: float = 0.0,
) -> GradientReport:
    """The report on all tensors together."""
    pairs = [parameter_report(e, theta, context) for e, theta in zip(evidences, context.thetas, strict=True)]
    reports = {e.name: report for e, (report, _) in zip(evidences, pairs, strict=True)}
    rows = [0] if context.separate else list(range(len(context.cost_names)))
    whole = _whole(evidences, rows)
    verdicts: list[Verdict] = [p.verdict for p in reports.values()]
    verdict = worst_verdict([*verdicts, *(f.verdict for f in findings), *(f.verdict for f in modules)])
    costs = tuple(
        CostReport(name, value, worst_verdict(j[k].verdict for _, j in pairs), *_whole(evidences, [k])[:2])
        for k, (name, value) in enumerate(zip(context.cost_names, context.cost_values, strict=True))
    )
    kinks = sum(p.kinks for p in reports.values())
    if kinks:
        notes = [
            *notes,
            f"{kinks} entries lie at a kink: their gradient was asked only to lie between the one-sided slopes",
        ]
    return GradientReport(
        verdict=verdict,
        ratio=whole[0],
        refined_ratio=whole[3],
        noise_floor=whole[1],
        truncation=whole[2],
        eps=context.eps,
        method=context.method,
        by_parameter=reports,
        reason=reason_of(verdict, reports, findings, modules),
        smallest_visible=max((p.smallest_visible for p in reports.values()), default=0.0),
        costs=costs if context.separate else (),
        findings=tuple(findings),
        modules=tuple(modules),
        culprits=tuple(culprits),
        notes=tuple(notes),
        evaluations=evaluations,
        seconds=seconds,
    )


def _whole(evidences: Sequence[Evidence], rows: Sequence[int]) -> tuple[float, float, float, float]:
    """Ratio, noise floor and truncation of all tensors joined, at the ε asked for, and the refined ratio."""
    if not evidences:
        return 0.0, 0.0, 0.0, 0.0
    first = [e.first[r] for e in evidences for r in rows]
    exact = [e.exact[r] for e in evidences for r in rows]
    difference = norm(*(a - g for a, g in zip(first, exact, strict=True)))
    size = norm(*first) + norm(*exact) or 1.0
    noise, truncation = (
        math.sqrt(sum(len(e.exact[r]) * float(getattr(e.first_step, what)[r]) ** 2 for e in evidences for r in rows))
        for what in ("round_off", "truncation")
    )
    smooth = [~(e.kink | e.off_kink | e.unclear) for e in evidences]
    refined = [(e.approx[r][s], e.exact[r][s]) for e, s in zip(evidences, smooth, strict=True) for r in rows]
    judged = ratio_of_norms(
        norm(*(a - g for a, g in refined)), norm(*(a for a, _ in refined)), norm(*(g for _, g in refined))
    )
    return ratio_of_norms(difference, norm(*first), norm(*exact)), noise / size, truncation / size, judged


def reason_of(
    verdict: Verdict,
    reports: dict[str, ParameterReport],
    findings: Sequence[Finding],
    modules: Sequence[Finding],
) -> str:
    """Why this verdict, from those parts that have it."""
    if verdict == "correct":
        refined = sorted({f"ε = {p.eps:.0e} ({p.scheme})" for p in reports.values()})
        return f"every parameter agrees with its differences to within their numerical error, at {', '.join(refined)}"
    parts = [f"{name}: {p.reason}" for name, p in reports.items() if p.verdict == verdict]
    parts += [f"{f.name}: {f.detail}" for f in findings if f.verdict == verdict]
    parts = parts or [f"{f.name}: {f.detail}" for f in modules if f.verdict == verdict]
    more = f" (and {len(parts) - 3} more)" if len(parts) > 3 else ""
    return "; ".join(parts[:3]) + more
