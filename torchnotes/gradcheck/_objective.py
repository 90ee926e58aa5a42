"""The function that is checked: a vector of observables y(θ), evaluated under frozen randomness."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointFunction

from torchnotes._checks import describe
from torchnotes.gradcheck._nested import custom_nodes
from torchnotes.gradcheck._state import RandomStates, evaluated, module_generators

ULP = 2.0**-53
Loss = Callable[..., Tensor]
Penalty = Callable[[nn.Module], Tensor]


class Objective:
    """y(θ) with θ as a list of named float64 tensors that are changed in place.

    Attributes:
        names: the name of each tensor of θ.
        tensors: the tensors themselves, leaves that require grad.
        rows: the directions V in which y is read: cost k is V[k] · y.
        row_names: what each cost is called.
        random: the generator states replayed before every evaluation.
        unit: relative round-off of one evaluation at least: half the spacing of float64, or of what it drops to.
    """

    def __init__(
        self,
        names: Sequence[str],
        tensors: Sequence[Tensor],
        compute: Callable[[], Tensor],
        random: RandomStates,
        model: nn.Module | None = None,
    ) -> None:
        self.names, self.tensors, self.random = list(names), list(tensors), random
        self.row_names: list[str] = []
        self.rows = torch.empty(0)
        self.evaluations = 0
        self.unit = ULP
        self._compute = compute
        self._buffers = [] if model is None else list(model.buffers())
        self._slots = (
            [] if model is None else [(m._buffers, n, b) for m in model.modules() for n, b in m._buffers.items()]
        )
        self._buffer_values = [b.detach().clone() for b in self._buffers]
        self._moving: list[int] | None = None

    def __call__(self) -> Tensor:
        """Evaluate y at the present θ, a vector; the generators and buffers are first set back to where they were."""
        self.evaluations += 1
        y: Tensor = evaluated(self._from_the_start)
        return y

    def _from_the_start(self) -> Tensor:
        self.random.replay()
        self._reset_buffers()
        return self._compute()

    def _reset_buffers(self) -> None:
        for slots, name, buffer in self._slots:
            if slots[name] is not buffer:  # a call may have put another one in its place
                slots[name] = buffer
        moving = range(len(self._buffers)) if self._moving is None else self._moving
        with torch.no_grad():
            for k in moving:
                self._buffers[k].copy_(self._buffer_values[k])

    def prepare(self) -> tuple[Tensor, bool]:
        """Evaluate once with a graph, learning which buffers and generators an evaluation moves.

        Returns:
            y, and whether random numbers were drawn.
        """
        y = self()
        drawn = self.random.learn()
        replaced = {id(b) for slots, name, b in self._slots if slots[name] is not b}
        self._moving = [
            k for k, b in enumerate(self._buffers) if id(b) in replaced or not torch.equal(b, self._buffer_values[k])
        ]
        return y, drawn

    def written_buffers(self) -> list[tuple[int, Tensor]]:
        """The places of the buffers that an evaluation moves, with the values that every evaluation starts from."""
        return [(k, self._buffer_values[k]) for k in self._moving or []]

    def gradients(self) -> list[tuple[Tensor | None, ...]]:
        """The gradient of every cost V[k] · y with respect to every tensor, as autograd has it.

        On a fresh graph: resetting a buffer, such as a running mean, invalidates every graph that saved it.
        """
        y = self()
        if not y.requires_grad:
            return [tuple(None for _ in self.tensors) for _ in self.rows]
        checkpointed = any(getattr(node, "_forward_cls", None) is CheckpointFunction for node in custom_nodes([y]))
        found: list[tuple[Tensor | None, ...]] = []
        for k, row in enumerate(self.rows):
            if checkpointed:
                found.append(self._by_backward(row))
                continue
            more = k + 1 < len(self.rows)
            got = torch.autograd.grad(y, self.tensors, grad_outputs=row, retain_graph=more, allow_unused=True)
            found.append(tuple(None if g is None else dense(g) for g in got))
        return found

    def _by_backward(self, row: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of one cost by ``backward()``, leaving ``.grad`` as it is.

        Re-entrant checkpointing takes nothing else: a parameter is not in its graph, so that `torch.autograd.grad`
        finds no way to it, and ``backward()`` gives it its gradient all the same.
        """
        before = [t.grad for t in self.tensors]
        try:
            for tensor in self.tensors:
                tensor.grad = None
            self().backward(row)
            return tuple(None if t.grad is None else dense(t.grad) for t in self.tensors)
        finally:
            for tensor, gradient in zip(self.tensors, before, strict=True):
                tensor.grad = gradient


def dense(gradient: Tensor) -> Tensor:
    """A gradient with all of its zeros: embeddings may give sparse ones."""
    return gradient if gradient.layout == torch.strided else gradient.to_dense()


