"""TensorBoard logs of an experiment: one folder per variant, sentences for tags, and nothing left of an earlier run."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor
    from torch.utils.tensorboard import SummaryWriter

    from torchnotes.diagnostics import SignalReport

PORT = 6006


class VariantLogs:
    """The writers of one experiment's variants: ``logs["init_he"].add_scalar(...)`` writes to ``folder/init_he``.

    Each writer is opened when first asked for. All are closed on leaving the ``with`` block, on Ctrl-C as well, so
    that an interrupted run can be read. Event files that an earlier run left in a variant's folder are removed when its
    writer is opened: TensorBoard would draw both runs as one zigzag line. Its figures and its reading are removed on
    entering the block.

    Args:
        folder: the experiment's folder, such as ``runs/vanishing_exploding``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writers: dict[str, SummaryWriter] = {}

    def __getitem__(self, variant: str) -> SummaryWriter:
        if variant not in self._writers:
            from torch.utils.tensorboard import SummaryWriter

            self._writers[variant] = SummaryWriter(str(self.clear(variant)), flush_secs=10)
        return self._writers[variant]

    def clear(self, variant: str) -> Path:
        """Remove the event files of a variant's earlier run; returns its folder."""
        folder = self.folder / variant
        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
        return folder

    def flush(self) -> None:
        """Write to disk whatever the writers still hold."""
        for writer in self._writers.values():
            writer.flush()

    def __enter__(self) -> VariantLogs:
        for old in (*self.folder.glob("*.png"), self.folder / "reading.json"):
            old.unlink(missing_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for writer in self._writers.values():
            writer.close()


def add_depth_curves(writer: SummaryWriter, report: SignalReport, activations: str, gradients: str) -> None:
    """Draw log10 rms of the activations and of the gradients along the net: step = layer, from 1.

    A signal that is exactly zero has no logarithm and is left out.

    Args:
        writer: of the variant.
        report: of a probe.
        activations: tag of the one curve.
        gradients: tag of the other.
    """
    for layer in (layer for layer in report.layers if layer.role == "weight"):
        for tag, moments in ((activations, layer.activation), (gradients, layer.gradient)):
            if moments is not None and math.isfinite(moments.log10_rms):
                writer.add_scalar(tag, moments.log10_rms, layer.depth)


def add_histograms_along(writer: SummaryWriter, tag: str, layers: Sequence[Tensor]) -> None:
    """Draw the distribution of a tensor along the net: one histogram a layer, step = layer, from 1.

    Of a large tensor some 4,000 values are taken, evenly spaced.
    """
    for layer, values in enumerate(layers, start=1):
        flat = values.detach().flatten()
        sample = flat[:: max(1, flat.numel() // 4096)].double().cpu().numpy()
        writer.add_histogram(tag, sample, layer, bins=40)


def add_hparams(
    writer: SummaryWriter, hparams: Mapping[str, str | float], metrics: Mapping[str, float], *, group: str
) -> None:
    """Enter a variant as one row of TensorBoard's HParams table.

    ``SummaryWriter.add_hparams`` would open a run of its own for each row, which doubles the list of runs; the same
    records in the variant's own file are read just as well.

    Args:
        writer: of the variant.
        hparams: what was chosen: the first columns.
        metrics: what came of it: the last columns.
        group: of the scalars from which TensorBoard reads the metrics.
    """
    from tensorboard.plugins.hparams import summary_v2
    from torch.utils.tensorboard.summary import hparams as as_summaries

    columns = summary_v2.hparams_config_pb(
        hparams=[summary_v2.HParam(name) for name in hparams],
        metrics=[summary_v2.Metric(f"{group}/{name}", display_name=name) for name in metrics],
    )
    _, start, end = as_summaries(dict(hparams), dict(metrics))  # the first would show whole tags as headings
    for record in (columns, start, end):
        writer._get_file_writer().add_summary(record)
    for name, value in metrics.items():
        writer.add_scalar(f"{group}/{name}", value, 0)


def save_figure(writer: SummaryWriter, tag: str, figure: Figure, path: Path, caption: str = "") -> None:
    """Write a figure as a PNG file and into the log.

    Args:
        writer: of the variant.
        tag: ``group/card`` in TensorBoard; the card is the figure's title on the page of the docs.
        figure: of matplotlib.
        path: of the PNG, in the experiment's own folder.
        caption: one or two sentences for the page of the docs: what is drawn, and what to see in it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, metadata={"Title": tag.rpartition("/")[2], "Description": " ".join(caption.split())})
    writer.add_figure(tag, figure)


def read_figures(folder: Path) -> list[dict[str, str]]:
    """File, title and caption of every figure that ``save_figure`` wrote into a folder, in the order of writing."""
    from PIL import Image

    figures = []
    for path in sorted(folder.glob("*.png"), key=lambda path: path.stat().st_mtime_ns):
        with Image.open(path) as image:
            image.load()
            title, caption = (str(image.info.get(key, "")) for key in ("Title", "Description"))
        figures.append({"file": path.name, "title": title, "caption": caption})
    return figures


def how_to_open(folder: Path) -> str:
    """The line that opens TensorBoard, and the address that shows curves as they are (smoothing bends short ones).

    It opens the one experiment: its runs then have short names, which leave room for the colours beside them.
    """
    python = os.path.relpath(sys.executable)
    python = "python" if python.startswith("..") else python
    command = f"{python} -m tensorboard.main --logdir {_quoted(folder)} --port {PORT}"
    if folder.parent == Path("runs"):
        command = f"make tensorboard   (or: {command})"
    return f"{command}\nthen look at http://localhost:{PORT}/?smoothing=0"


def _quoted(path: Path) -> str:
    text = str(path)
    return f'"{text}"' if " " in text else text
