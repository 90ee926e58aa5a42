"""What every layer should do to the signal and to the gradient, beside what it did.

The graph of one pass is recorded as it runs (:mod:`torchnotes.diagnostics.theory_graph`); each of its steps knows how
it changes the second moment of a signal and of a gradient (:mod:`torchnotes.diagnostics.theory_steps`), from its own
weights, fan-in, activation, dropout and normalisation. An expectation is always local: from what was measured where the
signal enters a module or a layer, to where it leaves. So a fault shows where it is and not in all that follows.
"""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from torchnotes.diagnostics.theory_graph import ModuleCall, Node, Recorder
from torchnotes.diagnostics.theory_state import NoExpectation, State
from torchnotes.diagnostics.theory_steps import Weighted


@dataclass(frozen=True, slots=True)
class Expectation:
    """Growth over one module's call, or from one weight layer to the next: expected beside measured.

    All are factors on the rms: forward from where the signal enters to where it leaves, backward from the gradient
    where it leaves to that where it enters.

    Attributes:
        name: the module's path; of a growth between layers, that of the later one.
        kind: its class name.
        call: 0 for its first call.
        forward: expected; None where the theory has nothing to say.
        measured_forward: measured; None where the input was not seen.
        backward: expected; None likewise.
        measured_backward: measured; None where no gradient arrived.
        reason: why there is no expectation; empty where there is.
        since: label of the layer it starts from, of a growth between layers; empty for a module's call.
    """

    name: str
    kind: str
    call: int
    forward: float | None
    measured_forward: float | None
    backward: float | None
    measured_backward: float | None
    reason: str = ""
    since: str = ""

    @property
    def label(self) -> str:
        """The name, with the call where the module was called more than once."""
        return _label(self.name, self.call)


def _label(name: str, call: int) -> str:
    return f"{name or '(model)'}#{call}" if call else name or "(model)"


@dataclass(frozen=True)
class Theory:
    """Expected beside measured growth, for every module's call and from each weight layer to the next.

    Attributes:
        modules: one entry for each call of each module.
        layers: one entry for each weight layer but the first: from the output of the one before to its own.
        chi: χ, the expected factor on the squared gradient per layer, the geometric mean over ``layers``; None where
            no layer has an expectation.
        measured_chi: the same of what was measured.
    """

    modules: tuple[Expectation, ...]
    layers: tuple[Expectation, ...]
    chi: float | None
    measured_chi: float | None

    @property
    def depth_scale(self) -> float | None:
        """1/|ln χ|: the number of layers over which the squared gradient changes by a factor e; ∞ at χ = 1."""
        if self.chi is None or self.chi <= 0:
            return None
        return math.inf if self.chi == 1 else 1 / abs(math.log(self.chi))

    def __getitem__(self, label: str) -> Expectation:
        """The entry of a module's call, such as ``"blocks.7.fc"`` or ``"cell#2"``."""
        for entry in self.modules:
            if entry.label == label:
                return entry
        raise KeyError(label)

    def __rich__(self) -> Any:
        from rich.table import Table

        scale = self.depth_scale
        words = f"χ {_number(self.chi)} expected, {_number(self.measured_chi)} measured"
        words += "" if scale is None else f"; depth scale {scale:.3g} layers"
        table = Table(title=f"Growth of the rms: {words}", title_justify="left", show_edge=False)
        for heading in ("module", "kind"):
            table.add_column(heading, overflow="fold")
        for heading in ("forward", "expected", "backward", "expected"):
            table.add_column(heading, justify="right")
        table.add_column("no expectation because", overflow="fold")
        for entry in self.modules:
            numbers = (entry.measured_forward, entry.forward, entry.measured_backward, entry.backward)
            table.add_row(entry.label, entry.kind, *map(_number, numbers), entry.reason)
        return table

    def __str__(self) -> str:
        from rich.console import Console

        out = io.StringIO()
        Console(file=out, width=120, color_system=None, highlight=False).print(self)
        return out.getvalue().rstrip()


def theory_of(recorder: Recorder) -> Theory:
    """Put the expectations together from a recorded pass."""
    modules = tuple(_of_call(call) for call in recorder.calls)
    layers = tuple(_between_layers(recorder))
    return Theory(
        modules,
        layers,
        _geometric_mean([entry.backward for entry in layers]),
        _geometric_mean([entry.measured_backward for entry in layers if entry.backward is not None]),
    )


def _of_call(call: ModuleCall) -> Expectation:
    if call.entry is None:
        reason = f"the signal begins at {call.name or 'the model'}, or comes out of a function that left no trace"
        return Expectation(call.name, call.kind, call.call, None, None, None, None, reason)
    return _growth(call.entry, call.exit, call.name, call.kind, call.call)


