"""The report of one pass: the records, the growth, the verdict; as a table, as rows, as TensorBoard curves."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torchnotes.diagnostics.growth import growth_per_layer
from torchnotes.diagnostics.records import LayerSignal, Moments, Verdict
from torchnotes.diagnostics.rows import row_of, scale
from torchnotes.diagnostics.theory import Theory

if TYPE_CHECKING:
    from torch import nn
    from torch.utils.tensorboard import SummaryWriter

    from torchnotes.diagnostics.prescription import AppliedPrescription


@dataclass(frozen=True)
class SignalReport:
    """What a probe found. Printing it shows the table and the verdict; its rows go into pandas.

    Attributes:
        layers: one record for each call of each module, in the order of execution.
        forward_growth: factor on the rms of the activations per layer, from the first layer to the last; None where
            fewer than two layers could be compared.
        backward_growth: factor on the rms of the gradients per layer, from the last layer to the first; None also
            where no backward pass was run.
        verdict: ``"healthy"``, ``"vanishing"``, ``"exploding"`` or ``"non-finite"`` for each direction.
        loss: the loss that was sent back; None where none was.
        unused: weight layers that the pass never called.
        theory: what each layer should have done, beside what it did; None where it was not asked for.
    """

    layers: tuple[LayerSignal, ...]
    forward_growth: float | None
    backward_growth: float | None
    verdict: Verdict
    loss: float | None = None
    unused: tuple[str, ...] = ()
    theory: Theory | None = None

    @property
    def first_bad_layer(self) -> str | None:
        """Label of the first layer, in the signal's direction, that leaves what is expected; None if none does."""
        return self.verdict.first_bad_layer

    @property
    def prescription(self) -> str:
        """What cures it, in words; empty where nothing need be cured."""
        return self.verdict.prescription

    @property
    def healthy(self) -> bool:
        """Whether neither direction is anything but healthy."""
        return self.verdict.healthy

    def apply(self, model: nn.Module) -> AppliedPrescription:
        """Carry the prescription out: multiply the weights by its factors, in place; see :func:`apply_prescription`.

        Args:
            model: the model that was probed.

        Returns:
            What was multiplied by what; prints as a table. Probe again to see the difference.

        Raises:
            ValueError: no factor cures it (the message says what does), or the report is healthy.
        """
        from torchnotes.diagnostics.prescription import apply_prescription, prescriptions

        return apply_prescription(model, prescriptions(self.layers, self.verdict))

    def rows(self) -> list[dict[str, Any]]:
        """One flat dict for each record, numbers and words only: ``pandas.DataFrame(report.rows())``."""
        return [row_of(layer) for layer in self.layers]

    def to_dict(self) -> dict[str, Any]:
        """Everything in JSON's types; NaN and infinities, which JSON lacks, become None or a word."""
        verdict = {
            "forward": self.verdict.forward,
            "backward": self.verdict.backward,
            "first_bad_layer": self.first_bad_layer,
            "reason": self.verdict.reason,
            "prescription": self.prescription,
        }
        return {
            "verdict": verdict,
            "forward_growth": self.forward_growth,
            "backward_growth": self.backward_growth,
            "loss": _json_number(self.loss),
            "unused": list(self.unused),
            "layers": [{key: _json_number(value) for key, value in row.items()} for row in self.rows()],
        }

    def to_tensorboard(self, writer: SummaryWriter) -> None:
        """Write the depth curves (step = layer) and the verdict as a text page; see :mod:`.tensorboard`."""
        from torchnotes.diagnostics import tensorboard

        tensorboard.write_report(writer, self)

    def summary(self) -> str:
        """The verdict in words, with growth, first bad layer and cure."""
        lines = [f"Verdict: {self.verdict}"]
        lines.append(
            f"Growth per layer: activations {_factor(self.forward_growth)}, gradients {_factor(self.backward_growth)}"
        )
        if self.first_bad_layer is not None:
            lines.append(f"First layer that leaves the band: {self.first_bad_layer}")
        lines += [text for text in (self.verdict.reason, self.prescription) if text]
        if self.unused:
            lines.append(f"Never called in this pass: {', '.join(self.unused)}")
        return "\n".join(lines)

    def __rich__(self) -> Any:
        from rich.console import Group

        return Group(table_of(self.layers, self.first_bad_layer, self.theory), self.summary())

    def __str__(self) -> str:
        from rich.console import Console

        out = io.StringIO()
        Console(file=out, width=150, color_system=None, highlight=False).print(self)
        return out.getvalue().rstrip()


