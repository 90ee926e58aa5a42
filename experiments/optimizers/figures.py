"""The pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from experiments.figures import blank_figure
from experiments.optimizers.critical import KNOWN
from experiments.optimizers.measuring import FAR, LEFT, RATE, Results
from experiments.optimizers.rules import COLORS, CURVATURE, RULES, plateau, saddle, walk

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def bowl_figure(results: Results) -> Figure:
    """The way of each rule down the bowl, one panel each."""
    figure = blank_figure(2, 2, panel=(5.2, 3.0), title=f"The way down ½(x² + {CURVATURE:g} y²), each at its best rate")
    xs, ys = np.meshgrid(np.linspace(-9, 3, 120), np.linspace(-1.6, 1.6, 80))
    heights = 0.5 * (xs**2 + CURVATURE * ys**2)
    for axes, name in zip(figure.axes, RULES, strict=True):
        axes.contour(xs, ys, heights, levels=np.geomspace(0.2, 80, 12), colors="lightgray", linewidths=0.8)
        axes.plot(0, 0, "*", color="gray", ms=10)
        axes.set(xlabel="x", ylabel="y", xlim=(-9, 3), ylim=(-1.6, 1.6))
        if name in results.paths:
            axes.plot(*np.array(results.paths[name]).T, ".-", color=COLORS[name], lw=1, ms=4)
            rate, steps = results.bowl[name]
            axes.set_title(f"{name}: {steps} steps at α = {rate:g}", fontsize=10)
        else:
            axes.set_title(f"{name}: not settled", fontsize=10)
    return figure


def leaving_figure(results: Results, steps: int = 250) -> Figure:
    """Where each rule is after every step, on the plateau and beside the saddle."""
    figure = blank_figure(1, 2, panel=(5.2, 3.9))
    left, right = figure.axes
    for name, rule in RULES.items():
        far = walk(plateau, [FAR], rule, RATE, steps)
        left.plot(range(1, len(far)), [point[0] for point in far[1:]], color=COLORS[name], label=name)
        away = walk(saddle, [1.0, 1e-6], rule, RATE, steps)
        right.semilogy(range(1, len(away)), [abs(point[1]) for point in away[1:]], color=COLORS[name], label=name)
    left.set(xscale="log", xlabel="step", ylabel="w", ylim=(-4, FAR + 0.5))
    left.set_title(f"On the plateau ½σ(w)² from w = {FAR:g}", fontsize=11)
    right.axhline(LEFT, color="lightgray", zorder=0)
    right.set(xscale="log", xlabel="step", ylabel="|y|, distance from the saddle")
    right.set_title("Beside the saddle, from y = 1e-6", fontsize=11)
    left.legend(loc="lower left", fontsize=9)
    return figure


def minima_figure(results: Results) -> Figure:
    """Share of random symmetric matrices without a negative eigenvalue, and the surface of a saddle."""
    figure = blank_figure(1, 2, panel=(5.2, 3.9))
    left, right = figure.axes
    shares = {dimension: share for dimension, share in results.positive.items() if share > 0}
    left.semilogy(list(shares), list(shares.values()), "o", color="tab:blue", label="measured")
    left.semilogy(list(KNOWN), list(KNOWN.values()), "_", color="black", ms=18, mew=2, label="known")
    left.set(xlabel="dimension", ylabel="share with only positive eigenvalues")
    left.set_title("Random symmetric matrices", fontsize=11)
    left.set_xticks(list(results.positive))
    left.legend()
    sizes = [str(size) for size in results.nets]
    saddles = [1 - lowest / max(found, 1) for found, lowest in results.nets.values()]
    bars = right.bar(sizes, saddles, color="tab:orange", width=0.6)
    right.bar_label(bars, [f"{found - lowest} of {found}" for found, lowest in results.nets.values()], padding=2)
    right.set(xlabel="parameters of the net", ylabel="share of saddles", ylim=(0, 1.15))
    right.set_title("Critical points found of small nets", fontsize=11)
    return figure


def digits_figure(results: Results) -> Figure:
    """Training cost epoch by epoch."""
    figure = blank_figure(1, 1, panel=(6.5, 4.2))
    axes = figure.axes[0]
    for name, training in results.digits.items():
        epochs = range(1, len(training.costs) + 1)
        axes.semilogy(epochs, training.costs, "o-", ms=4, color=COLORS[name], label=f"{name}, α = {training.rate:g}")
    axes.set(xlabel="epoch", ylabel="training cost, mean over the epoch")
    axes.set_title("The digits, each rule at the best rate of a grid", loc="left")
    axes.legend()
    return figure


def heights(path: list[list[float]]) -> list[float]:
    """Log10 of the height on the bowl along a way."""
    points = torch.tensor(path, dtype=torch.float64)
    values = 0.5 * (points[:, 0] ** 2 + CURVATURE * points[:, 1] ** 2)
    logs: list[float] = values.clamp_min(1e-12).log10().tolist()
    return logs
