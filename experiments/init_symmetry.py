"""Initial weights: why not zeros or a constant, how large at random, and what the misprints would do.

    python -m experiments.init_symmetry

1. A net with one hidden layer trained on the digits from zeros, a constant, and random weights of three sizes: the
   distance between the hidden units' weights through training, and what the net learns.
2. The variance of z for every formula the notes print, beside the one they mean.
3. Steps to a given cost in a net of five ReLU layers, for each scheme; and how much the gain matters beside the rate.

Source: the notes, "random initialisation" and "weight initialisation of deep networks"; SPEC B1-B7, G2-G5, G10.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from experiments.config import CommonConfig
from experiments.console import Claim, Table, command_line, progress
from experiments.descent import descend, steps_to
from experiments.digits import CLASSES, Digits, load_digits
from experiments.figures import blank_figure
from experiments.logs import VariantLogs, save_figure
from experiments.report import finish, terminal, write_summary
from experiments.threads import one_thread
from torchnotes import init, nn

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console

NAME = "init_symmetry"
HIDDEN, CONSTANT, RATE = 20, 0.1, 0.5
FIRST = 5  # steps in which the units' gradients are compared, before round-off has grown
APART = 0.1  # of the largest weight: units further from one another are no longer copies
STARTS = ("zeros, tanh", "zeros, sigmoid", "constant 0.1", "0.01·randn", "√(1/n)·randn", "10·√(1/n)·randn")
VARIANTS = dict(
    zip(
        STARTS, ("zeros_tanh", "zeros_sigmoid", "constant", "random_0.01", "random_1_over_n", "random_10x"), strict=True
    )
)
RANDOM = STARTS[3:]
SCHEMES: dict[str, Literal["small", "lecun", "xavier", "he"]] = {
    "0.01²": "small",
    "1/n": "lecun",
    "2/(n_in+n_out)": "xavier",
    "2/n": "he",
}
GAINS = (0.25, 0.5, 0.71, 1.0, 1.41, 2.0, 4.0)
FAN = 256


@dataclass(frozen=True)
class InitSymmetryConfig(CommonConfig):
    """Initial weights: why not zeros or a constant, how large at random, and what the misprints would do."""

    steps: int = 400
    """Steps of gradient descent in part 1."""


@dataclass(frozen=True)
class Start:
    """A training run of part 1.

    Attributes:
        distances: largest difference between two hidden units' weights, at every step, relative to the largest weight.
        gradients: the largest difference between two units' gradients in the first steps, relative to the largest.
        costs: J at every step.
        error: on dev images at the end.
        flat: share of hidden outputs on the flat part of tanh (|a| > 0.99) before training.
        moved: whether any hidden weight is another than at the start.
    """

    distances: list[float]
    gradients: float
    costs: list[float]
    error: float
    flat: float
    moved: bool


@dataclass(frozen=True)
class Formula:
    """A printed formula for the weights of a unit with n inputs of variance 1, and the variance of z it gives.

    Attributes:
        measured: variance of z over units and inputs.
        expected: the same in closed form.
        meant: what the notes want: 1 for tanh, 2 for ReLU.
    """

    printed: str
    measured: float
    expected: float
    meant: float


@dataclass
class Results:
    """What the experiment found."""

    starts: dict[str, Start] = field(default_factory=dict)
    one_unit: float = math.nan
    formulas: dict[str, Formula] = field(default_factory=dict)
    race: dict[str, float] = field(default_factory=dict)
    race_limit: int = 0
    gains: dict[float, float] = field(default_factory=dict)
    rates: dict[float, float] = field(default_factory=dict)
    judged: bool = True
    reading: list[Claim] = field(default_factory=list)


def spread(weight: Tensor) -> float:
    """The largest difference between two units' weights, relative to the largest weight; 0 for all zeros."""
    largest = float(weight.abs().max())
    return float((weight.max(dim=0).values - weight.min(dim=0).values).max()) / largest if largest else 0.0


