"""The fast exact check of a chain of layers: perturb one unit, recompute only what follows.

Moving one weight W[j, k] by h changes one column of the layer's output, z[:, j] += h · x[:, k]. Through an elementwise
activation it is still one column, a[:, j]. The next layer's output changes by the rank-one (a' − a)[:, j] ⊗ V[:, j].
From there on everything is recomputed, for many perturbations at once: samples of all of them are rows of one matrix.
The arithmetic saved is the layers before the perturbed one and nearly all of the two around it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from torchnotes.gradcheck._evaluate import Evaluator
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
    """Differences of the cost for a model whose layers follow one another; see the module's text.

    Args:
        objective: what is evaluated.
        base: y at θ: the data cost, and the penalty where there is one.
        calls: the layers.
        loss: the data cost of many outputs at once: (n, m, p) -> (n,).
        memory: bytes that perturbations taken together may hold.
        penalty: the differences of the penalty alone, which does not go through the layers.
    """

    name = "chain"

    def __init__(
        self,
        objective: Objective,
        base: Tensor,
        calls: list[Call],
        loss: Callable[[Tensor], Tensor],
        memory: int,
        penalty: Evaluator | None = None,
    ) -> None:
        self.objective, self.base = objective, base.detach()
        self._calls, self._loss, self._penalty = calls, loss, penalty
        self._size = min(memory, CACHE)
        self._place: dict[int, tuple[int, str]] = {}
        self._turned: dict[int, Tensor] = {}
        self._room = torch.empty(0)
        owners = {id(p): (c, n) for c, call in enumerate(calls) for n, p in call.module.named_parameters(recurse=False)}
        for t, tensor in enumerate(objective.tensors):
            self._place[t] = owners[id(tensor)]

    def delta(self, t: int, index: Tensor, step: Tensor) -> Tensor:
        """See `Evaluator.delta`."""
        c, which = self._place[t]
        widest = max(call.y.shape[1] for call in self._calls[c + 1 :] or self._calls[c:])
        rows = self._calls[c].x.shape[0]
        size = max(8, self._size // (8 * rows * widest))
        with torch.no_grad():
            costs = [self._costs(c, which, i, h) for i, h in zip(index.split(size), step.split(size), strict=True)]
        self.objective.evaluations += len(index)
        change = torch.cat(costs) - self.base[0]
        total = self.objective.rows[:, :1] * change
        if self._penalty is not None:
            total += self.objective.rows[:, 1:] * self._penalty.delta(t, index, step)
        return total

    def _costs(self, c: int, which: str, index: Tensor, step: Tensor) -> Tensor:
        """The data cost of every perturbation: (n,)."""
        call = self._calls[c]
        if which == "weight":
            n_in = call.x.shape[1]
            unit, source = index // n_in, index % n_in
            weight = _tensor(call.module.weight).reshape(-1)[index]
            taken = (weight + step) - weight
            moved = self._transpose(call.x)[source].mul_(taken.unsqueeze(1))  # (n, m)
        else:
            unit = index
            bias = _tensor(call.module.bias)[index]
            moved = ((bias + step) - bias).unsqueeze(1)
        column, c = self._elementwise(c, self._transpose(call.y)[unit].add_(moved))
        return self._rest(c, unit, column)

    def _transpose(self, x: Tensor) -> Tensor:
        """X with a row for each unit, computed once."""
        if id(x) not in self._turned:
            self._turned[id(x)] = x.T.contiguous()
        return self._turned[id(x)]

    def _elementwise(self, c: int, column: Tensor) -> tuple[Tensor, int]:
        """Carry the changed columns, as rows (n, m), through the activations that follow call c."""
        while c + 1 < len(self._calls) and self._calls[c + 1].kind == "elementwise":
            c += 1
            column = self._calls[c].module(column)
        return column, c

    def _rest(self, c: int, unit: Tensor, column: Tensor) -> Tensor:
        """From the changed columns of call c's output to the costs, every perturbation's samples as rows."""
        here, n = self._calls[c].y, len(unit)
        follows = self._calls[c + 1] if c + 1 < len(self._calls) else None
        out = self._buffer(n, (here if follows is None or follows.kind != "linear" else follows.y).shape)
        if follows is not None and follows.kind == "linear":
            difference = (column - self._transpose(here)[unit]).unsqueeze(-1)  # (n, m, 1)
            weight = _tensor(follows.module.weight).T[unit].unsqueeze(1)
            torch.addcmul(follows.y, difference, weight, out=out)  # (n, m, p)
            c += 1
        else:
            out.copy_(here)
            out.scatter_(2, unit.view(-1, 1, 1).expand(-1, len(here), 1), column.unsqueeze(-1))
        flat = out.view(-1, out.shape[-1])
        for call in self._calls[c + 1 :]:
            flat = call.module(flat)
        return self._loss(flat.view(n, len(here), -1)).double()

    def _buffer(self, n: int, shape: torch.Size) -> Tensor:
        """Room for n copies of a layer's output, the same memory every time: it stays in the cache."""
        count = n * shape.numel()
        if self._room.numel() < count:
            self._room = self.base.new_empty(count)
        return self._room[:count].view(n, *shape)


