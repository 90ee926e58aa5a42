"""The tables of a run, its figures, and what they say in plain words."""

from __future__ import annotations

import math
from itertools import pairwise
from statistics import mean, stdev
from typing import TYPE_CHECKING

import numpy as np

from experiments.batch_norm.measuring import BATCH, DEPTHS, LEARNED, Results
from experiments.console import Claim, Table, amount
from experiments.figures import blank_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WORDS = {True: "with", False: "without"}
COLORS = {True: "tab:blue", False: "tab:red"}


def learned(results: Results, normed: bool, depth: int | None = None) -> list[float]:
    """The rates at which nets of one depth (or all) ended below the cost that counts as learned."""
    return [
        rate
        for (with_it, layers, rate), cost in results.costs.items()
        if with_it == normed and depth in (None, layers) and cost < LEARNED
    ]


def tables(results: Results) -> list[Table]:
    """Training cost by rate, depth and scale; dev error by how the statistics are taken."""
    rates = sorted({rate for _, _, rate in results.costs})
    costs = Table(
        "Training cost at each learning rate",
        ("batch norm", "hidden layers", *(f"{rate:g}" for rate in rates)),
        f"Mean over the last epoch; – where it diverged. Guessing costs 2.3; below {LEARNED} counts as learned.",
    )
    for normed, depth in sorted({(normed, depth) for normed, depth, _ in results.costs}):
        costs.rows.append((WORDS[normed], str(depth), *(_cost(results.costs[normed, depth, rate]) for rate in rates)))
    gains = sorted({gain for _, gain in results.scales})
    scales = Table(
        f"Training cost at rate 0.1 by scale of the initial weights, {DEPTHS[1]} hidden layers",
        ("batch norm", "He's standard deviation times", *(f"{gain:g}" for gain in gains)),
    )
    for normed in (False, True):
        scales.rows.append((WORDS[normed], "", *(_cost(results.scales[normed, gain]) for gain in gains)))
    test = Table("Dev images wrong", ("statistics", "", "wrong"))
    test.rows += [(name, "", f"{error:.1%}") for name, error in results.test.items()]
    return [costs, scales, test]


def _cost(cost: float) -> str:
    return f"{cost:.2f}" if math.isfinite(cost) else "–"


def claims(results: Results) -> list[Claim]:
    """The notes' statements, each judged by what this run measured."""
    return [*_identities(results), *_training(results), *_noise(results), *_test(results)]


def _identities(results: Results) -> list[Claim]:
    moved, gradient = results.bias
    apart, ratio, known = results.running
    return [
        Claim(
            "With γ = √(σ² + ε) and β = μ it is the identity.",
            results.identity < 1e-12,
            f"Largest |z̃ − z| {amount(results.identity)}, in float64.",
        ),
        Claim(
            "A bias before it is redundant: it is subtracted with the mean.",
            moved < 1e-12 and gradient < 1e-12,
            f"Moved by 3 it changes the output by {amount(moved)}; its gradient is {amount(gradient)}.",
        ),
        Claim(
            "The notes' running average and PyTorch's keep the same mean; the variances differ by m/(m − 1).",
            apart < 1e-12 and math.isclose(ratio, known, rel_tol=1e-9),
            f"With β = 0.9 and momentum = 0.1, batches of 8: means {amount(apart)} apart, variances in the ratio "
            f"{ratio:.6f} (8/7 = {8 / 7:.6f}).",
        ),
    ]


def _training(results: Results) -> list[Claim]:
    judged = results.judged
    reach = {normed: learned(results, normed) for normed in (False, True)}
    total = sum(1 for normed, _, _ in results.costs if normed)
    depths = sorted({depth for _, depth, _ in results.costs})
    deep = depths[-1]
    best = {
        (normed, depth): min(c for (n, d, _), c in results.costs.items() if (n, d) == (normed, depth))
        for normed in (False, True)
        for depth in depths
    }
    scales = {normed: [g for (n, g), c in results.scales.items() if n == normed and c < LEARNED] for normed in (0, 1)}
    ends = {normed: shifts[-1] for normed, shifts in results.shifts.items()}
    return [
        Claim(
            "With it the net is less sensitive to hyperparameters: more learning rates work.",
            len(reach[True]) > len(reach[False]) if judged else None,
            f"{len(reach[True])} of {total} nets (depths {', '.join(map(str, depths))}, all rates) learned with it, "
            f"{len(reach[False])} without; the largest rate that works is {_largest(reach[True])} against "
            f"{_largest(reach[False])}.",
        ),
        Claim(
            "With it more scales of the initial weights work.",
            len(scales[True]) > len(scales[False]) if judged else None,
            f"Of {len(results.scales) // 2} scales {len(scales[True])} learned with it, {len(scales[False])} without.",
        ),
        Claim(
            "With it a deep net trains faster: after the same epochs, each at its best rate, its cost is lower.",
            all(best[True, depth] < best[False, depth] for depth in depths) if judged else None,
            "Lowest training cost with it and without: "
            + ", ".join(f"{best[True, d]:.3f} and {best[False, d]:.3f} ({d} layers)" for d in depths)
            + f"; the deepest has {deep}.",
        ),
        Claim(
            "What a layer hands on shifts less while the layers before it learn.",
            ends[True][0] < ends[False][0] and ends[True][1] < ends[False][1] if judged else None,
            f"From the first step to the last the mean of a hidden unit moved by {ends[True][0]:.2f} of its standard "
            f"deviation with it and {ends[False][0]:.2f} without; the deviation by a factor of "
            f"{math.exp(ends[True][1]):.2f} against {math.exp(ends[False][1]):.2f}.",
        ),
    ]


