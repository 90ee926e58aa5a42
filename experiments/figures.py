"""Pictures that several experiments draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN_DECADES = 0.3  # colours saturate at a factor of 2 per layer: that is 10^15 over 50 layers


def growth_heat_map(
    title: str, rows: Sequence[str], columns: Sequence[str], panels: Mapping[str, npt.NDArray[np.float64]]
) -> Figure:
    """Growth per layer as coloured cells: blue vanishes, white is kept, red explodes.

    Args:
        title: over all panels.
        rows: labels.
        columns: labels.
        panels: title of a panel → factors, an array of (rows, columns).
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * len(panels) + 0.6, 0.75 * len(rows) + 1.9), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for index, (axis, (name, growth)) in enumerate(zip(axes, panels.items(), strict=True)):
        image = axis.imshow(np.log10(growth), cmap="RdBu_r", vmin=-SHOWN_DECADES, vmax=SHOWN_DECADES, aspect="auto")
        axis.set_title(name, fontsize=11)
        axis.set_xticks(range(len(columns)), columns)
        axis.set_yticks(range(len(rows)), rows if index == 0 else [""] * len(rows))
        axis.tick_params(length=0)
        for (row, column), factor in np.ndenumerate(growth):
            dark = abs(np.log10(factor)) > 0.6 * SHOWN_DECADES
            axis.text(
                column, row, f"×{factor:.3f}", ha="center", va="center", color="white" if dark else "black", fontsize=12
            )
    bar = figure.colorbar(image, ax=list(axes), ticks=[-SHOWN_DECADES, 0, SHOWN_DECADES], shrink=0.9)
    bar.ax.set_yticklabels(["×½ or less\nvanishes", "×1\nkept", "×2 or more\nexplodes"])
    figure.suptitle(title, fontsize=12)
    return figure
