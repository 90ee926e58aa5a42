"""The graph of one forward pass, recorded while it runs: which step made which tensor from which others.

Nothing is traced symbolically, so nothing fails to trace: every call of a torch function is seen as it happens
(:mod:`torchnotes.diagnostics.function_calls`), with the tensors it really had. Modules that the theory knows as a whole
(layers, activations, normalisations) count as one step; all others are looked into. The recorder also reads the state
of each tensor and of the gradient that arrives there. A tensor that appears from nowhere (a custom function, a foreign
library) starts afresh at its measured state: a gap in the expectation, not an invention.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from torchnotes.diagnostics import theory_steps as steps
from torchnotes.diagnostics.capture import Capture
from torchnotes.diagnostics.function_calls import FunctionCalls, floating
from torchnotes.diagnostics.theory_lookup import step_of_call, steps_of_module, taken_whole
from torchnotes.diagnostics.theory_state import State, measure_state
from torchnotes.diagnostics.theory_steps import Step


@dataclass(eq=False)
class Node:
    """One tensor of the pass.

    Attributes:
        index: its place in the order of execution.
        step: what made it.
        inputs: the tensors it was made from.
        state: what was measured of it; of a node inside a module that does several steps in one, None.
        gradient: what was measured of the gradient that arrived there; None where none did.
        roots: the weights that last mixed the signal on the ways that lead here: two nodes without a common root are
            uncorrelated.
        unit_axis: the axis of the units.
        consumers: the nodes made from it.
    """

    index: int
    step: Step
    inputs: list[Node]
    state: State | None
    roots: frozenset[int]
    unit_axis: int
    gradient: State | None = None
    consumers: list[Node] = field(default_factory=list)


@dataclass(frozen=True)
class ModuleCall:
    """A call of a module, or of an activation as a function, as nodes: where the signal came in and where it left."""

    name: str
    kind: str
    call: int
    entry: Node | None
    exit: Node


class Recorder(FunctionCalls):
    """Records the graph of one forward pass of a model; a context manager around the pass.

    Args:
        model: the model.
        capture: what records the pass.

    Attributes:
        nodes: in the order of execution.
        calls: the module calls, in the order in which they returned.
    """

    def __init__(self, model: nn.Module, capture: Capture) -> None:
        super().__init__(model, capture)
        self.nodes: list[Node] = []
        self.calls: list[ModuleCall] = []
        self._of: dict[int, Node] = {}
        self._kept: list[Tensor] = []  # ids are only good as long as their tensors live
        self._counts: dict[int, int] = {}
        self._handles: list[Any] = []

    def __enter__(self) -> Recorder:
        for module in self._model.modules():
            self._handles.append(module.register_forward_pre_hook(self._before, with_kwargs=True, prepend=True))
            self._handles.append(module.register_forward_hook(self._after))
        super().__enter__()
        return self

    def __exit__(self, *details: Any) -> None:
        super().__exit__(*details)
        for handle in self._handles:
            handle.remove()
        self._of.clear()
        self._kept.clear()

    def begin(self, inputs: Any) -> None:
        """Make the tensors that come into the model the sources of the graph."""
        self._busy = True
        for tensor in floating(inputs):
            self._add(steps.Source("the input"), [], tensor)
        self._busy = False

    def _is_signal(self, tensor: Tensor) -> bool:
        return id(tensor) in self._of

    def _is_whole(self, module: nn.Module) -> bool:
        return taken_whole(module)

    def _made(self, func: Any, args: Any, kwargs: Any, signals: list[Tensor], outputs: list[Tensor]) -> None:
        sources = [self._of[id(tensor)] for tensor in signals]
        for output in outputs:
            step = step_of_call(func, args, kwargs, signals, output)
            node = self._add(step, sources, output, axis=_axis_after(step, sources[0], output))
            function = step.function if isinstance(step, steps.Activation) else None
            row = self._row_of(getattr(func, "__name__", ""), function, args, kwargs, output)
            if row is not None:
                name, kind, number = row
                self.calls.append(ModuleCall(name, kind, number, node.inputs[0], node))

    def _add(self, step: Step, inputs: list[Node], tensor: Tensor, *, axis: int | None = None) -> Node:
        if axis is None:
            axis = inputs[0].unit_axis if inputs else (1 if tensor.dim() >= 4 else -1)
        axis = axis if tensor.dim() > max(axis, 0) else -1
        step = _checked_for_correlation(step, inputs)
        node = self._append(step, inputs, measure_state(tensor, axis), axis)
        self._of[id(tensor)] = node
        self._kept.append(tensor)
        if tensor.requires_grad:

            def read(gradient: Tensor) -> None:
                node.gradient = measure_state(gradient, axis)

            tensor.register_hook(read)
        return node

    def _append(self, step: Step, inputs: list[Node], state: State | None, axis: int) -> Node:
        index = len(self.nodes)
        fresh = step.mixes or not inputs
        roots = frozenset([index]) if fresh else frozenset().union(*(node.roots for node in inputs))
        node = Node(index, step, inputs, state, roots, axis)
        self.nodes.append(node)
        for source in set(inputs):
            source.consumers.append(node)
        return node

    def _returned(self, module: nn.Module, whole: bool, signals: list[Tensor], outputs: list[Tensor]) -> None:
        result = outputs[0]
        entry = self._of.get(id(signals[0])) if signals else None
        if whole and (id(result) not in self._of or any(result is signal for signal in signals)):
            self._add_module(module, signals, entry, result)
        exit_node = self._of.get(id(result))
        if exit_node is None:
            exit_node = self._add(steps.Source(f"{type(module).__name__} {self._name(module)}"), [], result)
        number = self._counts.get(id(module), 0)
        self._counts[id(module)] = number + 1
        self.calls.append(ModuleCall(self._name(module), type(module).__name__, number, entry, exit_node))

    def _add_module(self, module: nn.Module, signals: list[Tensor], entry: Node | None, result: Tensor) -> None:
        name = self._name(module)
        convolution = isinstance(module, nn.modules.conv._ConvNd)
        if entry is None:
            self._add(steps.Source(name), [], result, axis=1 if convolution else None)
            return
        found = steps_of_module(name, module, signals[0], result)
        if found is None:
            weights = any(parameter.dim() >= 2 for parameter in module.parameters())
            found = [steps.Opaque(name, f"the theory does not cover {type(module).__name__}", mixes=weights)]
        axis = 1 if convolution else _axis_after(found[0], entry, result)
        for step in found[:-1]:
            entry = self._append(step, [entry], None, axis)
        self._add(found[-1], [entry], result, axis=axis)


def _axis_after(step: Step, source: Node, output: Tensor) -> int:
    if isinstance(step, steps.Weighted) and source.unit_axis == -1:
        return -1
    if isinstance(step, steps.Rearranged) and not step.keeps_units:
        return 1 if output.dim() >= 4 else -1
    return source.unit_axis


def _checked_for_correlation(step: Step, inputs: list[Node]) -> Step:
    """Sums and products are only known for signals that some random weights have made unrelated."""
    if not isinstance(step, (steps.Sum, steps.Product)) or len(inputs) < 2:
        return step
    if inputs[0].roots & inputs[1].roots:
        return steps.Opaque(step.label, f"`{step.label}` joins two signals that are correlated")
    return step
