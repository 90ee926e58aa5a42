"""A forward that writes into θ: bounded embeddings are checked where it leaves them, anything else is refused.

A difference quotient moves one entry and puts it back; where the forward overwrites others meanwhile, every later
evaluation is one of another θ.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import torch
from torch import Tensor, nn

from torchnotes.gradcheck._objective import Objective

OUTWARD = 1 + 2.0**-10  # what lies at a bound is moved beyond it, by more than most steps of a difference


@contextmanager
def bounded_rows(model: nn.Module, objective: Objective) -> Iterator[list[str]]:
    """Bring the rows that an embedding looks up within ``max_norm``, and lift the bound for the length of the block.

    The forward scales longer rows down in place, as a projection that follows each step would, and its gradient is that
    at the scaled rows, on purpose without the derivative of the scaling. Yields a note for each table it changed.
    """
    tables = (nn.Embedding, nn.EmbeddingBag)
    held = [(name or "the model", m, m.max_norm) for name, m in model.named_modules() if isinstance(m, tables)]
    held = [(name, m, bound) for name, m, bound in held if bound is not None]
    before = [m.weight.detach().clone() for _, m, _ in held]
    try:
        if held:
            with torch.no_grad():
                objective()
        for _, m, _ in held:
            m.max_norm = None
        yield [
            f"{name}: max_norm={bound} scales rows down in the forward, which its gradient leaves out on purpose; it "
            "was checked at the scaled rows, as if there were no bound"
            for (name, m, bound), was in zip(held, before, strict=True)
            if not torch.equal(m.weight.detach(), was)
        ]
    finally:
        for _, m, bound in held:
            m.max_norm = bound


def refuse_written(objective: Objective, before: Sequence[int], what: str) -> None:
    """Refuse an evaluation that changes θ, at θ or a little further out, where a bound would come into force.

    Args:
        objective: already evaluated once.
        before: `fingerprints` of its θ before that.
        what: what θ is called in the error, and whose forward it is.
    """
    _refuse(objective, before, what)
    kept = [t.detach().clone() for t in objective.tensors]
    try:
        for tensor in objective.tensors:
            tensor.detach().mul_(OUTWARD)
        before = fingerprints(objective.tensors)
        with torch.no_grad(), suppress(RuntimeError, ValueError):  # outside the domain nothing is to be seen
            objective()
        _refuse(objective, before, what)
    finally:
        for tensor, was in zip(objective.tensors, kept, strict=True):
            tensor.detach().copy_(was)


def fingerprints(tensors: Sequence[Tensor]) -> list[int]:
    """The sum, modulo 2⁶⁴, of the bits of each float64 tensor: exact in any order, and no copy is kept."""
    return [int(t.detach().contiguous().view(torch.int64).sum()) for t in tensors]


def _refuse(objective: Objective, before: Sequence[int], what: str) -> None:
    now = fingerprints(objective.tensors)
    written = [n for n, a, b in zip(objective.names, before, now, strict=True) if a != b]
    if written:
        raise ValueError(
            f"{what} must not write into what is differentiated, got one that changes {', '.join(written)} in place "
            "(an embedding with max_norm called as a function, a weight clipped in the forward?); "
            "do it to the tensor before the check, and leave it out of the forward that is checked."
        )
