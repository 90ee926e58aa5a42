"""TensorBoard: the signal along the net as curves (step = layer), the same over training, the verdict as a page.

Tags are ``group/card``. TensorBoard sorts groups and cards by name, gives a group's heading a full line and a card's
title about thirty characters: so groups are numbered in the order of the story and carry the sentence. A signal that is
exactly zero has no logarithm and is left out of its curve. Set the smoothing slider to 0: it bends short curves.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from torchnotes.diagnostics.growth import trunk
from torchnotes.diagnostics.records import Direction, LayerSignal
from torchnotes.diagnostics.rows import scale

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from torchnotes.diagnostics.report import SignalReport

PARTS = {"activations": "forward", "gradients": "backward"}
ALONG = "Size of the signal along the net: log10 of its rms (horizontal: layer)"


def group(number: int, sentence: str) -> str:
    """A group's heading; two digits once there are ten, so that text order is the order of numbers."""
    return f"{number} {sentence}"


def log10_rms(layer: LayerSignal, direction: Direction) -> float:
    """log₁₀ rms of a layer's activation or gradient; NaN where none arrived."""
    moments = layer.activation if direction == "forward" else layer.gradient
    return math.nan if moments is None else moments.log10_rms


def write_depth_curve(writer: SummaryWriter, tag: str, values: Sequence[float]) -> None:
    """Draw a quantity along the net: step = layer, from 1; what is not finite is left out."""
    for layer, value in enumerate(values, start=1):
        if math.isfinite(value):
            writer.add_scalar(tag, value, layer)


def write_depth_curves(
    writer: SummaryWriter, layers: Sequence[LayerSignal], *, number: int = 1, when: str = ""
) -> None:
    """Draw activations and gradients of the weight layers along the net."""
    for part, direction in PARTS.items():
        values = [log10_rms(layer, direction) for layer in trunk(layers)]  # type: ignore[arg-type]
        write_depth_curve(writer, f"{group(number, ALONG)}/{part}{when and ', ' + when}", values)


def write_report(writer: SummaryWriter, report: SignalReport, *, first_group: int = 1) -> None:
    """Write a probe's report: the depth curves, the weights' scale, the share of zeros, the verdict as a text page.

    Args:
        writer: of one run; give each variant its own, and TensorBoard overlays them with a legend.
        report: what to write.
        first_group: number of the first group, where others are to stand before it.
    """
    write_depth_curves(writer, report.layers, number=first_group)
    weights = [layer.weight.log10_rms if layer.weight else math.nan for layer in trunk(report.layers)]
    write_depth_curve(writer, f"{group(first_group, ALONG)}/weights", weights)
    zeros = [layer.activation.share_zero for layer in report.layers if layer.role == "activation"]
    write_depth_curve(
        writer, f"{group(first_group + 1, 'Share of zeros after each activation (horizontal: layer)')}/zeros", zeros
    )
    writer.add_text("Verdict", verdict_page(report), 0)


def verdict_page(report: SignalReport, notes: Iterable[str] = ()) -> str:
    """The verdict, the growth, what else was noticed and the table of layers, in Markdown.

    The first column is the number by which the depth curves and the cards of single layers count.
    """
    judged = any(layer.role == "weight" for layer in report.layers)
    headline = str(report.verdict).capitalize() if judged or not report.healthy else "Nothing that could be judged"
    lines = [f"**{headline}.**", "", *report.summary().splitlines()[1:], ""]
    lines = [line + "  " if line else line for line in lines] + [*notes, ""]
    # Where nothing sets values to zero a column of "0 %" says nothing.
    some_zeros = any(layer.role == "activation" or layer.activation.share_zero >= 0.005 for layer in report.layers)
    headings = ["no.", "layer", "kind", "activation rms", "gradient rms", *["zeros"] * some_zeros, "weight rms"]
    lines += [f"| {' | '.join(headings)} |", "|---" * len(headings) + "|"]
    for layer in report.layers:
        mark = "▶ " if layer.label == report.first_bad_layer else ""
        zeros = layer.activation.share_zero
        cells = [
            str(layer.depth) if layer.role == "weight" else "",
            f"{mark}{layer.label}",
            layer.kind,
            scale(layer.activation),
            scale(layer.gradient),
            *["" if math.isnan(zeros) else f"{100 * zeros:.0f} %"] * some_zeros,
            scale(layer.weight),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def write_hparams(writer: SummaryWriter, hparams: Mapping[str, str | float], metrics: Mapping[str, float]) -> None:
    """Enter a run as one row of TensorBoard's HParams table, in the run's own file.

    ``SummaryWriter.add_hparams`` opens a run of its own for each row, which doubles the list of runs.
    """
    from torch.utils.tensorboard.summary import hparams as as_summaries

    finite = {name: float(value) for name, value in metrics.items() if value is not None and math.isfinite(value)}
    for summary in as_summaries(dict(hparams), finite):
        writer._get_file_writer().add_summary(summary)
    for tag, value in finite.items():
        writer.add_scalar(tag, value, 0)
