"""The tables of a run, its figures, and what they say in plain words."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from experiments.console import Claim, Table, amount
from experiments.figures import blank_figure
from experiments.init_symmetry.measuring import APART, FAN, FIRST, GAINS, HIDDEN, RANDOM, STARTS, Results, Start

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def span(costs: dict[float, float]) -> float:
    """Largest over smallest J where the factor is within ½…2; infinite if one of them diverged."""
    near = [cost if math.isfinite(cost) else math.inf for factor, cost in costs.items() if 0.5 <= factor <= 2]
    return max(near) / min(near)


def _varies(costs: dict[float, float]) -> str:
    """What J does where the factor is within ½…2, as the end of a sentence."""
    lost = [f"×{factor:g}" for factor, cost in costs.items() if 0.5 <= factor <= 2 and not math.isfinite(cost)]
    return f"diverges at {' and '.join(lost)}" if lost else f"varies by a factor of {span(costs):.3g}"


def claims(results: Results) -> list[Claim]:
    """The notes' statements, each judged by what this run measured."""
    tanh, sigmoid, constant, small, right, large = (results.starts[start] for start in STARTS)
    short = "" if results.judged else " A quick run is too short to tell."
    wrong = {k: f for k, f in results.formulas.items() if k in ("G2", "G3", "G4", "G5")}
    kept = {k: f for k, f in results.formulas.items() if k not in wrong}
    slowest = max(v for k, v in results.race.items() if k != "0.01²")
    return [
        Claim(
            "From zeros, or any constant, every hidden unit gets the same gradient.",
            max(start.gradients for start in (tanh, sigmoid, constant)) < 1e-9 < APART < small.gradients,
            f"Largest difference between two of {HIDDEN} units in the first {FIRST} steps, relative to the largest "
            f"entry: {amount(tanh.gradients)} and {amount(sigmoid.gradients)} from zeros (tanh, sigmoid), "
            f"{amount(constant.gradients)} from a constant, {small.gradients:.2f} from 0.01·randn.",
        ),
        Claim(
            "So the units stay the same for ever, whatever the number of steps.",
            all(math.isinf(parted(start)) for start in (tanh, sigmoid, constant)) if results.judged else None,
            f"After {len(constant.distances):,} steps their weights are {amount(tanh.distances[-1], '.2g')} (zeros, "
            f"tanh: they {'move' if tanh.moved else 'never move'}), {amount(sigmoid.distances[-1], '.2g')} (zeros, "
            f"sigmoid) and {amount(constant.distances[-1], '.2g')} (constant) of the largest weight apart. "
            f"{_parting(constant)}{short}",
        ),
        Claim(
            "As long as they are the same, a layer of them is worth one unit; random weights, however small, are worth "
            "all of them.",
            results.one_unit > 0.5 > 3 * max(small.error, right.error) if results.judged else None,
            f"A net with one hidden unit ends at {results.one_unit:.1%} errors on dev images; {HIDDEN} units end at "
            f"{tanh.error:.1%} from zeros (tanh), {sigmoid.error:.1%} (sigmoid), {constant.error:.1%} from a constant, "
            f"{small.error:.1%} from 0.01·randn and {right.error:.1%} from √(1/n)·randn.{short}",
        ),
        Claim(
            "Large initial weights put tanh on its flat part, and learning is slow.",
            large.flat > 0.5 and large.costs[-1] > right.costs[-1],
            f"With ten times √(1/n), {large.flat:.0%} of the hidden outputs are beyond ±0.99 (with √(1/n): "
            f"{right.flat:.1%}); after the same steps J is {large.costs[-1]:.2g} instead of {right.costs[-1]:.2g}.",
        ),
        Claim(
            "√(1/n) gives z the variance of the inputs; √(2/n) gives twice that, which ReLU halves again (SPEC B3, "
            "B4).",
            all(abs(f.measured / f.meant - 1) < 0.05 for f in kept.values()),
            f"Measured {', '.join(f'{f.measured:.3f} for {f.printed}' for f in kept.values())}, with n = {FAN}.",
        ),
        Claim(
            "So do the other formulas the notes print: randn·√√(1/n), w = 1/n, randn·2/√n, randn·(2/n) (SPEC G2 to "
            "G5).",
            all(abs(f.measured / f.meant - 1) < 0.05 for f in wrong.values()),
            "; ".join(f"{f.printed} gives {f.measured:.3g} where {f.meant:g} is meant" for f in wrong.values()) + ".",
        ),
        Claim(
            "For ReLU 2/n does better than 1/n.",
            results.race["2/n"] < results.race["1/n"] if results.judged else None,
            f"Steps to J = 0.3 in five ReLU layers: {_steps(results, '2/n')} with 2/n, {_steps(results, '1/n')} with "
            "1/n, "
            f"{_steps(results, '2/(n_in+n_out)')} with 2/(n_in+n_out), {_steps(results, '0.01²')} with 0.01².{short}",
        ),
        Claim(
            "0.01·randn is too small for a net of several layers.",
            results.race["0.01²"] > slowest if results.judged else None,
            f"It takes {_steps(results, '0.01²')} steps; the slowest of the other schemes takes {slowest:g}.{short}",
        ),
        Claim(
            "The gain on √(2/n) is a hyperparameter of low priority, the learning rate one of high priority.",
            span(results.gains) < span(results.rates) if results.judged else None,
            f"From half to twice the gain, J after {results.race_limit} steps {_varies(results.gains)}; from half to "
            f"twice the rate, it {_varies(results.rates)}.{short}",
        ),
    ]


