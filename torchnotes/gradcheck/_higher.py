"""The rules beside the first-order backward: forward mode, held to the backward by duality, and the second order."""

from __future__ import annotations

import math

import torch
import torch.autograd.forward_ad as fwd
from torch import Tensor

from torchnotes.gradcheck._contracts import Contracts
from torchnotes.gradcheck._line import slope
from torchnotes.gradcheck.compare import norm
from torchnotes.gradcheck.report import Finding

DUAL = 1e-9
LOOSE = 1e-4  # a forward rule this far off is another rule; one nearer is inaccurate
_NOT_OFFERED = ("not implemented", "marked with @once_differentiable", "not supported", "does not support", "jvp")


def forward_mode(contracts: Contracts, generator: torch.Generator) -> Finding | None:
    """⟨v, J d⟩ from the forward rule against ⟨Jᵀ v, d⟩ from the backward rule: equal for every v and d, without ε."""
    values = [v.detach() for v in contracts.values]
    tangents = [torch.randn(v.shape, generator=generator, dtype=torch.float64).to(v.device) for v in values]
    try:
        by_forward, terms = _pushed(contracts, values, tangents)
    except (NotImplementedError, RuntimeError) as error:
        if _not_offered(error):
            return None
        return Finding("forward mode", "wrong", f"raised {type(error).__name__}: {str(error).splitlines()[0]}")
    products = [g * d for g, d in zip(contracts.reference, tangents, strict=True)]
    by_backward = float(sum(float(p.sum()) for p in products))
    floor = sum(f * norm(d) for f, d in zip(contracts.floor, tangents, strict=True))
    gap, size = abs(by_forward - by_backward), max(norm(*terms), norm(*products))
    moved = _conditioning(contracts, values, tangents)
    slack = sum(s for s in (floor, moved) if math.isfinite(s))  # an input that is NaN makes both of them NaN
    if not gap <= max(DUAL, 4 * contracts.eps) * size + slack:
        return Finding(
            "forward mode",
            "wrong" if gap > LOOSE * size else "suspect",
            f"⟨v, J d⟩ = {by_forward:.6g} forward and {by_backward:.6g} backward, {gap / size:.0e} apart",
        )
    return Finding("forward mode", "correct", "agrees with the backward")


def _pushed(contracts: Contracts, values: list[Tensor], tangents: list[Tensor]) -> tuple[float, list[Tensor]]:
    """⟨v, J d⟩ at some values by the forward rule, and its terms."""
    with fwd.dual_level():
        duals = [fwd.make_dual(v, d) for v, d in zip(values, tangents, strict=True)]
        outputs = contracts.subject(duals)
        pushed = [fwd.unpack_dual(outputs[k]).tangent for k in contracts.live]
    terms = [c * p.detach() for c, p in zip(contracts.u, pushed, strict=True) if p is not None]
    return float(sum(float(t.sum()) for t in terms)), terms


def _conditioning(contracts: Contracts, values: list[Tensor], tangents: list[Tensor]) -> float:
    """How far ⟨v, J d⟩ itself moves when θ does by a unit in the last place: an ill-conditioned inverse, say."""
    near = [v * (1 + 2.0**-52 * torch.sign(d)) for v, d in zip(values, tangents, strict=True)]
    far = [v * (1 - 2.0**-52 * torch.sign(d)) for v, d in zip(values, tangents, strict=True)]
    return 32 * abs(_pushed(contracts, near, tangents)[0] - _pushed(contracts, far, tangents)[0])


def second_order(contracts: Contracts, generator: torch.Generator) -> Finding | None:
    """The derivative of the gradient along a random line, against the backward of the backward."""
    if contracts.eps:
        return None  # a second difference of values so coarse shows nothing
    values = contracts.values
    cotangents = [c.detach() for c in contracts.u]
    weights = [torch.randn(v.shape, generator=generator, dtype=torch.float64).to(v.device) for v in values]
    lines = [torch.randn(v.shape, generator=generator, dtype=torch.float64).to(v.device) for v in values]
    lines = [d * v.detach().abs().clamp(1e-2, 1e2) for d, v in zip(lines, values, strict=True)]

    def weighted(at: list[Tensor], *, graph: bool) -> Tensor:
        outputs = contracts.subject(at)
        pairs = [(outputs[k], c) for k, c in zip(contracts.live, cotangents, strict=True) if outputs[k].requires_grad]
        if not pairs:
            return torch.zeros((), dtype=torch.float64)
        found = torch.autograd.grad(
            [o for o, _ in pairs], at, [c for _, c in pairs], create_graph=graph, allow_unused=True
        )
        parts = [(w * g).sum() for w, g in zip(weights, found, strict=True) if g is not None]
        return torch.stack(parts).sum() if parts else torch.zeros((), dtype=torch.float64)

    try:
        total = weighted(values, graph=True)
        found = (
            torch.autograd.grad(total, values, allow_unused=True)
            if total.requires_grad
            else tuple(None for _ in values)
        )
    except (NotImplementedError, RuntimeError) as error:
        if _not_offered(error):
            return None
        return Finding("second order", "wrong", f"raised {type(error).__name__}: {str(error).splitlines()[0]}")
    exact = torch.tensor(
        [sum(float((h * d).sum()) for h, d in zip(found, lines, strict=True) if h is not None)], dtype=torch.float64
    )
    base = total.detach()

    def change(h: float) -> Tensor:
        at = [(v.detach() + h * d).requires_grad_() for v, d in zip(values, lines, strict=True)]
        return (weighted(at, graph=False) - base).detach().reshape(1).cpu()

    measured = slope(change, exact, scale=0.1, size=float(base.abs()))
    if measured.bent or not bool(torch.isfinite(measured.value).all()):
        return Finding("second order", "correct", "at a kink of the gradient: not judged")
    # Second derivatives below this are round-off of the first: the lines move x by its own size.
    floor = 1e-8 * norm(*(w * g for w, g in zip(weights, contracts.reference, strict=True))) + sum(contracts.floor)
    if measured.differs(exact, relative=1e-4) and float((measured.value - exact).abs()) > floor:
        return Finding(
            "second order", "wrong",
            f"the backward of the backward gives {float(exact):.6g} along a line where the gradient's own derivative "
            f"is {float(measured.value):.6g}; if no second order is meant, mark backward with @once_differentiable",
        )  # fmt: skip
    return Finding("second order", "correct", "agrees with the derivative of the gradient")


def _not_offered(error: Exception) -> bool:
    text = str(error).lower()
    return isinstance(error, NotImplementedError) or any(phrase in text for phrase in _NOT_OFFERED)
