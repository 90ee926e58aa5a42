"""Heat maps for TensorBoard, drawn by matplotlib where it is installed (the ``experiments`` extra)."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Image = np.ndarray[Any, Any]


# The least range of the colours, in decades of rms.
DECADES = 4.0


def available() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def layer_by_step(steps: Sequence[int], rows: Sequence[Mapping[str, float]], part: str) -> Image | None:
    """log₁₀ rms of every layer (down) over training (across); None without matplotlib or without a number.

    Args:
        steps: training steps, in order.
        rows: for each step, log₁₀ rms by layer.
        part: ``"activations"`` or ``"gradients"``, for the title.
    """
    labels = list(dict.fromkeys(label for row in rows for label in row))
    values = np.array([[row.get(label, math.nan) for row in rows] for label in labels], dtype=float)
    values[~np.isfinite(values)] = math.nan
    if not available() or values.size == 0 or np.isnan(values).all():
        return None
    figure, axes = _figure(len(labels))
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    middle, half = (low + high) / 2, max(DECADES, high - low) / 2  # a healthy net should look calm, not colourful
    drawn = axes.imshow(
        values, aspect="auto", cmap="viridis", interpolation="nearest", vmin=middle - half, vmax=middle + half
    )
    figure.colorbar(drawn, ax=axes, label="log10 rms")
    axes.set_title(f"Size of the {part} (white: none, zero or not finite)", fontsize=10, loc="right")
    _label_layers(axes, labels)
    ticks = np.unique(np.linspace(0, len(steps) - 1, min(8, len(steps))).round().astype(int))
    axes.set_xticks(ticks, [str(steps[i]) for i in ticks])
    axes.set_xlabel("training step (each column is one written step)")
    return _render(figure)


def dead_units(shares: Mapping[str, Sequence[float]]) -> Image | None:
    """For each layer (down) and unit (across), the share of logged steps in which it was zero for every sample."""
    widest = max((len(row) for row in shares.values()), default=0)
    if not available() or widest == 0:
        return None
    values = np.full((len(shares), widest), math.nan)
    for index, row in enumerate(shares.values()):
        values[index, : len(row)] = sorted(row, reverse=True)
    figure, axes = _figure(len(shares))
    drawn = axes.imshow(values, aspect="auto", cmap="magma_r", interpolation="nearest", vmin=0, vmax=1)
    figure.colorbar(drawn, ax=axes, label="share of logged steps")
    axes.set_title("Units that were zero for every sample (dark: always, a dead unit)", fontsize=10, loc="right")
    axes.set_xlabel("units of the layer, the deadest first")
    _label_layers(axes, list(shares))
    return _render(figure)


def _figure(rows: int) -> tuple[Figure, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # TensorBoard shows a picture some 350 pixels wide until it is clicked: few pixels, and letters that survive that.
    figure = Figure(figsize=(6.0, min(6.5, 2.0 + 0.15 * rows)), dpi=80, layout="constrained")
    FigureCanvasAgg(figure)  # its own canvas: the user's choice of backend is left alone
    return figure, figure.add_subplot()


def _label_layers(axes: Any, labels: Sequence[str]) -> None:
    stride = max(1, math.ceil(len(labels) / 20))
    axes.set_yticks(range(0, len(labels), stride), [_short(label) for label in labels[::stride]], fontsize=10)
    axes.set_ylabel("layer" if stride == 1 else f"layer (every {_ordinal(stride)} is named)")


def _short(label: str, most: int = 26) -> str:
    """The end of a path tells layers apart; what is cut off shows."""
    return label if len(label) <= most else "…" + label[1 - most :]


def _ordinal(number: int) -> str:
    return {2: "2nd", 3: "3rd"}.get(number, f"{number}th")


def _render(figure: Figure) -> Image:
    canvas: Any = figure.canvas
    canvas.draw()
    image: Image = np.asarray(canvas.buffer_rgba())[..., :3].copy()
    return image
