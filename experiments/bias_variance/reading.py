"""The tables of a run, its figures, and what they say in plain words."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

import numpy as np

from experiments.bias_variance.measuring import NOTES, TOLERANCE, Fit, Results
from experiments.console import Claim, Table
from experiments.figures import blank_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def means(fits: list[Fit]) -> tuple[float, float]:
    """Training and dev error, over the seeds."""
    return statistics.fmean(f.train for f in fits), statistics.fmean(f.dev for f in fits)


def rank_correlation(values: list[float]) -> float:
    """Spearman's, with the order of the list: 1 if the values rise all along, −1 if they fall."""
    ranks = [statistics.fmean(i for i, v in enumerate(sorted(values)) if v == value) for value in values]
    return float(np.corrcoef(np.arange(len(values)), ranks)[0, 1]) if len(set(ranks)) > 1 else 0.0


def claims(results: Results) -> list[Claim]:
    """The notes' statements, each judged by what this run measured."""
    short = "" if results.judged else " A quick run is too short to tell."
    agreeing = [k for k, verdict in results.verdicts.items() if verdict == NOTES[k]]
    bias = [means(fits)[0] for fits in results.sizes.values()]
    gaps = [dev - train for train, dev in map(means, results.data.values())]
    trains = [means(fits)[0] for fits in results.data.values()]
    units, samples = list(results.sizes), list(results.data)
    return [
        Claim(
            "1/11 % is high variance, 15/16 % high bias, 15/30 % both, 0.5/1 % neither; with a base error of 15 %, "
            "neither is 15/16 %.",
            len(agreeing) == len(NOTES),
            "diagnose_fit says: "
            + "; ".join(
                f"{100 * a:g}/{100 * b:g}{f' at base {100 * c:g}' if c else ''}: {v}"
                for (a, b, c), v in results.verdicts.items()
            )
            + ".",
        ),
        Claim(
            "A bigger net lowers the bias.",
            rank_correlation(bias) <= -0.7 if results.judged else None,
            f"Training error from {bias[0]:.1%} with {units[0]} unit to {bias[-1]:.1%} with {units[-1]}; rank "
            "correlation "
            f"with the size {rank_correlation(bias):.2f} (−0.7 or less counts as a trend).{short}",
        ),
        Claim(
            "More data lowers the variance, and not the bias.",
            rank_correlation(gaps) <= -0.7 and trains[-1] >= trains[0] - 0.005 if results.judged else None,
            f"Dev minus training error from {gaps[0]:.1%} with {samples[0]} digits to {gaps[-1]:.1%} with "
            f"{samples[-1]:,} (rank correlation {rank_correlation(gaps):.2f}); training error {trains[0]:.1%} and "
            f"{trains[-1]:.1%}.{short}",
        ),
        *_recipe(results, short),
        _few(results),
    ]


def _recipe(results: Results, short: str) -> list[Claim]:
    last = results.recipe[-1]
    pairs = list(zip(results.recipe, results.recipe[1:], strict=False))
    helped = [
        after.errors.train < before.errors.train
        if after.against == "bias"
        else after.errors.dev - after.errors.train < before.errors.dev - before.errors.train
        for before, after in pairs
    ]
    return [
        Claim(
            "The recipe, first against bias and then against variance, leads to low bias and low variance.",
            last.diagnosis.verdict == "low bias, low variance" if results.judged else None,
            f"After {len(pairs)} steps, of which {sum(helped)} lowered what they were meant to: from "
            f"{results.recipe[0].errors.train:.1%}/{results.recipe[0].errors.dev:.1%} "
            f"({results.recipe[0].diagnosis.verdict}) to {last.errors.train:.1%}/{last.errors.dev:.1%} "
            f"({last.diagnosis.verdict}).{short}",
        )
    ]


def _few(results: Results) -> Claim:
    calls = results.calls
    assert calls is not None
    opposite = "low" if calls.truth == "high" else "high"
    naive, careful = calls.without[opposite], calls.with_sizes[opposite]
    return Claim(
        "A gap within its own sampling error must not be called high or low.",
        careful <= 0.05 and careful <= naive,
        f"A net whose variance is {calls.truth} by all dev images, judged on {calls.images} of them at a time, is "
        "called "
        f"{opposite} in {naive:.1%} of 400 draws by the figures alone, in {careful:.1%} with their sampling error, "
        "which "
        f"leaves {calls.with_sizes['unclear']:.1%} unclear.",
    )


def tables(results: Results) -> list[Table]:
    """The recipe, step by step."""
    table = Table(
        "The recipe, step by step",
        ("what was done", "against", "train error", "dev error", "bias", "variance"),
        f"A gap up to {TOLERANCE:.0%} is low; unclear: it cannot be told from that within its sampling error (95 %).",
    )
    for step in results.recipe:
        levels = (step.diagnosis.bias.level, step.diagnosis.variance.level)
        table.rows.append((step.done, step.against, f"{step.errors.train:.1%}", f"{step.errors.dev:.1%}", *levels))
    return [table]


def curves_figure(results: Results) -> Figure:
    """Errors against the size of the net and of the training set."""
    figure = blank_figure(1, 2, panel=(5.2, 4))
    panels = (
        (results.sizes, "hidden units (300 training digits)", "Bigger nets"),
        (results.data, "training digits (64 hidden units)", "More data"),
    )
    for axis, (found, label, title) in zip(figure.axes, panels, strict=True):
        at = list(found)
        for name, color in (("train", "tab:blue"), ("dev", "tab:red")):
            values = 100 * np.array([[getattr(f, name) for f in fits] for fits in found.values()])
            axis.plot(at, values.mean(1), "-o", color=color, label=f"{name} error")
            axis.fill_between(at, values.min(1), values.max(1), color=color, alpha=0.15)
        axis.set_xscale("log")
        axis.set_xticks(at, [str(a) for a in at])
        axis.minorticks_off()
        axis.set(xlabel=label, ylabel="wrong (%)", ylim=(0, None))
        axis.set_title(title, loc="left", fontsize=11)
        axis.legend(loc="upper right")
        axis.grid(alpha=0.3)
    return figure


def recipe_figure(results: Results) -> Figure:
    """Training and dev error at every step of the recipe."""
    figure = blank_figure(1, 1, panel=(8, 0.55 * len(results.recipe) + 1.4))
    (axis,) = figure.axes
    places = np.arange(len(results.recipe))
    bias = np.array([100 * step.errors.train for step in results.recipe])
    dev = np.array([100 * step.errors.dev for step in results.recipe])
    axis.barh(places, bias, color="tab:blue", label="bias: training error")
    axis.barh(places, np.maximum(dev - bias, 0), left=bias, color="tab:red", label="variance: dev minus training error")
    for place, step in zip(places, results.recipe, strict=True):
        axis.annotate(
            f" {step.diagnosis.verdict.partition(':')[0]}",
            (max(dev[place], bias[place]), place),
            va="center",
            fontsize=8,
        )
    axis.set_yticks(places, [step.done for step in results.recipe])
    axis.invert_yaxis()
    axis.set_xlim(0, max(dev.max(), bias.max()) * 1.45)
    axis.set(xlabel="wrong (%)")
    axis.set_title("The recipe followed on the digits", loc="left", fontsize=11)
    axis.legend(loc="lower right", fontsize=9)
    return figure
