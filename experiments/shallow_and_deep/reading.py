"""The tables, the pictures, and what they say in plain words."""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING

import numpy as np

from experiments.console import Claim, Table, amount
from experiments.figures import blank_figure, draw_regions
from experiments.shallow_and_deep.measuring import ACTIVATIONS, DEEP, LINEAR, Lap, Results, Trained

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def mean(nets: list[Trained], name: str) -> float:
    """Mean error over the seeds."""
    return statistics.fmean(getattr(net, name) for net in nets)


def shown(lap: Lap) -> str:
    """The median number of steps, or that it did not arrive."""
    return f"{lap.median:,.0f}" if math.isfinite(lap.median) else f"over {lap.limit:,}"


def wins(results: Results, first: str, second: str) -> tuple[list[str], list[str]]:
    """The problems on which the first activation needs fewer steps than the second, and those where it does not.

    Where neither arrives, or both after the same number of steps, it is no win.
    """
    names = dict.fromkeys(problem for problem, _ in results.race)
    won = [n for n in names if results.race[n, first].median < results.race[n, second].median]
    return won, [n for n in names if n not in won]


def claims(results: Results) -> list[Claim]:
    """The notes' statements, each judged by what this run measured."""
    return [*_flower(results), *_activations(results)]


def _flower(results: Results) -> list[Claim]:
    single = mean(results.single, "train_error")
    trains = {units: mean(nets, "train_error") for units, nets in results.shallow.items()}
    best = min(trains, key=trains.__getitem__)
    few, many = min(trains), max(trains)
    linear = mean(results.deep[LINEAR], "train_error")
    trend = _rank_correlation(list(trains), list(trains.values()))
    deep = {name: mean(results.deep[name], "train_error") for name in DEEP}
    return [
        Claim(
            "Logistic regression cannot separate the flower; a hidden layer of non-linear units can.",
            single > 0.3 and trains[best] < 0.15,
            f"Training error {single:.1%} without a hidden layer, {trains[best]:.1%} with {best} tanh units.",
        ),
        Claim(
            "A bigger net fits the training set better: from high bias to low.",
            trend <= -0.7 and trains[many] < trains[few] if results.judged else None,
            "Training error "
            + ", ".join(f"{error:.1%} with {units}" for units, error in trains.items())
            + f" units; rank correlation with the size {trend:.2f} (−0.7 or less counts as a trend)."
            + ("" if results.judged else " A quick run is too short to tell."),
        ),
        Claim(
            "A deep net of narrow layers fits what a wide shallow one fits.",
            min(deep.values()) <= trains[many] + 0.01 if results.judged else None,
            "Training error "
            + ", ".join(f"{e:.1%} with {n} ({results.deep[n][0].parameters} parameters)" for n, e in deep.items())
            + f", {trains[many]:.1%} with one of {many} ({results.shallow[many][0].parameters}).",
        ),
        Claim(
            "Layers without a non-linear activation are one linear map, however deep.",
            results.collapse < 1e-12 and linear > 0.3,
            f"The product of five layers departs from the net by {amount(results.collapse)}, and the trained net errs "
            f"on {linear:.1%}, as logistic regression does ({single:.1%}).",
        ),
        Claim(
            "W⁽ˡ⁾ has the shape (n_l, n_{l-1}), and dW⁽ˡ⁾ the same.",
            results.shapes == ["(8, 2)", "(8, 8)", "(8, 8)", "(1, 8)"],
            f"In 2-8-8-8-1: {', '.join(results.shapes)}.",
        ),
    ]


def _rank_correlation(first: list[int], second: list[float]) -> float:
    """Spearman's: 1 if both rise together, −1 if one falls as the other rises."""
    return float(np.corrcoef(np.argsort(np.argsort(first)), np.argsort(np.argsort(second)))[0, 1])


def _activations(results: Results) -> list[Claim]:
    (sigmoid, far_sigmoid), (tanh, far_tanh) = results.slopes["sigmoid"], results.slopes["tanh"]
    return [
        Claim(
            "The slope of sigmoid is 1/4 at 0, that of tanh 1; both are almost 0 at z = 10, tanh's sooner.",
            abs(sigmoid - 0.25) < 1e-12 and abs(tanh - 1) < 1e-12 and far_tanh < far_sigmoid < 1e-4,
            f"Measured {sigmoid:g} and {tanh:g} at 0, {far_sigmoid:.1e} and {far_tanh:.1e} at 10.",
        ),
        _race(results, "tanh", "sigmoid", "tanh is better than sigmoid in hidden layers on every problem (SPEC G9)."),
        _race(results, "relu", "sigmoid", "ReLU learns in fewer steps than sigmoid."),
        _race(results, "relu", "tanh", "ReLU learns in fewer steps than tanh."),
        _race(results, "leaky_relu", "relu", "Leaky ReLU does better than ReLU.", most=True),
    ]


def _race(results: Results, first: str, second: str, text: str, *, most: bool = False) -> Claim:
    """Held if the first wins on every problem, or on most of them."""
    won, lost = wins(results, first, second)
    held = len(won) > len(lost) if most else not lost
    pairs = [f"{n}: {shown(results.race[n, first])} steps against {shown(results.race[n, second])}" for n in won + lost]
    note = "" if results.judged else " A quick run is too short to tell."
    return Claim(
        text,
        held if results.judged else None,
        f"Fewer steps on {len(won)} of {len(won) + len(lost)} problems. {'; '.join(pairs)}.{note}",
    )


