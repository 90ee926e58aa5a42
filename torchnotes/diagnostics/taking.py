"""What a monitor takes in of a training step: the pass through its hooks, and the weights around the update."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from torchnotes.diagnostics._moments import plain
from torchnotes.diagnostics.capture import Capture
from torchnotes.diagnostics.captured import Call
from torchnotes.diagnostics.function_rows import FunctionRows
from torchnotes.diagnostics.lean import Lean, Scale
from torchnotes.diagnostics.measuring import Measurer, Shipment
from torchnotes.diagnostics.monitor_step import MeasuredStep, Sample
from torchnotes.diagnostics.records import Direction, Role
from torchnotes.diagnostics.units import IdleUnits, UnitTracker
from torchnotes.diagnostics.weights import WeightNumbers, WeightTracker

_TRUNK: frozenset[Role] = frozenset({"weight"})


class StepTaker:
    """Measures one training step after the other; knows nothing of when, nor of where the numbers go.

    Args:
        model: the model.
        window: full steps in a row after which a unit that was always zero counts as dead.
        on_error: given what was raised inside a hook.
        compiled: measure what lies in the CPU's memory with compiled code.
        eager: whether the measured steps of compiled parts run uncompiled.

    Attributes:
        units: what was seen of the units so far.
    """

    def __init__(
        self, model: nn.Module, window: int, on_error: Callable[[Exception], None], *, compiled: bool, eager: bool
    ) -> None:
        self.units = UnitTracker(window, compiled=compiled)
        self._full_measurer: Callable[[Shipment], Measurer] = Lean
        self._scale_measurer: Callable[[Shipment], Measurer] = Scale
        if compiled:
            from torchnotes.diagnostics.lean_compiled import Compiled, Memory

            self._full_measurer = self._scale_measurer = functools.partial(Compiled, memory=Memory())
        self._weights = WeightTracker(model, compiled=compiled)
        self._shipment = Shipment()
        self._capture = Capture(model, self._observe, on_error=on_error, training_only=True)
        self._functions = FunctionRows(model, self._capture, on_error, eager=eager)
        self._samples: list[Sample] = []
        self._full = True

    @property
    def saw_something(self) -> bool:
        """Whether a module ran since ``begin``."""
        return bool(self._capture.calls)

    @property
    def is_fresh(self) -> bool:
        """Whether nothing ran since ``begin``."""
        return self._capture.recording and not self._capture.calls

    def attach(self, full: bool) -> None:
        """Put the hooks on: on every module, or on the weight layers alone."""
        self._capture.attach(None if full else _TRUNK)
        self._functions.attach(full)

    def detach(self) -> None:
        """Take every hook off."""
        self._capture.detach()
        self._functions.detach()

    def begin(self, full: bool, histograms: bool) -> None:
        """Forget the last pass and take the next."""
        self._full = full
        self._samples.clear()
        self.units.begin()
        self._shipment = Shipment()
        self._capture.measurer = (self._full_measurer if full else self._scale_measurer)(self._shipment)
        self._capture.observed = (("activation", "weight") if histograms else ("activation",)) if full else ()
        self._capture.observed_gradients = ("weight",) if full and histograms else ()
        self._capture.begin()
        self._functions.begin()

    def take(
        self,
        step: int,
        *,
        scale: float,
        weight_scale: float,
        learning_rate: float | None,
        loss: Tensor | float | None,
    ) -> MeasuredStep:
        """End the pass and take the weights and their gradients, just before the update."""
        self._functions.settle(self._full)
        wanted = self._weights.wanted() if self._full else {}
        taken = MeasuredStep(
            step=step,
            collected=self._capture.collect(entries=[entries for pair in wanted.values() for entries in pair]),
            shipment=self._shipment,
            scale=scale,
            weight_scale=weight_scale,
            learning_rate=learning_rate,
            samples=list(self._samples),
            idle=self.units.commit(self._shipment) if self._full else IdleUnits(),
            loss=loss,
            full=self._full,
        )
        if self._full:
            self._weights.before_update(wanted, weight_scale)
        return taken

    def finish(self, taken: MeasuredStep) -> None:
        """Take what the update did to the weights, just after it."""
        full = taken.full
        taken.weights = self._weights.after_update(taken.shipment) if full else WeightNumbers([], [])

    def _observe(self, call: Call, tensor: Tensor, direction: Direction) -> None:
        if call.site.role == "activation":
            self.units.observe(call, tensor, self._capture.measurer.idle_units())
            return
        values = plain(tensor).reshape(-1)
        values = values[:: max(1, values.numel() // 4096)].to(torch.float64, copy=True)
        if values.numel():
            part = "activations" if direction == "forward" else "gradients"
            name = f"{call.depth:03} {call.label}"
            self._samples.append(Sample(part, name, self._shipment.add(values), values.numel()))
