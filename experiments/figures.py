"""Pictures that several experiments draw."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

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


def blank_figure(rows: int, columns: int, *, panel: tuple[float, float] = (4.6, 3.8), title: str = "") -> Figure:
    """A figure of ``rows`` × ``columns`` empty panels, ``figure.axes`` row by row, each ``panel`` inches large."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(panel[0] * columns, panel[1] * rows + (0.4 if title else 0)), layout="constrained")
    FigureCanvasAgg(figure)
    figure.subplots(rows, columns)
    if title:
        figure.suptitle(title, fontsize=12)
    return figure


def draw_regions(axis: Any, classify: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, *, classes: int = 2) -> None:
    """Colour the plane by the class a model gives each point of it, with the samples on top.

    Args:
        axis: of matplotlib.
        classify: from points (k, 2) to class numbers (k,) or (k, 1).
        x: the samples, (m, 2).
        y: their classes, (m,) or (m, 1).
        classes: how many there are, at most 10.
    """
    from matplotlib.colors import ListedColormap

    colors = ["tab:blue", "tab:red", "tab:green", "tab:orange", "tab:purple"] + [f"C{k}" for k in range(5, 10)]
    points, labels = x.detach().cpu().numpy(), y.detach().flatten().cpu().numpy()
    low, high = points.min(0), points.max(0)
    margin = 0.08 * (high - low)
    sides = [np.linspace(a, b, 200) for a, b in zip(low - margin, high + margin, strict=True)]
    grid = np.stack(np.meshgrid(*sides), axis=-1)
    flat = torch.as_tensor(grid.reshape(-1, 2), dtype=x.dtype, device=x.device)
    with torch.no_grad():
        given = classify(flat).flatten().cpu().numpy().reshape(grid.shape[:2])
    cmap = ListedColormap(colors[:classes])
    axis.pcolormesh(
        *sides, given, cmap=cmap, vmin=-0.5, vmax=classes - 0.5, alpha=0.25, shading="auto", rasterized=True
    )
    axis.scatter(*points.T, c=labels, cmap=cmap, vmin=-0.5, vmax=classes - 0.5, s=9, edgecolors="none")
    axis.set(xlabel="x₁", ylabel="x₂")
