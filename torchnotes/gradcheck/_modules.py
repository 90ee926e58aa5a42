"""Which module is to blame: each module's own backward, checked at the input it really saw.

A wrong gradient of one layer spoils those of every layer below it, and a fault deep below may have vanished by the time
the cost is differentiated. So every module is taken by itself: for a random cotangent v of its output and a random line
d through its inputs and parameters, ⟨Jᵀ v, d⟩ from its backward is held against the difference quotient of ⟨v, f⟩.
The cost is a few forward passes of the whole model for each level of nesting, whatever the number of parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from torchnotes.gradcheck._contracts import Contracts
from torchnotes.gradcheck._line import Slope, slope
from torchnotes.gradcheck._objective import ULP, Objective
from torchnotes.gradcheck._precision import precision_finding
from torchnotes.gradcheck._state import RandomStates
from torchnotes.gradcheck._subject import Subject
from torchnotes.gradcheck.compare import norm
from torchnotes.gradcheck.report import Finding

LINES = 2  # a single Gaussian line misses a fault with probability zero; two guard against bad luck in its size


@dataclass(frozen=True)
class _Seen:
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    asked: list[bool]  # which of the leaves of both a gradient flows into


def check_modules(
    model: nn.Module,
    objective: Objective,
    random: RandomStates,
    generator: torch.Generator,
    tick: Callable[[int], None] | None = None,
) -> tuple[list[Finding], list[str]]:
    """Check every module inside a model by itself.

    Args:
        model: the model.
        objective: its cost.
        random: the states every evaluation starts from.
        generator: draws cotangents and lines.
        tick: told of each module done.

    Returns:
        A finding for each module that was called with tensors, outermost first; and the innermost that are wrong.
    """
    seen = _record(model, objective)
    findings: dict[str, Finding] = {}
    for name, module in model.named_modules():
        if module in seen and name:
            findings[name] = _check_one(name, module, seen[module], random, generator)
            if tick is not None:
                tick(1)
    flagged = [n for n, f in findings.items() if f.verdict != "correct"]
    innermost = [n for n in flagged if not any(other.startswith(n + ".") for other in flagged)]
    kept = [f for f in findings.values() if f.name in innermost or f.name not in flagged]
    return kept, [n for n in innermost if findings[n].verdict == "wrong"]


def _record(model: nn.Module, objective: Objective) -> dict[nn.Module, _Seen]:
    """The arguments of every module's first call in one evaluation of the cost."""
    seen: dict[nn.Module, _Seen] = {}
    handles = []

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # torch.cond traces its branches, which is no call of theirs.
        if module not in seen and not torch.compiler.is_compiling():
            asked = [isinstance(v, Tensor) and v.requires_grad for v in pytree.tree_leaves((args, kwargs))]
            kept = pytree.tree_map(_keep, (args, kwargs))
            seen[module] = _Seen(kept[0], kept[1], asked)

    for module in model.modules():
        handles.append(module.register_forward_pre_hook(note, with_kwargs=True))
    try:
        with torch.enable_grad():
            objective()
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _keep(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def _check_one(name: str, module: nn.Module, seen: _Seen, random: RandomStates, generator: torch.Generator) -> Finding:
    try:
        subject = Subject(module, seen.args, seen.kwargs, random, convert=False)
        if not subject.values or any(v.dtype != torch.float64 for v in subject.values):
            return Finding(name, "correct", "nothing of float64 to differentiate")
        contracts = Contracts(subject, generator)
    except (RuntimeError, TypeError, ValueError) as error:
        return Finding(name, "correct", f"cannot be called by itself ({type(error).__name__}): not judged")
    if not contracts.live:
        return Finding(name, "correct", "its output carries no gradient: not judged")
    if not any(contracts.outputs[k].numel() for k in contracts.live):
        return Finding(name, "correct", "its output has no entries: not judged")
    complaint = next((f"{f.name}: {f.detail}" for f in contracts.run() if f.verdict == "wrong"), "")
    complaint = complaint or _differences(contracts, _owed(subject, contracts, seen.asked), generator)
    if complaint:
        return Finding(name, "wrong", complaint)
    coarse = precision_finding(contracts.eps, contracts.dtype, returned=False)
    return Finding(name, "suspect", coarse.detail) if coarse else Finding(name, "correct", "its own backward agrees")


def _owed(subject: Subject, contracts: Contracts, asked: Sequence[bool]) -> list[int]:
    """The tensors whose gradient the module owes: not data that it cuts off on purpose."""
    idle = {k for k, place in enumerate(subject.places) if not asked[place] and not bool(contracts.reference[k].any())}
    return [k for k in range(len(contracts.values)) if k not in idle]


def _differences(contracts: Contracts, everything: Sequence[int], generator: torch.Generator) -> str:
    """Compare along lines through everything at once; where that fails, tensor by tensor, to say which."""
    for _ in range(LINES):
        if _along(contracts, everything, generator) == "":
            continue
        found = [(contracts.subject.names[k], _along(contracts, [k], generator)) for k in everything]
        blamed = [f"{name} ({detail})" for name, detail in found if detail]
        return "its own gradient is wrong for " + ", ".join(blamed or ["a direction through all of its inputs"])
    return ""


def _along(contracts: Contracts, which: Sequence[int], generator: torch.Generator) -> str:
    """Empty if backward and difference quotient agree along a random line through the tensors named."""
    values, gradients = contracts.values, contracts.reference
    lines = [torch.zeros_like(v) for v in values]
    for k in which:
        draw = torch.randn(values[k].shape, generator=generator, dtype=torch.float64).to(values[k].device)
        # Every tensor moves in proportion to its own size, so that none of them drowns in another's curvature.
        # An entry of −∞, as in a mask of attention, has nowhere to move to.
        finite = torch.isfinite(values[k].detach())
        size = norm(values[k][finite]) / max(int(finite.sum()), 1) ** 0.5
        lines[k] = torch.where(finite, draw * (size if size > 0 else 0.1), 0.0)
    exact = torch.tensor([sum(float((gradients[k] * lines[k]).sum()) for k in which)], dtype=torch.float64)
    with torch.no_grad():
        base = [o.detach() for o in contracts.subject(values)]

        def change(h: float) -> Tensor:
            moved = contracts.subject([v.detach() + h * d for v, d in zip(values, lines, strict=True)])
            terms = [((moved[k] - base[k]) * c).sum() for k, c in zip(contracts.live, contracts.u, strict=True)]
            return torch.stack(terms).sum().reshape(1).double().cpu()

        measured: Slope = slope(
            change,
            exact,
            size=norm(*(base[k] * c for k, c in zip(contracts.live, contracts.u, strict=True))),
            unit=max(ULP, contracts.eps / 2),
        )
    floor = sum(contracts.floor[k] * norm(lines[k]) for k in which)
    # At a kink of many units at once the two sides differ and neither is the gradient: not judged along a line.
    if (
        measured.bent
        or float((measured.value - exact).abs()) <= floor
        or not measured.differs(exact, relative=max(1e-5, 64 * contracts.eps))
    ):
        return ""
    return f"{float(exact):.6g} along a random line, where the difference quotient is {float(measured.value):.6g}"
