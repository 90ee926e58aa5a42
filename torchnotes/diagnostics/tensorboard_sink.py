"""A monitor's records in TensorBoard: what is written at which step."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from torchnotes.diagnostics.growth import trunk
from torchnotes.diagnostics.history import StepRecord
from torchnotes.diagnostics.records import LayerSignal
from torchnotes.diagnostics.report import make_report
from torchnotes.diagnostics.tensorboard import (
    PARTS,
    group,
    log10_rms,
    verdict_page,
    write_depth_curves,
    write_hparams,
)

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

HEALTH = "Health (horizontal: step)"
EACH = "{part} of each layer, log10 rms (horizontal: step)"
VALUES = "Where the {part} lie, layer by layer (depth axis: training step)"
PICTURES = "Layer by layer over training, in one picture"


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

    * every logged step: growth per layer and loss, as one event; the first 256 full ones, then 64 to each doubling of
      their number: also dead units, update-to-weight ratio and gradient noise;
    * the first 8 logged steps, then 2 to each doubling: the scale of every layer (each point carries the layer's name);
    * the 1st, 10th, 100th, ... logged step: histograms, of 20 bins;
    * the first logged step, and the last on closing: the depth curves;
    * on closing: heat maps of layer × step (of the first 16 logged steps, then 4 to each doubling), the map of dead
      units, the verdicts of the first and the last logged step.

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
        self._full_count = 0
        self._earliest: StepRecord | None = None
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
        """Whether the count-th full record should come with histograms."""
        return has_histograms(count)

    def __call__(self, record: StepRecord, when: float | None = None) -> None:
        """Write one record, measured at the time ``when`` in seconds since the epoch; None for now."""
        when = time.time() if when is None else when
        if self._count == 0:
            write_depth_curves(self.writer, record.layers, number=self._first, when="at the first step")
        self._write_values(record.step, when, self._health(record))
        if is_thinned_in(self._count, 8):
            self._write_values(record.step, when, self._each_layer(record.layers))
        if is_thinned_in(self._count):
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
        if record.full:
            self._full_count += 1
            self._earliest = self._earliest or record
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
            if self._earliest is not None and self._earliest is not record:
                page = verdict_page(make_report(self._earliest.layers, loss=self._earliest.loss))
                self.writer.add_text("Verdict at the first logged step", page, self._earliest.step)
            report = make_report(record.layers, loss=record.loss)
            self.writer.add_text("Verdict at the last logged step", verdict_page(report, notes), record.step)
            self._write_pictures(dead_units or {}, record.step)
            if self._hparams is not None:
                write_hparams(
                    self.writer,
                    self._hparams,
                    {
                        "9 When the run ended/growth of activations": report.forward_growth or math.nan,
                        "9 When the run ended/growth of gradients": report.backward_growth or math.nan,
                        "9 When the run ended/last loss": math.nan if record.loss is None else record.loss,
                    },
                )
        if self._writer is not None:
            self._writer.flush()
            if self._owned:
                self._writer.close()
                self._writer = None

    def _write_values(self, step: int, when: float, values: Mapping[str, float]) -> None:
        """All values of a step as one event: tag and number each, step and time once."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        present = [Summary.Value(tag=tag, simple_value=v) for tag, v in values.items() if math.isfinite(v)]
        self.writer._get_file_writer().add_summary(Summary(value=present), step, when)

    def _health(self, record: StepRecord) -> dict[str, float]:
        heading = group(self._first + 1, HEALTH)
        values = {
            "growth of activations a layer": record.forward_growth,
            "growth of gradients a layer": record.backward_growth,
            "loss": record.loss,
            "non-finite values": float(record.nonfinite) or None,
        }
        if record.full and is_thinned_in(self._full_count, 256):
            updates = [value for value in record.update_ratio.values() if value > 0]
            noise, dead = list(record.gradient_noise.values()), list(record.dead.values())
            values["dead units, share"] = statistics.fmean(dead) if dead else None
            values["update ÷ weight, log10 median"] = math.log10(statistics.median(updates)) if updates else None
            values["noise in the gradient, share"] = statistics.median(noise) if noise else None
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

    def _write_pictures(self, dead_units: Mapping[str, Sequence[float]], last: int) -> None:
        from torchnotes.diagnostics import pictures

        heading = group(self._first + 6, PICTURES)
        for index, part in enumerate(PARTS):
            picture = pictures.layer_by_step(
                [step for step, _ in self._written],
                [{k: v[index] for k, v in row.items()} for _, row in self._written],
                part,
            )
            if picture is not None:
                self.writer.add_image(f"{heading}/{part}", picture, last, dataformats="HWC")
        if dead_units:
            picture = pictures.dead_units(dead_units)
            if picture is not None:
                self.writer.add_image(f"{heading}/units that were zero", picture, last, dataformats="HWC")
