"""The tables of a run, its figures, and what they say in plain words."""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING

import numpy as np

from experiments.console import Claim, Table
from experiments.dropout.measuring import (
    EVERY,
    FIXED,
    FRESH,
    INPUT,
    KEEP_PROBS,
    LARGEST,
    NONE,
    OFF,
    SIGMAS,
    SMALLEST,
    Results,
)
from experiments.figures import blank_figure
from torchnotes.training import MonotonicReport, check_monotonic

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def monotonic(results: Results) -> dict[str, MonotonicReport]:
    """Whether J fell at every step."""
    return {kind: check_monotonic(costs) for kind, costs in results.costs.items()}


def advantage(results: Results, better: str, worse: str) -> tuple[float, float]:
    """By how much one way errs less on dev images than another: mean over the seeds, and its standard error."""
    pairs = zip(results.trained[better].dev, results.trained[worse].dev, strict=True)
    gains = [second - first for first, second in pairs]
    spread = statistics.stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else math.inf
    return statistics.fmean(gains), spread


def claims(results: Results) -> list[Claim]:
    """The notes' statements, each judged by what this run measured."""
    return [*_mask_claims(results), *_training_claims(results), *_prediction_claims(results)]


def _mask_claims(results: Results) -> list[Claim]:
    eight, reports = results.masks[0.8], monotonic(results)
    far = max(abs(m.mean - 1) / m.mean_error if m.mean_error else abs(m.mean - 1) for m in results.masks.values())
    rises = len(reports[FRESH].rises)
    return [
        Claim(
            "Of 50 units with keep_prob 0.8, 10 are zeroed on average, other ones for every sample.",
            abs(eight.zeroed - 10) < SIGMAS * eight.zeroed_error and eight.never_kept == 0,
            f"Measured {eight.zeroed:.3f} ± {eight.zeroed_error:.3f}; units dropped for every sample: "
            f"{eight.never_kept}.",
        ),
        Claim(
            "Divided by keep_prob, the expected output is unchanged, whatever keep_prob is.",
            far < SIGMAS,
            "Mean of ones: "
            + ", ".join(f"{m.mean:.4f} with {p}" for p, m in results.masks.items())
            + f" (at most {far:.1f} standard errors from 1). Without the division: "
            + ", ".join(f"{m.undivided:.3f}" for m in results.masks.values())
            + ".",
        ),
        Claim(
            "With dropout off, J of full-batch gradient descent falls at every step; with it on, it does not.",
            reports[OFF].monotonic and not reports[FRESH].monotonic,
            f"Off: {len(reports[OFF].rises)} rises in {len(results.costs[OFF]) - 1} steps; on: {rises}, the largest by "
            f"{reports[FRESH].largest_rise:.2g}.",
        ),
        Claim(
            "It is the fresh mask that makes J another function at each step: with one mask held fixed, J falls again.",
            reports[FIXED].monotonic,
            f"{len(reports[FIXED].rises)} rises with one mask.",
        ),
    ]


def _training_claims(results: Results) -> list[Claim]:
    short = "" if results.judged else " A quick run is too short to tell."
    plain, every = results.trained[NONE], results.trained[EVERY]
    gain, chance = advantage(results, EVERY, NONE)
    place, place_chance = advantage(results, LARGEST, SMALLEST)
    inputs, input_chance = advantage(results, NONE, INPUT)
    norms = statistics.fmean(plain.norm), statistics.fmean(every.norm)
    return [
        Claim(
            "Dropout prevents overfitting: a large net on few samples errs less on new ones.",
            gain > 2 * chance if results.judged else None,
            f"Dev error {plain.dev_mean:.1%} without (training error {statistics.fmean(plain.train):.1%}), "
            f"{every.dev_mean:.1%} with keep_prob 0.5 in both hidden layers: {_points(gain, chance)} better.{short}",
        ),
        Claim(
            "keep_prob should be lowest at the largest layer.",
            place > 2 * place_chance if results.judged else None,
            f"Dev error {results.trained[LARGEST].dev_mean:.1%} with 0.5 after the 256 units, "
            f"{results.trained[SMALLEST].dev_mean:.1%} with 0.5 after the 64: a difference of "
            f"{_points(place, place_chance)}.{short}",
        ),
        Claim(
            "Dropping half of the inputs does harm.",
            inputs > 2 * input_chance if results.judged else None,
            f"Dev error {results.trained[INPUT].dev_mean:.1%} with keep_prob 0.5 at the input, {plain.dev_mean:.1%} "
            f"without: a difference of {_points(inputs, input_chance)}.{short}",
        ),
        Claim(
            "Dropout shrinks the squared norm of the weights, as L2 does.",
            norms[1] < norms[0] if results.judged else None,
            f"Σ‖W‖² is {norms[1]:.0f} with dropout, {norms[0]:.0f} without, after the same steps.{short}",
        ),
    ]


