"""What a check would have nothing to look at: refused, as a test that looks at nothing must not pass.

Where no entry is moved or no number comes out, every backward "agrees", a wrong one too. The same holds for a cost over
no samples: its gradient is a sum over nothing, whatever the rule that is summed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from torchnotes._checks import describe
from torchnotes.gradcheck._objective import Objective
from torchnotes.gradcheck.report import Finding

Gradients = Sequence[Sequence["Tensor | None"]]
"""For each cost, its gradient with respect to each tensor of θ."""

MOVE = 1e-3  # how far θ is moved to see whether J depends on it at all, beside its own size
DEPENDS = "J depends on θ"


def refuse_empty(names: Sequence[str], tensors: Sequence[Tensor], what: str) -> list[str]:
    """Refuse a θ without one entry that can be moved; notes for the tensors of which that is true by themselves.

    Args:
        names: the name of each tensor of θ.
        tensors: θ.
        what: what they are called in the error.
    """
    idle = [k for k, t in enumerate(tensors) if not bool(torch.isfinite(t.detach()).any())]
    if len(idle) == len(tensors):
        got = ", ".join(f"{names[k]}: {describe(tensors[k])}" for k in idle) or "none"
        raise ValueError(
            f"{what} must hold at least one finite entry to be checked, got {got}; "
            "a check of nothing would pass whatever the backward does: give it entries."
        )
    return [f"{names[k]} has no finite entry: nothing of it was checked" for k in idle]


def refuse_no_output(y: Tensor) -> None:
    """Refuse a function of whose outputs none has an entry."""
    if not y.numel():
        raise ValueError(
            "fn must return at least one number, got tensors without entries; the gradient of nothing is zero "
            "whatever the backward does: give it inputs with at least one sample."
        )


def refuse_absent(objective: Objective, base: Tensor, exact: Gradients) -> None:
    """Refuse parameters that autograd does not reach and that J does not depend on either."""
    reached = [any(row[t] is not None for row in exact) for t in range(len(objective.tensors))]
    absent = [
        name for t, name in enumerate(objective.names) if not reached[t] and torch.equal(_moved(objective, [t]), base)
    ]
    if absent:
        raise ValueError(
            f"every parameter to be checked must take part in J, got {', '.join(absent)}, which J does not depend on; "
            "freeze what is not used with requires_grad_(False), or name the others in parameters=."
        )


def refuse_idle(
    objective: Objective,
    base: Tensor,
    gradient: Sequence[Tensor | None] | None,
    data: Iterable[Tensor],
    cost: Tensor,
    name: str,
) -> list[Finding]:
    """Refuse a cost over no samples; "inconclusive" where a cost stands still for another reason.

    A cost stands still if its gradient is exactly 0 throughout and its value the same, to the last bit, with all of θ
    moved at once. One layer alone may well be at rest (the one before a head that starts at 0); all of them are only
    where nothing of θ reaches the cost: an empty batch, labels that are all ignored, a mask that keeps nothing.

    Args:
        objective: the costs.
        base: y at θ.
        gradient: that of the cost, tensor by tensor; None if it was not taken.
        data: the tensors that the cost is computed from, beside θ.
        cost: the direction in which y is read.
        name: what the cost is called.
    """
    if gradient is not None and any(g is not None and bool((g != 0).any()) for g in gradient):
        return []
    moved = _moved(objective, range(len(objective.tensors)))
    if not torch.equal(cost @ moved, cost @ base):
        return []
    refuse_empty_batch(data, "a cost that no parameter changes")
    detail = (
        f"nothing was checked: {name} stays the same to the last bit when all of θ is moved, and a gradient of "
        "zero proves no backward right (are all labels ignored, or all units dead?)"
    )
    return [Finding(DEPENDS, "inconclusive", detail)]


def refuse_still_outputs(objective: Objective, base: Tensor, exact: Gradients, data: Iterable[Tensor]) -> None:
    """Refuse a function of which nothing moves because one of its inputs has no entries.

    Without such an input a gradient of 0 is a property of the op (`torch.floor`), and checked as any other.
    """
    empty = [t for t in data if not t.numel()]
    if not empty or any(g is not None and bool((g != 0).any()) for row in exact for g in row):
        return
    if torch.equal(_moved(objective, range(len(objective.tensors))), base):
        refuse_empty_batch(empty, "outputs that nothing changes", "inputs")


def refuse_empty_batch(data: Iterable[Tensor], came: str, what: str = "inputs and target") -> None:
    """Refuse a batch without samples, where that is why the cost is of no use."""
    for tensor in data:
        if not tensor.numel():
            raise ValueError(
                f"{what} must hold at least one sample, got {describe(tensor)} and {came}; the gradient of "
                "a sum over nothing is zero whatever the backward does: give it a batch with samples in it."
            )


def _moved(objective: Objective, which: Iterable[int]) -> Tensor:
    """Y with some tensors moved at random, NaN where it cannot be computed there."""
    generator = torch.Generator().manual_seed(0)
    kept = {t: objective.tensors[t].detach().clone() for t in which}
    try:
        for t, was in kept.items():
            draw = torch.randn(was.shape, generator=generator, dtype=torch.float64).to(was.device)
            objective.tensors[t].detach().add_(MOVE * (1 + was.abs()) * draw)
        with torch.no_grad():
            return objective().detach()
    except (RuntimeError, ValueError):
        return torch.full_like(objective.rows[0], torch.nan)
    finally:
        for t, was in kept.items():
            objective.tensors[t].detach().copy_(was)