def tables(results: Results) -> list[Table]:
    """The flower, and the race."""
    flower = Table(
        "The planar flower",
        ("net", "activation", "parameters", "train error", "test error"),
        f"Means over {len(results.single)} seeds; {len(results.y):,} training, {results.test_samples:,} fresh points.",
    )
    rows = [("logistic regression", "none", results.single)]
    rows += [(f"one hidden layer of {units}", "tanh", nets) for units, nets in results.shallow.items()]
    rows += [(name, "none" if name == LINEAR else "tanh", nets) for name, nets in results.deep.items()]
    for name, activation, nets in rows:
        errors = (f"{mean(nets, 'train_error'):.1%}", f"{mean(nets, 'test_error'):.1%}")
        flower.rows.append((name, activation, str(nets[0].parameters), *errors))
    seeds = len(next(iter(results.race.values())).steps)
    race = Table(
        "Steps of gradient descent to the same cost",
        ("problem", "best rates", *ACTIVATIONS.values()),
        f"Median of {seeds} seed{'s' * (seeds > 1)}, whole training set in each step, each activation at the best rate "
        "of a grid.",
    )
    for problem in dict.fromkeys(p for p, _ in results.race):
        laps = [results.race[problem, a] for a in ACTIVATIONS]
        race.rows.append((problem, ", ".join(f"{lap.rate:g}" for lap in laps), *map(shown, laps)))
    return [flower, race]


def regions_figure(results: Results) -> Figure:
    """How each net divides the plane: the best of its seeds."""
    units = list(results.shallow)
    picked = [units[0], units[len(units) // 3], units[len(units) // 2], units[-2], units[-1]]
    panels = [("logistic regression", results.single)]
    panels += [(f"one hidden layer of {n}", results.shallow[n]) for n in dict.fromkeys(picked)]
    panels += list(results.deep.items())
    columns = 3
    figure = blank_figure(math.ceil(len(panels) / columns), columns, panel=(3.4, 3.2))
    for axis, (name, nets) in zip(figure.axes, panels, strict=False):
        best = min(nets, key=lambda net: net.train_error)
        draw_regions(axis, lambda p, net=best.net: (net(p) > 0).long(), results.x, results.y)  # type: ignore[misc]
        axis.set_title(f"{name}: {best.train_error:.1%} wrong", fontsize=10)
    for axis in figure.axes[len(panels) :]:
        axis.set_visible(False)
    return figure


def units_figure(results: Results) -> Figure:
    """Error against the number of hidden units."""
    figure = blank_figure(1, 1, panel=(7, 4))
    (axis,) = figure.axes
    units = list(results.shallow)
    for name, label, color in (
        ("train_error", "training points", "tab:blue"),
        ("test_error", "fresh points", "tab:red"),
    ):
        values = np.array([[getattr(net, name) for net in results.shallow[n]] for n in units]) * 100
        axis.plot(units, values.mean(1), "-o", color=color, label=label)
        axis.fill_between(units, values.min(1), values.max(1), color=color, alpha=0.15)
    axis.axhline(100 * mean(results.single, "train_error"), ls=":", color="gray", label="logistic regression")
    axis.set_xscale("log")
    axis.set_xticks(units, [str(n) for n in units])
    axis.minorticks_off()
    axis.set(xlabel="tanh units in the hidden layer", ylabel="wrong (%)", ylim=(0, None))
    axis.set_title("The planar flower: error against the size of the hidden layer", loc="left", fontsize=11)
    axis.legend(loc="center right", bbox_to_anchor=(1, 0.75))
    axis.grid(alpha=0.3)
    return figure


def race_figure(results: Results) -> Figure:
    """Steps to the target as bars, one group a problem."""
    figure = blank_figure(1, 1, panel=(9, 4.4))
    (axis,) = figure.axes
    problems = list(dict.fromkeys(p for p, _ in results.race))
    for k, (activation, label) in enumerate(ACTIVATIONS.items()):
        laps = [results.race[p, activation] for p in problems]
        places = np.arange(len(problems)) + 0.2 * (k - 1.5)
        heights = [min(lap.median, lap.limit) for lap in laps]
        bars = axis.bar(places, heights, 0.18, label=label)
        for bar, lap in zip(bars, laps, strict=True):
            arrived = math.isfinite(lap.median)
            if not arrived:
                bar.set(fill=False, hatch="///", edgecolor=bar.get_facecolor())
            text = f"{lap.median:,.0f}" if arrived else f">{lap.limit:,}"
            axis.annotate(
                text, (bar.get_x() + bar.get_width() / 2, bar.get_height()), ha="center", va="bottom", fontsize=7
            )
    axis.set_yscale("log")
    axis.set_ylim(None, axis.get_ylim()[1] * 3)
    axis.set_xticks(range(len(problems)), [p.replace(", ", "\n") for p in problems])
    axis.set(ylabel="steps to the target cost")
    axis.set_title("Steps of gradient descent, each activation at its best rate", loc="left", fontsize=11)
    axis.legend(ncols=4, loc="upper right", fontsize=9)
    return figure
