"""TensorBoard: the signal along the net as curves (step = layer), the same over training, the verdict as a page.

Tags are ``group/card``. TensorBoard sorts groups and cards by name, gives a group's heading a full line and a card's
title about thirty characters: so groups are numbered in the order of the story and carry the sentence. A signal that is
exactly zero has no logarithm and is left out of its curve. Set the smoothing slider to 0: it bends short curves.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from torchnotes.diagnostics.growth import trunk
from torchnotes.diagnostics.history import StepRecord
from torchnotes.diagnostics.records import Direction, LayerSignal
from torchnotes.diagnostics.report import SignalReport, make_report, scale

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

PARTS = {"activations": "forward", "gradients": "backward"}
ALONG = "Size of the signal along the net: log10 of its rms (horizontal: layer)"
HEALTH = "Health (horizontal: step)"
EACH = "{part} of each layer, log10 rms (horizontal: step)"
VALUES = "Where the {part} lie, layer by layer (depth axis: training step)"
PICTURES = "Layer by layer over training, in one picture"


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


def verdict_page(report: SignalReport) -> str:
    """The verdict, the growth and the table of layers in Markdown."""
    lines = [f"**{str(report.verdict).capitalize()}.**", "", *report.summary().splitlines()[1:], ""]
    lines = [line + "  " if line else line for line in lines]
    lines += ["| layer | kind | activation rms | gradient rms | zeros | weight rms |", "|---|---|---|---|---|---|"]
    for layer in report.layers:
        mark = "▶ " if layer.label == report.first_bad_layer else ""
        zeros = layer.activation.share_zero
        lines.append(
            f"| {mark}{layer.label} | {layer.kind} | {scale(layer.activation)} | {scale(layer.gradient)} | "
            f"{'' if math.isnan(zeros) else f'{100 * zeros:.0f} %'} | {scale(layer.weight)} |"
        )
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


def is_thinned_in(count: int, first: int = 16) -> bool:
    """Whether the count-th logged step (from 0) is kept: the first 16, then 4 to each doubling of their number.

    Of 1,000 logged steps 40 are kept, and a curve over training keeps its shape on every scale.

    >>> [count for count in range(130) if is_thinned_in(count)][15:]
    [15, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128]
    """
    if count < first:
        return True
    octave = (count // first).bit_length() - 1
    return count % max(1, (first << octave) // (first // 4)) == 0


def has_histograms(count: int) -> bool:
    """Whether the count-th logged step (from 0) gets histograms: 0, 9, 99, 999, ..., one to each factor of ten."""
    return count == 0 or (count + 1) == 10 ** round(math.log10(count + 1))


class TensorBoardSink:
    """Writes a monitor's records; the only part of it that knows TensorBoard.

    What is written, and when, so that 1,000 logged steps of a 50-layer net stay under 1 MB:

    * every logged step: growth per layer and loss, as one event; the first 256, then 64 to each doubling of their
      number: also dead units, update-to-weight ratio and gradient noise;
    * the first 16 logged steps, then 4 to each doubling: the scale of every layer;
    * the 1st, 10th, 100th, ... logged step: histograms, of 20 bins;
    * the first logged step, and the last on closing: the depth curves;
    * on closing: heat maps of layer × step, the map of dead units, the verdict.

    Args:
        target: a log directory, or an open writer, which is then not closed.
        first_group: number of the first group of tags.
        hparams: entered in TensorBoard's HParams table on closing.
    """

    def __init__(
        self,
        target: str | Path | SummaryWriter,
        *,
        first_group: int = 1,
        hparams: Mapping[str, str | float] | None = None,
    ) -> None:
        self._owned = isinstance(target, (str, Path))
        self._target = target
        self._first = first_group
        self._hparams = hparams
        self._writer: Any = None if self._owned else target
        self._count = 0
        self._last: StepRecord | None = None
        self._written: list[tuple[int, dict[str, tuple[float, float]]]] = []

    @property
    def writer(self) -> SummaryWriter:
        """The writer, opened when first needed."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._target), flush_secs=10)
        return self._writer  # type: ignore[no-any-return]

    def wants_histograms(self, count: int) -> bool:
        """Whether the count-th record should come with histograms."""
        return has_histograms(count)

    def __call__(self, record: StepRecord) -> None:
        """Write one record."""
        if self._count == 0:
            write_depth_curves(self.writer, record.layers, number=self._first, when="at the first step")
        self._write_values(record.step, self._health(record))
        if is_thinned_in(self._count):
            self._write_values(record.step, self._each_layer(record.layers))
            self._written.append(
                (
                    record.step,
                    {
                        layer.label: (log10_rms(layer, "forward"), log10_rms(layer, "backward"))
                        for layer in trunk(record.layers)
                    },
                )
            )
        self._count += 1
        self._last = record

    def histogram(self, step: int, part: str, name: str, values: Any) -> None:
        """Write one histogram of 20 bins over a sample of the values."""
        number = self._first + (4 if part == "activations" else 5)
        counts, edges = np.histogram(values, bins=20)
        self.writer.add_histogram_raw(
            f"{group(number, VALUES.format(part=part))}/{name}",
            min=float(values.min()),
            max=float(values.max()),
            num=int(values.size),
            sum=float(values.sum()),
            sum_squares=float(np.square(values).sum()),
            bucket_limits=edges[1:].tolist(),
            bucket_counts=counts.tolist(),
            global_step=step,
        )

    def close(self, dead_units: Mapping[str, Sequence[float]] | None = None, notes: Iterable[str] = ()) -> None:
        """Write what can only be written at the end, and close a writer of our own."""
        record = self._last
        if record is not None:
            write_depth_curves(self.writer, record.layers, number=self._first, when="at the last step")
            report = make_report(record.layers, loss=record.loss)
            page = "\n\n".join([verdict_page(report), *notes])
            self.writer.add_text("Verdict at the last logged step", page, record.step)
            self._write_pictures(dead_units or {})
            if self._hparams is not None:
                write_hparams(
                    self.writer,
                    self._hparams,
                    {
                        "9 Columns of the HParams table/growth of activations": report.forward_growth or math.nan,
                        "9 Columns of the HParams table/growth of gradients": report.backward_growth or math.nan,
                        "9 Columns of the HParams table/last loss": math.nan if record.loss is None else record.loss,
                    },
                )
        if self._writer is not None:
            self._writer.flush()
            if self._owned:
                self._writer.close()
                self._writer = None

    def _write_values(self, step: int, values: Mapping[str, float]) -> None:
        """All values of a step as one event: tag and number each, step and time once."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        present = [Summary.Value(tag=tag, simple_value=v) for tag, v in values.items() if math.isfinite(v)]
        self.writer._get_file_writer().add_summary(Summary(value=present), step)

    def _health(self, record: StepRecord) -> dict[str, float]:
        heading = group(self._first + 1, HEALTH)
        values = {
            "growth of activations a layer": record.forward_growth,
            "growth of gradients a layer": record.backward_growth,
            "loss": record.loss,
            "non-finite values": float(sum(layer.activation.nonfinite for layer in record.layers)) or None,
        }
        if is_thinned_in(self._count, 256):
            updates = [value for value in record.update_ratio.values() if value > 0]
            noise, dead = list(record.gradient_noise.values()), list(record.dead.values())
            values["dead units, share"] = float(np.mean(dead)) if dead else None
            values["update ÷ weight, log10 median"] = math.log10(float(np.median(updates))) if updates else None
            values["noise in the gradient, share"] = float(np.median(noise)) if noise else None
        return {f"{heading}/{name}": value for name, value in values.items() if value is not None}

    def _each_layer(self, layers: Sequence[LayerSignal]) -> dict[str, float]:
        values = {}
        rows = trunk(layers)
        digits = len(str(len(rows)))
        for index, (part, direction) in enumerate(PARTS.items()):
            heading = group(self._first + 2 + index, EACH.format(part=part.capitalize()))
            for number, layer in enumerate(rows, start=1):
                values[f"{heading}/{number:0{digits}} {layer.label}"] = log10_rms(layer, direction)  # type: ignore[arg-type]
        return values

    def _write_pictures(self, dead_units: Mapping[str, Sequence[float]]) -> None:
        from torchnotes.diagnostics import pictures

        heading = group(self._first + 6, PICTURES)
        for index, part in enumerate(PARTS):
            picture = pictures.layer_by_step(
                [step for step, _ in self._written],
                [{k: v[index] for k, v in row.items()} for _, row in self._written],
                part,
            )
            if picture is not None:
                self.writer.add_image(f"{heading}/{part}", picture, dataformats="HWC")
        if dead_units:
            picture = pictures.dead_units(dead_units)
            if picture is not None:
                self.writer.add_image(f"{heading}/units that were zero", picture, dataformats="HWC")