def parted(start: Start) -> float:
    """The step at which two hidden units were first further apart than copies are; infinite if never."""
    return next((float(step) for step, far in enumerate(start.distances) if far > APART), math.inf)


def _parting(start: Start) -> str:
    """How round-off parts units that arithmetic would keep the same."""
    if math.isinf(parted(start)):
        return ""
    return (
        "In exact arithmetic they would be 0 apart; round-off, which differs from unit to unit "
        f"({amount(max(start.distances[: FIRST + 1]))} in the first steps), grows until they part at step "
        f"{parted(start):.0f}."
    )


def _steps(results: Results, variance: str) -> str:
    steps = results.race[variance]
    return f"{steps:g}" if math.isfinite(steps) else f"over {results.race_limit}"


def tables(results: Results) -> list[Table]:
    """The starts, and the formulas."""
    starts = Table(
        "What becomes of each start",
        ("initial weights", "units", "distance at the end", "flat at the start", "J at the end", "dev error"),
        f"A 64-{HIDDEN}-10 net on the digits, tanh unless said. Distance: of the hidden units' weights, relative to "
        "the "
        "largest weight; apart from the step on at which it is above 0.1. Flat: hidden outputs beyond ±0.99.",
    )
    for name, start in results.starts.items():
        same = "copies" if math.isinf(parted(start)) else f"apart at {parted(start):.0f}"
        starts.rows.append(
            (
                name,
                same,
                f"{start.distances[-1]:.2g}",
                f"{start.flat:.1%}",
                f"{start.costs[-1]:.3f}",
                f"{start.error:.1%}",
            )
        )
    printed = Table(
        "Variance of z for what is printed",
        ("row", "weights", "measured", "in closed form", "meant"),
        f"{FAN} inputs of variance 1.",
    )
    for name, formula in results.formulas.items():
        values = (f"{formula.measured:.4g}", f"{formula.expected:.4g}", f"{formula.meant:g}")
        printed.rows.append((name, formula.printed, *values))
    return [starts, printed]


def symmetry_figure(results: Results) -> Figure:
    """Distance between units and J, step by step."""
    figure = blank_figure(1, 2, panel=(5.4, 4))
    left, right = figure.axes
    styles = dict(zip(STARTS, ("-", "--", ":", "-", "-", "-"), strict=True))
    for name, start in results.starts.items():
        width = 4 - 1.2 * STARTS.index(name) if name not in RANDOM else 1.6
        left.plot(np.maximum(start.distances, 1e-17), styles[name], label=name, lw=width)
        right.plot(np.arange(len(start.costs)) + 1, start.costs, styles[name], label=name, lw=width)
    left.set(xlabel="step", ylabel="distance / largest weight (0 drawn at 1e-17)", yscale="log")
    left.set_title("Distance between the hidden units' weights", loc="left", fontsize=11)
    right.set(xlabel="step", ylabel="J", xscale="log", yscale="log")
    right.set_title("Cost", loc="left", fontsize=11)
    right.legend(fontsize=8, loc="lower left")
    for axis in figure.axes:
        axis.grid(alpha=0.3)
    return figure


def gain_figure(results: Results) -> Figure:
    """J after a fixed number of steps, against the gain and against the rate."""
    figure = blank_figure(1, 1, panel=(7, 4))
    (axis,) = figure.axes
    axis.loglog(list(results.gains), list(results.gains.values()), "-o", label="gain × factor, rate 0.1")
    axis.loglog(list(results.rates), list(results.rates.values()), "--s", label="rate 0.1 × factor, gain 1")
    axis.set_xticks(GAINS, [f"×{gain:g}" for gain in GAINS])
    axis.minorticks_off()
    axis.set(xlabel="factor", ylabel=f"J after {results.race_limit} steps")
    axis.set_title("Five ReLU layers on the digits: the gain on √(2/n), and the rate", loc="left", fontsize=11)
    axis.legend()
    axis.grid(alpha=0.3)
    return figure