def _points(gain: float, chance: float) -> str:
    return f"{100 * gain:.1f} ± {100 * chance:.1f} points" if math.isfinite(chance) else f"{100 * gain:.1f} points"


def _prediction_claims(results: Results) -> list[Claim]:
    most = max(results.passes)
    distance, same = results.passes[most]
    single = statistics.fmean(results.one_pass_errors)
    return [
        Claim(
            "Dropout at test time disturbs the prediction.",
            single > results.off_error and len(set(results.one_pass_errors)) > 1,
            f"Dev error {results.off_error:.1%} with dropout off; one pass with it on: "
            f"{min(results.one_pass_errors):.1%} "
            f"to {max(results.one_pass_errors):.1%}, another answer each time.",
        ),
        Claim(
            "The average of many passes gives nearly the same as switching dropout off, at many times the work.",
            same > 0.97 and distance < results.passes[1][0] / 2 if results.judged else None,
            f"The average of {most:,} passes gives the same answer on {same:.1%} of the images and errs on "
            f"{results.average_error:.1%}; its outputs differ by {distance:.1%}, those of one pass by "
            f"{results.passes[1][0]:.1%}.",
        ),
    ]


def tables(results: Results) -> list[Table]:
    """What dropout is worth, where."""
    seeds = len(results.trained[NONE].dev)
    table = Table(
        "Few digits, a large net (64-256-64-10)",
        ("dropout", "keep_prob: input, 256, 64", "training error", "dev error", "Σ‖W‖²"),
        f"Means over {seeds} split{'s' * (seeds > 1)} of the digits; the same number of steps for all.",
    )
    for name, found in results.trained.items():
        keep = ", ".join(f"{p:g}" for p in KEEP_PROBS[name])
        errors = (f"{statistics.fmean(found.train):.1%}", f"{found.dev_mean:.1%}")
        table.rows.append((name, keep, *errors, f"{statistics.fmean(found.norm):.0f}"))
    return [table]


def cost_figure(results: Results) -> Figure:
    """J step by step, and what J with dropout off does meanwhile."""
    figure = blank_figure(1, 1, panel=(7, 4))
    (axis,) = figure.axes
    reports = monotonic(results)
    for kind, costs in results.costs.items():
        axis.semilogy(np.arange(len(costs)), costs, label=f"{kind}: {len(reports[kind].rises)} rises")
    axis.set(xlabel="step of full-batch gradient descent", ylabel="J")
    axis.set_title("J with dropout off, with fresh masks, with one mask", loc="left", fontsize=11)
    axis.legend()
    axis.grid(alpha=0.3)
    return figure


def passes_figure(results: Results) -> Figure:
    """Distance of the averaged output from dropout off, against the number of passes."""
    figure = blank_figure(1, 1, panel=(7, 4))
    (axis,) = figure.axes
    counts = np.array(list(results.passes))
    distances = np.array([distance for distance, _ in results.passes.values()])
    axis.loglog(counts, 100 * distances, "-o", label="measured")
    axis.loglog(counts, 100 * distances[0] / np.sqrt(counts), ":", color="gray", label="1/√k, if only chance differed")
    axis.set_yticks([3, 10, 30, 100], ["3", "10", "30", "100"])
    axis.minorticks_off()
    axis.set(xlabel="passes averaged, k", ylabel="distance from dropout off (%)")
    axis.set_title("The average of k passes against one pass with dropout off", loc="left", fontsize=11)
    axis.legend()
    axis.grid(alpha=0.3)
    return figure
