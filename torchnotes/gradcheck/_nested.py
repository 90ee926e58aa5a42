"""The contracts of custom Functions deep inside what is checked, each at its own node of the graph.

What arrives at an inner Function's backward is what the operations after it make of the cotangent: often contiguous,
often of one sign. The Function may be used elsewhere, so its backward is called here by itself, on the graph at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

CONTIGUOUS = "a {} grad_output changes the gradient: contiguous memory is assumed"
Grads = list["Tensor | None"]
Distance = Callable[[Sequence[Tensor], Sequence[Tensor]], float]


def custom_nodes(outputs: Sequence[Tensor]) -> list[Any]:
    """The nodes of user-written autograd Functions behind some outputs."""
    stack: list[Any] = [o.grad_fn for o in outputs]
    seen: set[Any] = set()
    found = []
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(node, torch._C._FunctionBase):
            found.append(node)
        stack.extend(n for n, _ in node.next_functions)
    return found


def inner_nodes(nodes: Sequence[Any], outputs: Sequence[Tensor]) -> list[Any]:
    """Those that are not the last operation before an output, and not PyTorch's own (checkpointing, compiled code)."""
    last = {o.grad_fn for o in outputs}
    return [n for n in nodes if n not in last and not _home(n).startswith("torch.")]


def _home(node: Any) -> str:
    return str(getattr(getattr(node, "_forward_cls", None), "__module__", ""))


def arriving(nodes: Sequence[Any], pull: Callable[[], object]) -> list[Grads]:
    """The cotangent that each node is given in one backward pass; empty for a node that is not reached."""
    seen: list[Grads] = [[] for _ in nodes]

    def keep(grads: Sequence[Tensor | None], mine: Grads) -> None:
        mine[:] = [None if g is None else g.detach().clone() for g in grads]

    handles = [
        n.register_prehook(lambda grads, mine=mine: keep(grads, mine)) for n, mine in zip(nodes, seen, strict=True)
    ]
    try:
        pull()
    finally:
        for handle in handles:
            handle.remove()
    return seen


def complaint_of(node: Any, given: Grads, random_like: Callable[[Tensor], Tensor], apart: Distance, most: float) -> str:
    """What one Function's backward does that a linear map of the cotangent's values cannot; empty if nothing.

    Args:
        node: the Function's node.
        given: the cotangent it was seen to get.
        random_like: draws a cotangent.
        apart: the distance of two lists of gradients, relative to their size.
        most: the largest distance that round-off explains.
    """

    def call(grads: Grads) -> list[Tensor]:
        with torch.no_grad():
            out = node.apply(*grads)
        return [o for o in (out if isinstance(out, tuple) else (out,)) if isinstance(o, Tensor)]

    given = _materialised(node, given)
    u, v = ([None if g is None else random_like(g) for g in given] for _ in range(2))
    kept = [None if g is None else g.clone() for g in u]
    try:
        first = call(u)
    except Exception:  # it lives on what only the engine provides: not judged
        return ""
    if any(a is not None and b is not None and not torch.equal(a, b) for a, b in zip(u, kept, strict=True)):
        return "it modifies grad_output in place"
    ones = call([None if a is None else torch.ones_like(a) for a in u])
    tests: tuple[tuple[str, Grads, list[Tensor]], ...] = (
        ("called twice it gives two results", u, first),
        ("it is not linear in the cotangent", [_add(a, b) for a, b in zip(u, v, strict=True)], _added(first, call(v))),
        ("it does not change sign with the cotangent", [_laid(a, torch.neg) for a in u], [-g for g in first]),
        (CONTIGUOUS.format("strided"), [_laid(a, strided) for a in u], first),
        (CONTIGUOUS.format("transposed"), [_laid(a, transposed) for a in u], first),
        (CONTIGUOUS.format("expanded"), [_laid(a, _expanded) for a in u], ones),
    )
    return next((says for says, grads, want in tests if apart(call(grads), want) > most), "")


def _materialised(node: Any, given: Grads) -> Grads:
    """Zeros for the outputs that no cotangent reached, where the Function asks for them, as the engine would."""
    if not getattr(node, "materialize_grads", True):
        return given
    metadata = node._input_metadata
    return [
        torch.zeros(tuple(m.shape), dtype=m.dtype, device=m.device) if g is None else g
        for g, m in zip(given, metadata, strict=True)
    ]


def _laid(c: Tensor | None, how: Callable[[Tensor], Tensor]) -> Tensor | None:
    return None if c is None else how(c)


def _expanded(c: Tensor) -> Tensor:
    return c.new_ones(()).expand(c.shape)


def _add(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return None if a is None or b is None else a + b


def _added(a: Sequence[Tensor], b: Sequence[Tensor]) -> list[Tensor]:
    return [x + y for x, y in zip(a, b, strict=True)]


def strided(c: Tensor) -> Tensor:
    """Every second element of a twice as long tensor, whose other elements are NaN."""
    wide = torch.full((*c.shape, 2), torch.nan, dtype=c.dtype, device=c.device)
    wide[..., 0] = c
    return wide[..., 0]


def transposed(c: Tensor) -> Tensor:
    """The same values with the first axis the fastest in memory."""
    return c if c.dim() < 2 else c.transpose(0, -1).contiguous().transpose(0, -1)
