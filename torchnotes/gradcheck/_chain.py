"""The fast exact check of a chain of layers: perturb one unit, recompute only what follows.

Moving one weight W[j, k] by h changes one column of the layer's output, z[:, j] += h · x[:, k]. Through an elementwise
activation it is still one column, a[:, j]. The next layer's output changes by the rank-one (a' − a)[:, j] ⊗ V[:, j].
From there on everything is recomputed, for many perturbations at once: samples of all of them are rows of one matrix.
The arithmetic saved is the layers before the perturbed one and nearly all of the two around it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from torchnotes.gradcheck._objective import Cost, Objective

CACHE = 3 << 20  # bytes of activations held at once: beyond the cache the arithmetic waits for memory


@dataclass
class Call:
    """One layer's call: what went in, what came out, and what kind of map it is."""

    module: nn.Module
    x: Tensor
    y: Tensor
    kind: str = "rows"  # "linear", "elementwise", or "rows": every sample by itself


class ChainEvaluator:
    """Differences of the data cost for a model whose layers follow one another; see the module's text."""

    name = "chain"

    def __init__(
        self, objective: Objective, base: Tensor, calls: list[Call], loss: Callable[[Tensor], Tensor], memory: int
    ) -> None:
        self.objective, self.base = objective, base.detach()
        self._calls, self._loss = calls, loss
        self._size = min(memory, CACHE)
        self._place: dict[int, tuple[int, str]] = {}
        owners = {id(p): (c, n) for c, call in enumerate(calls) for n, p in call.module.named_parameters(recurse=False)}
        for t, tensor in enumerate(objective.tensors):
            self._place[t] = owners[id(tensor)]

    def delta(self, t: int, index: Tensor, step: Tensor) -> Tensor:
        """See `Evaluator.delta`."""
        c, which = self._place[t]
        widest = max(call.y.shape[1] for call in self._calls[c:])
        rows = self._calls[c].x.shape[0]
        size = max(8, self._size // (8 * rows * widest))
        with torch.no_grad():
            costs = [self._costs(c, which, i, h) for i, h in zip(index.split(size), step.split(size), strict=True)]
        self.objective.evaluations += len(index)
        change = torch.cat(costs) - self.base[0]
        return self.objective.rows[:, :1] * change

    def _costs(self, c: int, which: str, index: Tensor, step: Tensor) -> Tensor:
        """The data cost of every perturbation: (n,)."""
        call = self._calls[c]
        if which == "weight":
            n_in = call.x.shape[1]
            unit, source = index // n_in, index % n_in
            weight = _tensor(call.module.weight).reshape(-1)[index]
            taken = (weight + step) - weight
            moved = call.x[:, source] * taken  # (m, n)
        else:
            unit = index
            bias = _tensor(call.module.bias)[index]
            moved = ((bias + step) - bias).expand(call.x.shape[0], -1)
        column, c = self._elementwise(c, unit, call.y[:, unit] + moved)
        return self._rest(c, unit, column)

    def _elementwise(self, c: int, unit: Tensor, column: Tensor) -> tuple[Tensor, int]:
        """Carry the changed columns (m, n) through the activations that follow call c."""
        while c + 1 < len(self._calls) and self._calls[c + 1].kind == "elementwise":
            c += 1
            column = self._calls[c].module(column)
        return column, c

    def _rest(self, c: int, unit: Tensor, column: Tensor) -> Tensor:
        """From the changed columns of call c's output to the costs, every perturbation's samples as rows."""
        here, n = self._calls[c].y, len(unit)
        follows = self._calls[c + 1] if c + 1 < len(self._calls) else None
        if follows is not None and follows.kind == "linear":
            difference = (column - here[:, unit]).T.unsqueeze(-1)  # (n, m, 1)
            weight = _tensor(follows.module.weight).T[unit].unsqueeze(1)
            out = torch.addcmul(follows.y, difference, weight)  # (n, m, p)
            c += 1
        else:
            out = here.expand(n, *here.shape).clone()
            out[torch.arange(n, device=out.device), :, unit] = column.T
        shape = out.shape[:2]
        flat = out.reshape(-1, out.shape[-1])
        for call in self._calls[c + 1 :]:
            flat = call.module(flat)
        return self._loss(flat.view(*shape, -1)).double()


def chain_of(
    cost: Cost, objective: Objective, inputs: Any, target: Any
) -> tuple[list[Call], Callable[..., Tensor]] | None:
    """The layers of a model in the order of their calls, if each feeds only the next; else None.

    Required besides: parameters only in affine layers, each called once; samples as rows, treated independently; no
    penalty. Whether the differences then come out right is checked against the plain loop by the caller.
    """
    if cost.penalty is not None or cost.loss is None or any(True for _ in _parameters_of(cost.loss)):
        return None
    calls = _record(cost, objective, inputs)
    if calls is None or not _affine_only(calls, objective):
        return None
    with torch.no_grad():
        for call in calls:
            call.kind = _kind(call)
            if call.kind == "other":
                return None
    return calls, _batched_loss(cost, target)


def _parameters_of(loss: Any) -> list[nn.Parameter]:
    return list(loss.parameters()) if isinstance(loss, nn.Module) else []


def _record(cost: Cost, objective: Objective, inputs: Any) -> list[Call] | None:
    """The calls of all innermost modules, or None where what one returns is not what the next one takes."""
    calls: list[Call] = []
    broken = False

    def note(module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        nonlocal broken
        one = len(args) == 1 and isinstance(args[0], Tensor) and isinstance(out, Tensor) and args[0].dim() == 2
        if not one or out.dim() != 2 or (calls and args[0] is not calls[-1].y):
            broken = True
            return
        calls.append(Call(module, args[0], out))

    handles = [m.register_forward_hook(note) for m in cost.model.modules() if not list(m.children())]
    final: list[Any] = []
    handles.append(cost.model.register_forward_hook(lambda _m, _a, out: final.append(out)))
    try:
        with torch.no_grad():
            objective()
    finally:
        for handle in handles:
            handle.remove()
    if broken or not calls or len(final) != 1 or final[0] is not calls[-1].y:
        return None
    return calls


def _affine_only(calls: list[Call], objective: Objective) -> bool:
    with_parameters = [c.module for c in calls if list(c.module.parameters())]
    if len({id(m) for m in with_parameters}) != len(with_parameters):
        return False
    owned = [p for m in with_parameters for p in m.parameters(recurse=False)]
    distinct = len({id(p) for p in owned}) == len(owned)
    return distinct and {id(t) for t in objective.tensors} <= {id(p) for p in owned}


def _kind(call: Call) -> str:
    """What kind of map a call is, by trying it; "other" if samples are mixed or it is not the same twice."""
    module, x, y = call.module, call.x, call.y
    names = {n for n, _ in module.named_parameters(recurse=False)}
    if names:
        weight = getattr(module, "weight", None)
        if not names <= {"weight", "bias"} or weight is None or weight.dim() != 2 or weight.shape[1] != x.shape[1]:
            return "other"
        bias = getattr(module, "bias", None)
        affine = x @ weight.T + (0.0 if bias is None else bias)
        return "linear" if _close(affine, y) else "other"
    half = max(1, len(x) // 2)
    if not (
        _close(module(x), y) and _close(module(x[:half]), y[:half]) and _close(module(x.repeat(2, 1))[len(x) :], y)
    ):
        return "other"
    try:
        alone = module(x[:, :1])
    except (RuntimeError, ValueError):
        return "rows"
    if y.shape == x.shape and _close(alone, y[:, :1]) and _close(module(x.flip(1)), y.flip(1)):
        return "elementwise"
    return "rows"


def _tensor(value: object) -> Tensor:
    assert isinstance(value, Tensor)
    return value.detach()


def _close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(torch.allclose(a, b, rtol=1e-12, atol=1e-14))


def _batched_loss(cost: Cost, target: Any) -> Callable[[Tensor], Tensor]:
    """The loss of many outputs at once: (n, m, p) -> (n,)."""
    assert cost.loss is not None
    loss = cost.loss

    def one(output: Tensor) -> Tensor:
        return (loss(output) if target is None else loss(output, target)).reshape(())

    together = torch.vmap(one)
    works: list[bool] = []

    def every(outputs: Tensor) -> Tensor:
        if not works:
            try:
                together(outputs[:2])
                works.append(True)
            except (RuntimeError, ValueError, NotImplementedError):
                works.append(False)
        return together(outputs) if works[0] else torch.stack([one(o) for o in outputs])

    return every