class Cost(nn.Module):
    """Model, loss and penalty as one module, so that parameters of all three can be found and swapped together."""

    def __init__(self, model: nn.Module, loss: Loss | None, penalty: Penalty | None) -> None:
        super().__init__()
        self.model = model
        self.loss = loss
        self.penalty = penalty

    def data(self, inputs: Any, target: Any) -> Tensor:
        """The data cost."""
        output = call(self.model, inputs)
        if self.loss is None:
            return self._only_scalar(output)
        value = self.loss(output) if target is None else self.loss(output, target)
        return self._only_scalar(value)

    def _only_scalar(self, value: Any) -> Tensor:
        if isinstance(value, torch.Tensor) and value.numel() == 1 and not value.is_complex():
            return value.reshape(())
        what = "loss must return" if self.loss is not None else "without a loss the model must return"
        remedy = (
            "reduce it with .mean() or .sum()"
            if self.loss is not None
            else "pass loss=, such as torch.nn.functional.cross_entropy with a target"
        )
        raise ValueError(f"{what} a real scalar, the cost J, got {describe(value)}; {remedy}.")

    def penalty_cost(self) -> Tensor:
        """The penalty, a scalar function of the model."""
        assert self.penalty is not None
        value = self.penalty(self.model)
        if not isinstance(value, torch.Tensor) or value.numel() != 1:
            raise ValueError(
                f"penalty must return a scalar tensor, got {describe(value)}; "
                "write it as a function of the model, such as lambda model: 0.01 * model.weight.square().sum()."
            )
        return value.reshape(())

    def forward(self, inputs: Any, target: Any) -> Tensor:
        """(data cost, penalty), or the data cost alone."""
        data = self.data(inputs, target)
        if self.penalty is None:
            return data.double().reshape(1)
        return torch.stack([data.double(), self.penalty_cost().double()])


def call(module: Callable[..., Any], inputs: Any) -> Any:
    """Call with one tensor, a tuple of positional or a mapping of keyword arguments."""
    if isinstance(inputs, Mapping):
        return module(**inputs)
    if isinstance(inputs, (tuple, list)):
        return module(*inputs)
    return module(inputs)


def to_double(value: Any) -> Any:
    """Every floating-point tensor in a nest of tuples, lists and mappings, detached and in float64.

    One that requires grad still does: activation checkpointing looks at it to decide whether there is a backward.
    """
    if isinstance(value, torch.Tensor):
        if not value.dtype.is_floating_point:
            return value.detach()
        return value.detach().double().requires_grad_(value.requires_grad)
    if isinstance(value, Mapping):
        return {k: to_double(v) for k, v in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(to_double(v) for v in value))
    if isinstance(value, (tuple, list)):
        return type(value)(to_double(v) for v in value)
    return value


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor in a nest of tuples, lists and mappings."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for v in value.values():
            yield from tensors_in(v)
    elif isinstance(value, (tuple, list)):
        for v in value:
            yield from tensors_in(v)


def needs_copy(cost: Cost) -> bool:
    """Whether anything in it is of lower precision than float64."""
    state = [*cost.parameters(), *cost.buffers()]
    return any(t.is_floating_point() and t.dtype != torch.float64 for t in state)


@contextmanager
def double_cost(cost: Cost) -> Iterator[Cost]:
    """The cost in float64: itself where it already is (and then restored), else a copy.

    Yields:
        A cost all of whose floating-point tensors are float64.
    """
    if not needs_copy(cost):
        yield cost
        return
    try:
        twin = copy.deepcopy(cost)
    except RuntimeError as error:
        raise ValueError(
            "model must be copyable to be checked in float64, but copy.deepcopy failed: "
            f"{error} Pass a model already in float64 (model.double()), which is checked in place and restored."
        ) from error
    for own, other in zip(cost.parameters(), twin.parameters(), strict=True):
        other.grad, other.requires_grad = None, own.requires_grad
    yield twin.double()


def refuse_complex(cost: Cost, inputs: Any) -> None:
    """Refuse complex parameters and inputs, and models without anything to differentiate."""
    for name, p in cost.named_parameters():
        if p.is_complex() and p.requires_grad:
            raise TypeError(
                f"parameters must be real, got dtype {_dtype(p)} for {label(name)}; "
                "check a real function of torch.view_as_real(parameter) instead."
            )
    for t in tensors_in(inputs):
        if t.is_complex():
            raise TypeError(
                f"inputs must be real, got dtype {_dtype(t)}; pass torch.view_as_real(inputs) "
                "to a function that starts with torch.view_as_complex."
            )
    if not any(p.requires_grad for p in cost.parameters()):
        raise ValueError(
            "model must have a parameter that requires grad, got none; "
            "call requires_grad_(True) on those to be checked, or use check_function to check the inputs."
        )


def label(name: str) -> str:
    """A parameter's name as its owner knows it: the wrapper's own prefix removed."""
    return name.removeprefix("model.")


def _dtype(t: Tensor) -> str:
    return str(t.dtype).removeprefix("torch.")


def model_objective(
    cost: Cost, inputs: Any, target: Any, names: Sequence[str] | None, generators: Sequence[torch.Generator]
) -> Objective:
    """The objective of a whole model: y = (data cost, penalty), θ = its parameters that require grad."""
    chosen = [(label(n), p) for n, p in cost.named_parameters() if p.requires_grad]
    if names is not None:
        known = [n for n, _ in chosen]
        unknown = [n for n in names if not any(k == n or k.startswith(n + ".") for k in known)]
        if unknown:
            raise ValueError(
                f"parameters must name parameters that require grad, got {unknown}; choose from {known} "
                "or a module's name for all of its own."
            )
        chosen = [(n, p) for n, p in chosen if any(n == w or n.startswith(w + ".") for w in names)]
    random = RandomStates([*generators, *module_generators(cost)])
    objective = Objective(
        [n for n, _ in chosen],
        [p for _, p in chosen],
        lambda: cost(inputs, target),
        random,
        model=cost,
    )
    return objective