def _largest(rates: list[float]) -> str:
    return f"{max(rates):g}" if rates else "none"


def _noise(results: Results) -> list[Claim]:
    sizes = list(results.noise)
    slope = math.log(results.noise[sizes[-1]] / results.noise[sizes[0]]) / math.log(sizes[-1] / sizes[0])
    held, evidence = None, "A quick run is too short to tell."
    if results.judged:
        small, large = sizes_of(results)
        gains = [
            [without - with_it for without, with_it in zip(results.gaps[False, s], results.gaps[True, s], strict=True)]
            for s in (small, large)
        ]
        more = [a - b for a, b in zip(*gains, strict=True)]
        error = stdev(more) / math.sqrt(len(more))
        held = None if abs(mean(more)) <= 2 * error else mean(more) > 0
        evidence = (
            f"It narrows the gap between dev and training cost by {mean(gains[0]):.3f} with batches of {small} and by "
            f"{mean(gains[1]):.3f} with all {large} at once; the difference, {mean(more):+.3f} ± {error:.3f} over "
            f"{len(more)} seeds, " + ("is within chance." if held is None else "is above chance.")
        )
    return [
        Claim(
            "The other samples of a batch bring noise, which falls as the batch grows: like 1/√m.",
            all(a > b for a, b in pairwise(results.noise.values())) and abs(slope + 0.5) < 0.1,
            "Standard deviation of a sample's normalised values: "
            + ", ".join(f"{value:.3f} ({size})" for size, value in results.noise.items())
            + f"; the exponent is {slope:.2f}.",
        ),
        Claim("It regularises a little, and less with large batches.", held, evidence),
    ]


def sizes_of(results: Results) -> tuple[int, int]:
    """The small and the large batch of the comparison of gaps."""
    sizes = sorted({size for _, size in results.gaps})
    return sizes[0], sizes[-1]


def _test(results: Results) -> list[Claim]:
    apart, refusal = results.single
    test = results.test
    running, own = test["PyTorch's running averages"], test["the dev set's own statistics"]
    two, notes = test["statistics of two images at a time"], test["the notes' running averages"]
    return [
        Claim(
            "At test time one sample is enough: running averages take the place of the batch's μ and σ².",
            apart < 1e-12
            and "more than 1 value per channel" in refusal
            and math.isclose(running, test["PyTorch's, one image at a time"], abs_tol=1e-9),
            f"Alone and in a batch a sample's output is the same to {amount(apart, none='the last bit')}; in training "
            "one alone is refused.",
        ),
        Claim(
            "The running averages do as well as the statistics of the whole set, and far better than a small batch's.",
            abs(running - own) < 0.02 and abs(notes - own) < 0.02 and two > running + 0.05 if results.judged else None,
            f"Wrong: {notes:.1%} with the notes' average, {running:.1%} with PyTorch's, {own:.1%} with the dev set's "
            f"own statistics, {two:.1%} with those of two images at a time.",
        ),
    ]


def costs_figure(results: Results) -> Figure:
    """Training cost over the rates: one panel a depth."""
    depths = sorted({depth for _, depth, _ in results.costs})
    figure = blank_figure(1, len(depths), panel=(3.9, 3.8), title="Training cost by learning rate; × where it diverged")
    for axes, depth in zip(figure.axes, depths, strict=True):
        for normed in (False, True):
            points = [(r, c) for (n, d, r), c in results.costs.items() if (n, d) == (normed, depth)]
            rates, values = np.array(points).T
            shown = np.where(np.isfinite(values), np.minimum(values, 8.0), np.nan)
            axes.plot(rates, shown, "o-", color=COLORS[normed], label=f"{WORDS[normed]} batch norm")
            lost = rates[~np.isfinite(values)]
            axes.plot(lost, np.full(len(lost), 8.0), "x", color=COLORS[normed], ms=9, mew=2)
        axes.axhline(LEARNED, color="lightgray", zorder=0)
        axes.set(xscale="log", yscale="log", ylim=(5e-4, 12), xlabel="learning rate")
        axes.set_title(f"{depth} hidden layers", fontsize=11)
    figure.axes[0].set_ylabel("training cost, last epoch")
    figure.axes[-1].legend(loc="lower left", fontsize=9)
    return figure


def shift_figure(results: Results) -> Figure:
    """Mean and spread of a hidden layer, step by step."""
    figure = blank_figure(
        1, 2, panel=(5, 3.8), title="A hidden layer's values over the same images, while the net learns"
    )
    for column, (axes, label) in enumerate(
        zip(figure.axes, ("|mean − first mean| / first std", "|ln(std / first std)|"), strict=True)
    ):
        for normed, shifts in results.shifts.items():
            axes.plot([pair[column] for pair in shifts], color=COLORS[normed], label=f"{WORDS[normed]} batch norm")
        axes.set(xlabel=f"step (batches of {BATCH})", ylabel=f"{label}, mean over units")
    figure.axes[0].legend(loc="center right")
    return figure


def noise_figure(results: Results) -> Figure:
    """Noise of a sample's values by batch size."""
    figure = blank_figure(1, 1, panel=(6.5, 4))
    axes = figure.axes[0]
    sizes = list(results.noise)
    axes.loglog(sizes, list(results.noise.values()), "o", color="tab:blue", label="measured")
    first = results.noise[sizes[-1]] * math.sqrt(sizes[-1])
    axes.loglog(sizes, [first / math.sqrt(size) for size in sizes], color="gray", label="∝ 1/√m")
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.set(xlabel="samples in the batch, m", ylabel="std of one sample's z_norm")
    axes.set_title("How much a sample's values depend on its company", loc="left")
    axes.legend()
    return figure