def _between_layers(recorder: Recorder) -> Iterator[Expectation]:
    """From the output of each weight layer to that of the next one that the signal reaches from it."""
    # A container returns what its last layer made, and returns later: the first to have made it is the layer.
    by_node = {call.exit.index: call for call in reversed(recorder.calls) if isinstance(call.exit.step, Weighted)}
    heads = [node for node in recorder.nodes if isinstance(node.step, Weighted)]
    for before, after in itertools.pairwise(heads):
        start, call = by_node.get(before.index), by_node.get(after.index)
        name, kind, number = (call.name, call.kind, call.call) if call else (after.step.label, "function", 0)
        since = _label(start.name, start.call) if start else before.step.label
        yield replace(_growth(before, after, name, kind, number), since=since)


def _growth(start: Node, end: Node, name: str, kind: str, call: int) -> Expectation:
    measured_forward = _ratio(end.state, start.state)
    measured_backward = _ratio(start.gradient, end.gradient)
    if start is end:
        return Expectation(name, kind, call, 1.0, measured_forward, 1.0, measured_backward)
    between = _between(start, end)
    if not between:
        reason = "the signal goes another way"
        return Expectation(name, kind, call, None, measured_forward, None, measured_backward, reason)
    forward = backward = None
    reason = ""
    try:
        states = _states(start, between)
        forward = _ratio(states[end.index], start.state)
        if end.gradient is not None:
            backward = _ratio(_gradient(start, end, between, states), end.gradient)
    except NoExpectation as gap:
        reason = str(gap)
    return Expectation(name, kind, call, forward, measured_forward, backward, measured_backward, reason)


def _between(start: Node, end: Node) -> list[Node]:
    """The nodes on the ways from one node to another, without the first, in order; empty where there is no way."""
    ahead = {start.index}
    queue = [start]
    while queue:
        for node in queue.pop().consumers:
            if node.index not in ahead and node.index <= end.index:
                ahead.add(node.index)
                queue.append(node)
    if end.index not in ahead:
        return []
    behind: dict[int, Node] = {end.index: end}
    queue = [end]
    while queue:
        for node in queue.pop().inputs:
            if node.index in ahead and node.index not in behind and node is not start:
                behind[node.index] = node
                queue.append(node)
    return [behind[index] for index in sorted(behind)]


def _states(start: Node, between: list[Node]) -> dict[int, State]:
    """Expected states on the way; whatever joins from elsewhere comes in as it was measured."""
    found: dict[int, State] = {start.index: _known(start.state)}
    for node in between:
        found[node.index] = node.step.forward([found.get(x.index) or _known(x.state) for x in node.inputs])
    return found


def _gradient(start: Node, end: Node, between: list[Node], states: dict[int, State]) -> State:
    """Expected gradient at the start, from the measured one at the end; what comes from elsewhere is as measured."""
    inside = {node.index for node in between}
    found: dict[int, State] = {end.index: _known(end.gradient)}
    for node in [*reversed(between[:-1]), start]:
        parts = []
        for consumer in node.consumers:
            if consumer.index in inside:
                arriving = found.get(consumer.index)
            elif consumer.gradient is not None:
                arriving = consumer.gradient
            else:  # a way that ends nowhere sends nothing back
                continue
            if arriving is None:
                continue
            given = [states.get(x.index) or _known(x.state) for x in consumer.inputs]
            parts += [
                consumer.step.backward(which, given, arriving) for which, x in enumerate(consumer.inputs) if x is node
            ]
        if not parts:
            raise NoExpectation("no gradient came back")
        found[node.index] = _sum(parts)
    return found[start.index]


def _sum(parts: list[State]) -> State:
    shared = None
    if all(part.shared is not None for part in parts):
        shared = sum(part.shared for part in parts if part.shared is not None)
    return State(sum(part.second for part in parts), shared, sum(part.mean for part in parts), parts[0].samples)


def _known(state: State | None) -> State:
    if state is None or not math.isfinite(state.second):
        raise NoExpectation("a value on the way was not measured or is not finite")
    return state


def _ratio(later: State | None, earlier: State | None) -> float | None:
    if later is None or earlier is None or not earlier.second > 0 or not math.isfinite(later.second):
        return None
    return math.sqrt(max(later.second, 0.0) / earlier.second)


def _geometric_mean(factors: list[float | None]) -> float | None:
    """Of the squares: χ is a factor on the squared gradient."""
    logs = [2 * math.log(factor) for factor in factors if factor is not None and factor > 0]
    return math.exp(sum(logs) / len(logs)) if logs else None


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"
