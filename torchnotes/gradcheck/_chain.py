"""The fast exact check of a chain of layers: perturb one unit, recompute only what follows.

Moving one weight W[j, k] by h changes one column of the layer's output, z[:, j] += h · x[:, k]. Through an elementwise
activation it is still one column, a[:, j]. The next layer's output changes by the rank-one (a' − a)[:, j] ⊗ V[:, j].
From there on everything is recomputed, for many perturbations at once: samples of all of them are rows of one matrix.
The arithmetic saved is the layers before the perturbed one and nearly all of the two around it.

Where all weights of a layer are asked for at one step, even that is done for a few shifts of each unit only, and all
weights that shift it read their differences there: see `_curves`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from torchnotes.gradcheck._curves import POINTS, Curves, Fit
from torchnotes.gradcheck._evaluate import Evaluator, LoopEvaluator, taken
from torchnotes.gradcheck._losses import ManyLosses, close
from torchnotes.gradcheck._objective import ULP, Cost, Objective

WORTH_SKIPPING = 0.2  # share of exact zeros in a layer's input from which grouping by input unit pays
WORTH_SHARING = 16  # weights of one unit from which its curve, at about ten shifts, is less work than each by itself
SPOTS = 2  # entries of every block of curves, on both sides, that are held to the plain loop
SPOT_SIGMAS = 16.0
MOST_FITS = 8  # blocks of curves kept, each a twentieth of the memory allowed
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
        loss: the data cost of many outputs at once.
        memory: bytes that perturbations taken together may hold.
        penalty: the differences of the penalty alone, which does not go through the layers.
    """

    name = "chain"

    def __init__(
        self,
        objective: Objective,
        base: Tensor,
        calls: list[Call],
        loss: ManyLosses,
        memory: int,
        penalty: Evaluator | None = None,
    ) -> None:
        self.objective, self.base = objective, base.detach()
        self._calls, self._loss, self._penalty = calls, loss, penalty
        self._size = min(memory, CACHE)
        self._place: dict[int, tuple[int, str]] = {}
        self._transposed: dict[int, Tensor] = {}
        self._zeros: dict[int, float] = {}
        self._room = torch.empty(0)
        self._curves: dict[int, Curves] = {}
        self._fits: dict[tuple[int, float, int], Fit | None] = {}
        self._memory, self._spots = memory, torch.Generator().manual_seed(0)
        self._loop = LoopEvaluator(objective, base)
        owners = {id(p): (c, n) for c, call in enumerate(calls) for n, p in call.module.named_parameters(recurse=False)}
        for t, tensor in enumerate(objective.tensors):
            self._place[t] = owners[id(tensor)]

    def delta(self, t: int, index: Tensor, step: Tensor) -> Tensor:
        """See `Evaluator.delta`."""
        c, which = self._place[t]
        with torch.no_grad():
            change = (self._by_curves if self._shared(c, which, index, step) else self._directly)(c, which, index, step)
        self.objective.evaluations += len(index)
        total = self.objective.rows[:, :1] * change
        if self._penalty is not None:
            total += self.objective.rows[:, 1:] * self._penalty.delta(t, index, step)
        return total

    def _directly(self, c: int, which: str, index: Tensor, step: Tensor) -> Tensor:
        """The change of the data cost by every perturbation, each evaluated: (n,)."""
        run = self._by_source if which == "weight" and self._sparse(c) else self._in_order
        return run(c, which, index, step) - self.base[0]

    def _shared(self, c: int, which: str, index: Tensor, step: Tensor) -> bool:
        """Whether so many weights of each unit are moved, all equally far, that its curve is worth measuring."""
        n_in = self._calls[c].x.shape[1]
        return (
            which == "weight"
            and n_in >= WORTH_SHARING
            and len(index) >= n_in
            and bool((step.abs() == step[0].abs()).all() & (step[0] != 0))
            and self._loss.separable
        )

    def _by_curves(self, c: int, which: str, index: Tensor, step: Tensor) -> Tensor:
        """The same, read off the curves of the units; where these are not smooth, evaluated."""
        block = index // self._calls[c].x.shape[1] // self._block(c)
        change = torch.zeros_like(step)
        for number in block.unique().tolist():
            here = (block == number).nonzero().view(-1)
            fit = self._fitted(c, float(step[0].abs()), number)
            if fit is None:
                change[here] = self._directly(c, which, index[here], step[here])
            else:
                change[here] = self._read(c, fit, number, index[here], step[here])
        return (self.base[0] + change) - self.base[0]  # a cost is a float64 number on either side, as in the plain loop

    def _read(self, c: int, fit: Fit, block: int, index: Tensor, step: Tensor) -> Tensor:
        """The change by perturbations of one block's weights: smooth curves read, the samples of others evaluated."""
        n_in = self._calls[c].x.shape[1]
        unit, source = index // n_in - block * self._block(c), index % n_in
        fraction = self._taken(c, "weight", index, step) / step[0].abs()
        change = self._curves[c].read(fit, unit, source, fraction)
        for u in fit.rough.any(1).nonzero().view(-1).tolist():
            rows, of_unit = fit.rough[u].nonzero().view(-1), (unit == u).nonzero().view(-1)
            for some in of_unit.split(self._at_once(c, len(rows))):
                if len(some):
                    change[some] += self._costs(c, "weight", index[some], step[some], rows) - self.base[0]
        return change

    def _block(self, c: int) -> int:
        """Units whose curves are kept together."""
        return max(8, self._memory // (256 * len(POINTS) * max(len(self._calls[c].x), 1)))

    def _fitted(self, c: int, h: float, block: int) -> Fit | None:
        """The curves of a block of units, once they agree with the plain loop; None if they are of no use."""
        key = (c, h, block)
        if key not in self._fits:
            if c not in self._curves:
                self._curves[c] = Curves(lambda unit, shift: self._terms(c, unit, shift), self._calls[c].x)
            if len(self._fits) >= MOST_FITS or any(k[0] != c for k in self._fits):
                self._fits.clear()
            size = self._block(c)
            units = torch.arange(self._calls[c].y.shape[1], device=self.base.device)[block * size :][:size]
            fit = self._curves[c].fit(units, h)
            self._fits[key] = None if fit.useless or not self._spot_on(c, h, block, fit) else fit
        return self._fits[key]

    def _spot_on(self, c: int, h: float, block: int, fit: Fit) -> bool:
        """Whether curves give the plain loop's differences at this very step, to the round-off of either."""
        tensor = _tensor(self._calls[c].module.weight)
        first = block * self._block(c) * tensor.shape[1]
        some = torch.randint(fit.rough.shape[0] * tensor.shape[1], (SPOTS,), generator=self._spots)
        index = first + some.to(tensor.device).repeat(2)
        step = torch.full_like(index, h, dtype=torch.float64)
        step[SPOTS:] *= -1
        got = self._read(c, fit, block, index, step)
        want = [self._loop.at(tensor, i, s)[0] for i, s in zip(index.tolist(), step.tolist(), strict=True)]
        slack = SPOT_SIGMAS * torch.hypot(fit.noise.norm(), ULP * self.base[0])
        return bool(((got - torch.stack(want)).abs() <= slack + 1e-9 * got.abs()).all())

    def _terms(self, c: int, unit: Tensor, shift: Tensor) -> Tensor:
        """Every sample's term of the data cost, with unit[n] of call c's output shifted by shift[n, s]: (n, m)."""
        size = self._at_once(c, shift.shape[1])
        parts = []
        for j, d in zip(unit.split(size), shift.split(size), strict=True):
            column, last = self._elementwise(c, self._turned(self._calls[c].y, None)[j].add_(d))
            parts.append(self._loss.terms(self._outputs(last, j, column, None)))
        return torch.cat(parts)

    def _at_once(self, c: int, rows: int) -> int:
        widest = max(call.y.shape[1] for call in self._calls[c + 1 :] or self._calls[c:])
        return max(8, self._size // (8 * max(rows, 1) * widest))

    def _in_order(self, c: int, which: str, index: Tensor, step: Tensor) -> Tensor:
        """The data cost of every perturbation, all samples computed again: (n,)."""
        size = self._at_once(c, len(self._calls[c].x))
        return torch.cat(
            [self._costs(c, which, i, h) for i, h in zip(index.split(size), step.split(size), strict=True)]
        )

    def _sparse(self, c: int) -> bool:
        """Whether enough of a layer's inputs are exactly 0: W[j, k] does nothing to the samples where x[:, k] is."""
        x = self._calls[c].x
        if id(x) not in self._zeros:
            self._zeros[id(x)] = float((x == 0).double().mean())
        return self._zeros[id(x)] >= WORTH_SKIPPING

    def _by_source(self, c: int, which: str, index: Tensor, step: Tensor) -> Tensor:
        """The same, for each input unit in turn, over the samples in which it is not 0."""
        x = self._calls[c].x
        source = index % x.shape[1]
        costs = self.base[:1].expand(len(index)).clone()
        for k in source.unique().tolist():
            rows = x[:, k].nonzero().view(-1)
            here = (source == k).nonzero().view(-1)
            for some in here.split(self._at_once(c, len(rows))) if len(rows) else ():
                costs[some] = self._costs(c, which, index[some], step[some], rows)
        return costs

    def _costs(self, c: int, which: str, index: Tensor, step: Tensor, rows: Tensor | None = None) -> Tensor:
        """The data cost of every perturbation, where only some rows (samples) change by it: (n,)."""
        call = self._calls[c]
        if which == "weight":
            n_in = call.x.shape[1]
            unit, source = index // n_in, index % n_in
            moved = self._turned(call.x, rows)[source].mul_(self._taken(c, which, index, step).unsqueeze(1))  # (n, m)
        else:
            unit = index
            moved = self._taken(c, which, index, step).unsqueeze(1)
        column, c = self._elementwise(c, self._turned(call.y, rows)[unit].add_(moved))
        outputs = self._outputs(c, unit, column, rows)
        return (self._loss(outputs) if rows is None else self._loss.where(rows, outputs)).double()

    def _taken(self, c: int, which: str, index: Tensor, step: Tensor) -> Tensor:
        return taken(_tensor(getattr(self._calls[c].module, which)), index, step)

    def _turned(self, x: Tensor, rows: Tensor | None) -> Tensor:
        """X with a row for each unit, the whole of it computed once."""
        if id(x) not in self._transposed:
            self._transposed[id(x)] = x.T.contiguous()
        whole = self._transposed[id(x)]
        return whole if rows is None else whole[:, rows]

    def _elementwise(self, c: int, column: Tensor) -> tuple[Tensor, int]:
        """Carry the changed columns, as rows (n, m), through the activations that follow call c."""
        while c + 1 < len(self._calls) and self._calls[c + 1].kind == "elementwise":
            c += 1
            column = self._calls[c].module(column)
        return column, c

    def _outputs(self, c: int, unit: Tensor, column: Tensor, rows: Tensor | None) -> Tensor:
        """From the changed columns of call c's output to the model's, the samples of all as rows: (n, m, width)."""
        n, m = column.shape
        follows = self._calls[c + 1] if c + 1 < len(self._calls) else None
        linear = follows is not None and follows.kind == "linear"
        base = (follows if follows is not None and linear else self._calls[c]).y
        base = base if rows is None else base[rows]
        out = self._buffer(n, base.shape)
        if follows is not None and linear:
            difference = column.sub_(self._turned(self._calls[c].y, rows)[unit]).unsqueeze(-1)  # (n, m, 1)
            torch.addcmul(base, difference, _tensor(follows.module.weight).T[unit].unsqueeze(1), out=out)  # (n, m, p)
            c += 1
        else:
            out.copy_(base)
            out.scatter_(2, unit.view(-1, 1, 1).expand(-1, m, 1), column.unsqueeze(-1))
        flat = out.view(-1, out.shape[-1])
        for call in self._calls[c + 1 :]:
            flat = call.module(flat)
        return flat.view(n, m, -1)

    def _buffer(self, n: int, shape: torch.Size) -> Tensor:
        """Room for n copies of a layer's output, the same memory every time: it stays in the cache."""
        count = n * shape.numel()
        if self._room.numel() < count:
            self._room = self.base.new_empty(count)
        return self._room[:count].view(n, *shape)


def chain_of(cost: Cost, objective: Objective, inputs: Any, target: Any) -> tuple[list[Call], ManyLosses] | None:
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
    return calls, ManyLosses(cost.loss, target, calls[-1].y)


def _parameters_of(loss: Any) -> list[nn.Parameter]:
    return list(loss.parameters()) if isinstance(loss, nn.Module) else []


def _record(cost: Cost, objective: Objective, inputs: Any) -> list[Call] | None:
    """The calls of all innermost modules, or None where what one returns is not what the next one takes."""
    calls: list[Call] = []
    broken = False

    def note(module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        nonlocal broken
        if torch.compiler.is_compiling():  # within torch.cond or compiled code, which take no notes
            return
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
        return "linear" if close(affine, y) else "other"
    half = max(1, len(x) // 2)
    if not (close(module(x), y) and close(module(x[:half]), y[:half]) and close(module(x.repeat(2, 1))[len(x) :], y)):
        return "other"
    try:
        alone = module(x[:, :1])
    except (RuntimeError, ValueError):
        return "rows"
    if y.shape == x.shape and close(alone, y[:, :1]) and close(module(x.flip(1)), y.flip(1)):
        return "elementwise"
    return "rows"


def _tensor(value: object) -> Tensor:
    assert isinstance(value, Tensor)
    return value.detach()