def chain_of(
    cost: Cost, objective: Objective, inputs: Any, target: Any
) -> tuple[list[Call], Callable[..., Tensor]] | None:
    """The layers of a model in the order of their calls, if each feeds only the next; else None.

    Required besides: parameters only in affine layers, each called once; samples as rows, treated independently.
    Whether the differences then come out right is checked against the plain loop by the caller.
    """
    if cost.loss is None or any(True for _ in _parameters_of(cost.loss)):
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
    """The loss of many outputs at once: (n, m, p) -> (n,); the fastest way that gives what the loss gives."""
    loss = cost.loss
    assert loss is not None

    def one(output: Tensor) -> Tensor:
        return (loss(output) if target is None else loss(output, target)).reshape(())

    def loop(outputs: Tensor) -> Tensor:
        return torch.stack([one(o) for o in outputs])

    ways: list[Callable[[Tensor], Tensor]] = [w for w in (_by_rows(loss, target), torch.vmap(one)) if w is not None]
    chosen: list[Callable[[Tensor], Tensor]] = []

    def every(outputs: Tensor) -> Tensor:
        if not chosen:
            chosen.append(next((w for w in ways if _same_loss(w, loop, outputs[:3])), loop))
        return chosen[0](outputs)

    return every


def _same_loss(way: Callable[[Tensor], Tensor], loop: Callable[[Tensor], Tensor], outputs: Tensor) -> bool:
    """Whether a faster way gives the loss, at outputs and at others nearby that no sample shares."""
    ripple = 1 + 0.1 * torch.sin(torch.arange(outputs.numel(), dtype=outputs.dtype, device=outputs.device))
    try:
        return all(_close(way(o), loop(o)) for o in (outputs, outputs * ripple.view_as(outputs)))
    except (RuntimeError, ValueError, TypeError, NotImplementedError):
        return False


def _by_rows(loss: Any, target: Any) -> Callable[[Tensor], Tensor] | None:
    """The loss with ``reduction="none"`` over all samples of all outputs as one batch, then averaged or summed.

    For losses that know that keyword or attribute, as PyTorch's do.
    """
    if not isinstance(target, Tensor) or not target.dim():
        return None
    if isinstance(loss, nn.Module):
        if getattr(loss, "reduction", "none") == "none":
            return None
        single: Callable[..., Tensor] = copy.copy(loss)
        single.reduction = "none"  # type: ignore[attr-defined]
    else:
        single = partial(loss, reduction="none")
    targets: dict[int, Tensor] = {}

    def by_rows(outputs: Tensor) -> Tensor:
        n = len(outputs)
        if n not in targets:
            targets.clear()
            targets[n] = target.repeat(n, *[1] * (target.dim() - 1))
        each = single(outputs.flatten(0, 1), targets[n]).view(n, -1)
        return each.sum(1) if summed else each.mean(1)

    summed = getattr(loss, "reduction", "mean") == "sum"
    return by_rows
