"""Many perturbed evaluations at once by ``torch.vmap``, for functions that are not a chain of layers."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from torchnotes.gradcheck._evaluate import Evaluator, LoopEvaluator, outside_domain
from torchnotes.gradcheck._objective import Cost, Objective
from torchnotes.gradcheck._subject import slots_of

Batch = Callable[[int, Tensor], Tensor]
"""(which tensor, its perturbed values stacked) -> y of each: (batch, observables)."""


class BatchEvaluator:
    """Evaluates y for a stack of copies of one tensor, each with one entry moved.

    Args:
        objective: what is evaluated.
        base: y at θ.
        batch: evaluates the stack.
        memory: bytes that one stack, with what is computed from it, may take.
        footprint: bytes that one evaluation takes beside the tensor itself.

    Attributes:
        trusted: set once the batch was seen to work: an error then means a point outside f's domain.
    """

    name = "vmap"

    def __init__(self, objective: Objective, base: Tensor, batch: Batch, memory: int, footprint: int) -> None:
        self.objective, self.base = objective, base.detach()
        self._batch, self._memory, self._footprint = batch, memory, footprint
        self.trusted = False

    def delta(self, t: int, index: Tensor, step: Tensor) -> Tensor:
        """See `Evaluator.delta`."""
        tensor = self.objective.tensors[t].detach()
        each = tensor.numel() * tensor.element_size() + self._footprint
        size = max(1, min(512, self._memory // (4 * each)))
        parts = [self._some(t, tensor, i, h) for i, h in zip(index.split(size), step.split(size), strict=True)]
        return self.objective.rows @ torch.cat(parts).T

    def _some(self, t: int, tensor: Tensor, index: Tensor, step: Tensor) -> Tensor:
        self.objective.random.replay()
        stack = tensor.reshape(1, -1).repeat(len(index), 1)
        stack[torch.arange(len(index), device=tensor.device), index] += step
        self.objective.evaluations += len(index)
        try:
            with torch.no_grad(), warnings.catch_warnings():
                # An operation that vmap takes one by one is as right, and no news to a suite that fails on warnings.
                warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
                return self._batch(t, stack.view(-1, *tensor.shape)).double() - self.base
        except (RuntimeError, ValueError) as error:
            if not self.trusted:
                raise
            if len(index) == 1:
                return outside_domain(self.base, error, self.objective)[None]
            half = len(index) // 2  # one of them lies outside f's domain: find it
            return torch.cat(
                [self._some(t, tensor, index[:half], step[:half]), self._some(t, tensor, index[half:], step[half:])]
            )


def model_batch(cost: Cost, objective: Objective, inputs: object, target: object) -> Batch:
    """The whole cost of a model, over a stack of values of one parameter.

    Buffers that a call writes to, such as running means, are given to every copy anew.
    """
    by_identity = {id(p): n for n, p in cost.named_parameters()}
    keys = [by_identity[id(p)] for p in objective.tensors]
    slots = slots_of(cost)
    names = [n for n, _ in cost.named_buffers()]
    written = {names[k]: value for k, value in objective.written_buffers()}

    def batch(t: int, stack: Tensor) -> Tensor:
        def one(value: Tensor, buffers: dict[str, Tensor]) -> Tensor:
            own = {slot: v for name, v in [(keys[t], value), *buffers.items()] for slot in slots[name]}
            y: Tensor = functional_call(cost, own, (inputs, target), tie_weights=False)
            return y

        own = {name: value.expand(len(stack), *value.shape).clone() for name, value in written.items()}
        out: Tensor = torch.vmap(one, randomness="same")(stack, own)
        return out

    return batch


class _PenaltyOnly(nn.Module):
    def __init__(self, cost: Cost) -> None:
        super().__init__()
        self.cost = cost

    def forward(self) -> Tensor:
        return self.cost.penalty_cost().double().reshape(1)


def penalty_batch(cost: Cost, objective: Objective) -> Batch:
    """The penalty alone, over a stack of values of one parameter."""
    alone = _PenaltyOnly(cost)
    slots = slots_of(alone)
    by_identity = {id(p): n for n, p in alone.named_parameters()}
    keys = [by_identity[id(p)] for p in objective.tensors]

    def batch(t: int, stack: Tensor) -> Tensor:
        def one(value: Tensor) -> Tensor:
            y: Tensor = functional_call(alone, dict.fromkeys(slots[keys[t]], value), (), tie_weights=False)
            return y

        out: Tensor = torch.vmap(one, randomness="same")(stack)
        return out

    return batch


def function_batch(flat: Callable[[Sequence[Tensor]], Tensor], values: Sequence[Tensor]) -> Batch:
    """A function's joined outputs, over a stack of values of one input."""
    detached = [v.detach() for v in values]

    def batch(t: int, stack: Tensor) -> Tensor:
        def one(value: Tensor) -> Tensor:
            return flat([*detached[:t], value, *detached[t + 1 :]])

        out: Tensor = torch.vmap(one, randomness="same")(stack)
        return out

    return batch


PROBES = 3
PROBE_STEP = 2.0**-10


def agrees(fast: Evaluator, loop: LoopEvaluator, generator: torch.Generator) -> bool:
    """Whether a fast evaluator gives the plain loop's differences, to round-off, at a few entries of every tensor."""
    rows, base = loop.objective.rows, loop.base
    slack = 2.0**-46 * ((rows * base).abs().sum(1, keepdim=True))
    for t, tensor in enumerate(loop.objective.tensors):
        if not tensor.numel():
            continue
        index = torch.randint(tensor.numel(), (PROBES,), generator=generator).to(tensor.device)
        step = torch.full((PROBES,), PROBE_STEP, dtype=torch.float64, device=tensor.device)
        try:
            got = fast.delta(t, index, step)
        except (RuntimeError, ValueError, TypeError, NotImplementedError, IndexError, AssertionError, AttributeError):
            return False
        want = loop.delta(t, index, step)
        if got.shape != want.shape or not bool(((got - want).abs() <= slack + 1e-9 * want.abs()).all()):
            return False
    if isinstance(fast, BatchEvaluator):
        fast.trusted = True
    return True