def make_report(
    layers: Sequence[LayerSignal],
    *,
    loss: float | None = None,
    unused: Sequence[str] = (),
    theory: Theory | None = None,
) -> SignalReport:
    """Judge the records of one pass and put the report together."""
    from torchnotes.diagnostics.verdict import judge

    return SignalReport(
        layers=tuple(layers),
        forward_growth=growth_per_layer(layers, "forward"),
        backward_growth=growth_per_layer(layers, "backward"),
        verdict=judge(layers),
        loss=loss,
        unused=tuple(unused),
        theory=theory,
    )


def table_of(layers: Sequence[LayerSignal], first_bad_layer: str | None = None, theory: Theory | None = None) -> Any:
    """A rich table, one line a record; the first bad layer is marked.

    "expected" is what theory makes of the measured input of the module, and of the measured gradient at the next
    weight layer; a dash where it has nothing to say.
    """
    from rich.table import Table

    forward, backward = _expected(layers, theory)
    table = Table(show_edge=False, pad_edge=False)
    longest = max((len(layer.label) for layer in layers), default=0)
    table.add_column("layer", overflow="fold", min_width=min(28, longest + 2))
    table.add_column("kind", overflow="ellipsis", no_wrap=True)
    headings = ["depth", "rms", "mean", "std", "max", "zeros", "saturated", "grad rms", "weight rms", "dW rms"]
    if theory is not None:
        headings[2:2] = ["expected"]
        headings[9:9] = ["expected"]
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for layer in layers:
        activation, bad = layer.activation, layer.label == first_bad_layer
        table.add_row(
            ("▶ " if bad else "") + layer.label,
            layer.kind,
            str(layer.depth),
            scale(activation),
            *([] if theory is None else [forward.get(layer.label, "–")]),
            _number(activation.mean),
            _number(activation.std),
            _number(activation.max_abs),
            _share(activation.share_zero),
            "" if activation.share_saturated is None else _share(activation.share_saturated),
            scale(layer.gradient),
            *([] if theory is None else [backward.get(layer.label, "–" if layer.role == "weight" else "")]),
            scale(layer.weight),
            scale(layer.weight_gradient),
            style="bold red" if bad else None,
        )
    return table


def _expected(layers: Sequence[LayerSignal], theory: Theory | None) -> tuple[dict[str, str], dict[str, str]]:
    """Expected rms and gradient rms as text: the measured one, by as much as theory's growth differs from it."""
    if theory is None:
        return {}, {}
    records = {layer.label: layer for layer in layers}
    forward, backward = {}, {}
    for entry in theory.modules:
        record = records.get(entry.label)
        if record is not None and entry.forward is not None and entry.measured_forward:
            forward[entry.label] = _rescaled(record.activation, entry.forward / entry.measured_forward)
    for entry in theory.layers:
        record = records.get(entry.since)
        if record is not None and record.gradient is not None and entry.backward and entry.measured_backward:
            backward[entry.since] = _rescaled(record.gradient, entry.backward / entry.measured_backward)
    return forward, backward


def _rescaled(moments: Moments, factor: float) -> str:
    return f"{10 ** (moments.log10_rms + math.log10(factor)):.3g}" if math.isfinite(moments.log10_rms) else "–"


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.2g}"


def _share(value: float) -> str:
    return "" if math.isnan(value) else f"{100 * value:.0f} %"


def _factor(value: float | None) -> str:
    return "not measured" if value is None else f"×{value:.4g}"


def _json_number(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else ("-Infinity" if value < 0 else "Infinity")
    return value