def fresh_net(start: str, digits: Digits, seed: int, hidden: int = HIDDEN) -> nn.MLP:
    """A 64-20-10 net in float64 with the weights of a start, drawn on the CPU."""
    net = nn.MLP([64, hidden, CLASSES], "sigmoid" if "sigmoid" in start else "tanh", dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    if start.startswith("zeros"):
        init.initialize_(net, "zeros")
    elif start.startswith("constant"):
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.fill_(CONSTANT if parameter.dim() == 2 else 0.0)
    elif start.startswith("0.01"):
        init.initialize_(net, "small", generator=generator)
    else:
        init.initialize_(net, "lecun", gain=10.0 if start.startswith("10") else 1.0, generator=generator)
    return net.to(digits.x_train.device)


def error(net: torch.nn.Module, digits: Digits) -> float:
    """The share of dev images misread."""
    with torch.no_grad():
        return float((net(digits.x_dev).argmax(1) != digits.y_dev).double().mean())


def train(start: str, digits: Digits, steps: int, seed: int, hidden: int = HIDDEN) -> Start:
    """Gradient descent from a start, watching the hidden units."""
    net = fresh_net(start, digits, seed, hidden)
    layer = net[0]
    with torch.no_grad():
        flat = float((net[1](layer(digits.x_train)).abs() > 0.99).double().mean())
    before = layer.weight.detach().clone()
    distances: list[float] = []
    differences, largest = [0.0], [0.0]

    def watch(step: int) -> None:
        distances.append(spread(layer.weight.detach()))
        if 0 < step <= FIRST and layer.weight.grad is not None:
            differences.append(spread(layer.weight.grad) * float(layer.weight.grad.abs().max()))
            largest.append(float(layer.weight.grad.abs().max()))

    costs = descend(net, digits.x_train, digits.y_train, loss=nn.CrossEntropyLoss(), rate=RATE, steps=steps, each=watch)
    moved = not torch.equal(before, layer.weight)
    gradients = max(differences) / max(largest) if max(largest) else 0.0
    return Start(distances, gradients, costs, error(net, digits), flat, moved)


def formulas(seed: int, quick: bool) -> dict[str, Formula]:
    """The variance of z = Σ w x over many units and unit-variance inputs, for what the notes print."""
    generator = torch.Generator().manual_seed(seed)
    units, samples = (500, 500) if quick else (2000, 2000)
    x = torch.randn(samples, FAN, generator=generator, dtype=torch.float64)
    w = torch.randn(units, FAN, generator=generator, dtype=torch.float64)

    def drawn(fill: Callable[..., Tensor]) -> Tensor:
        return fill(torch.empty(units, FAN, dtype=torch.float64), generator=generator)

    n = FAN
    listed = {
        "√(1/n), for tanh": ("randn·√(1/n)", drawn(init.lecun_normal_), 1.0, 1.0),
        "G10": ("randn/√n", w / math.sqrt(n), 1.0, 1.0),
        "G2": ("randn·√√(1/n)", w * (1 / n) ** 0.25, math.sqrt(n), 1.0),
        "G3": ("w = 1/n", torch.full_like(w, 1 / n), 1 / n, 1.0),
        "√(2/n), for ReLU": ("randn·√(2/n)", drawn(init.he_normal_), 2.0, 2.0),
        "G4": ("randn·2/√n", w * 2 / math.sqrt(n), 4.0, 2.0),
        "G5": ("randn·(2/n)", w * 2 / n, 4 / n, 2.0),
    }
    return {
        name: Formula(printed, float((x @ weight.T).square().mean()), expected, meant)
        for name, (printed, weight, expected, meant) in listed.items()
    }


def deep_costs(
    digits: Digits, scheme: Literal["small", "lecun", "xavier", "he"], gain: float, rate: float, steps: int, seed: int
) -> list[float]:
    """J of a net of five hidden ReLU layers of 50, step by step."""
    net = nn.MLP([64, *(50,) * 5, CLASSES], "relu")
    init.initialize_(net, scheme, gain=gain, generator=torch.Generator().manual_seed(seed))
    net.to(digits.x_train.device)
    x = digits.x_train.float()
    return descend(net, x, digits.y_train, loss=nn.CrossEntropyLoss(), rate=rate, steps=steps)


def measure(config: InitSymmetryConfig, tick: Callable[[str], None]) -> Results:
    """All three parts."""
    digits = load_digits(seed=config.seed, device=config.device, dtype=torch.float64)
    steps = min(config.steps, 60) if config.quick else config.steps
    results = Results(judged=not config.quick, race_limit=20 if config.quick else 150)
    for start in STARTS:
        results.starts[start] = train(start, digits, steps, config.seed)
        tick(start)
    results.one_unit = train("constant 0.1", digits, steps, config.seed, hidden=1).error
    results.formulas = formulas(config.seed, config.quick)
    tick("formulas")
    for variance, scheme in SCHEMES.items():
        rates = (0.1,) if config.quick else (0.1, 0.3)
        runs = [deep_costs(digits, scheme, 1.0, rate, results.race_limit + 1, config.seed) for rate in rates]
        results.race[variance] = min(steps_to(costs, 0.3) for costs in runs)
        tick(f"variance {variance}")
    for gain in GAINS[3:4] if config.quick else GAINS:
        results.gains[gain] = deep_costs(digits, "he", gain, 0.1, results.race_limit, config.seed)[-1]
        results.rates[gain] = deep_costs(digits, "he", 1.0, 0.1 * gain, results.race_limit, config.seed)[-1]
        tick(f"gain and rate × {gain:g}")
    return results


def span(costs: dict[float, float]) -> float:
    """Largest over smallest J where the factor is within ½…2; infinite if one of them diverged."""
    near = [cost if math.isfinite(cost) else math.inf for factor, cost in costs.items() if 0.5 <= factor <= 2]
    return max(near) / min(near)


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
            f"entry: {tanh.gradients:.0e} and {sigmoid.gradients:.0e} from zeros (tanh, sigmoid), "
            f"{constant.gradients:.0e} from a constant, {small.gradients:.2f} from 0.01·randn.",
        ),
        Claim(
            "So the units stay the same for ever, whatever the number of steps.",
            all(math.isinf(parted(start)) for start in (tanh, sigmoid, constant)) if results.judged else None,
            f"After {len(constant.distances):,} steps their weights are {tanh.distances[-1]:.0e} (zeros, tanh: they "
            f"{'move' if tanh.moved else 'never move'}), {sigmoid.distances[-1]:.0e} (zeros, sigmoid) and "
            f"{constant.distances[-1]:.0e} (constant) apart. {_parting(constant)}{short}",
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
            f"From half to twice the gain, J after {results.race_limit} steps varies by a factor of "
            f"{span(results.gains):.3g} (inf: it diverges); from half to twice the rate, "
            f"{span(results.rates):.3g}.{short}",
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
        f"({max(start.distances[: FIRST + 1]):.0e} in the first steps), grows until they part at step "
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


def write_logs(results: Results, logs: VariantLogs) -> None:
    """Curves of part 1, and the pictures."""
    group = "1 One hidden layer on the digits"
    for name, start in results.starts.items():
        writer = logs[VARIANTS[name]]
        for step, (distance, cost) in enumerate(zip(start.distances, start.costs, strict=True)):
            if step % 5 == 0:
                writer.add_scalar(f"{group}/distance between hidden units", distance, step)
                writer.add_scalar(f"{group}/J", cost, step)
    overview = logs["overview"]
    save_figure(
        overview, "2 Pictures/Symmetry and its breaking", symmetry_figure(results), logs.folder / "symmetry.png",
        "From zeros or a constant the hidden units are copies of one another, and the net learns what one unit can, "
        "until round-off has grown large enough to part them. Random weights part them from the start.",
    )  # fmt: skip
    save_figure(
        overview, "2 Pictures/How much the gain matters", gain_figure(results), logs.folder / "gain.png",
        "J after the same number of steps when the scale of the initial weights, or the learning rate, is multiplied "
        "by a factor. A point that is missing has diverged.",
    )  # fmt: skip


def main(config: InitSymmetryConfig, console: Console | None = None) -> Results:
    """Run the experiment, write its logs, print its tables and their reading."""
    console = terminal(console)
    pieces = len(STARTS) + 1 + len(SCHEMES) + (1 if config.quick else len(GAINS))
    with one_thread(), VariantLogs(config.log_dir / NAME) as logs:
        with progress(console, pieces) as tick:
            results = measure(config, tick)
        results.reading = claims(results)
        write_logs(results, logs)
        write_summary(logs, results.reading, tables(results))
    finish(NAME, config, console, logs, results.reading, tables(results))
    return results


if __name__ == "__main__":
    command_line(InitSymmetryConfig, main, NAME)
