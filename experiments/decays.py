"""See how near the minimum each learning-rate decay of the notes ends, and a constant rate does not.

Real data: softmax regression with an L2 penalty on 1,437 handwritten digits, a convex cost whose one minimum is found
beforehand, so that "how near" is a number: J − J*. Three parts, each a heading in TensorBoard:

1. The rates of every decay, epoch by epoch, from the same α₀.
2. Mini-batch gradient descent with each of them: the distance left, J − J*, after every epoch.
3. The same at constant rates, large and small.

Source: the notes, "learning rate decay"; SPEC F6.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from statistics import mean
from typing import TYPE_CHECKING

import torch

from experiments.config import CommonConfig
from experiments.console import Claim, Table, amount, command_line
from experiments.convex import Regression
from experiments.digits import load_digits
from experiments.figures import blank_figure
from experiments.logs import VariantLogs, save_figure
from experiments.report import run_experiment
from torchnotes.nn import Linear
from torchnotes.ops import cross_entropy
from torchnotes.optim import GradientDescent
from torchnotes.optim.lr_scheduler import (
    Decay,
    ExponentialDecay,
    InverseSqrtDecay,
    InverseTimeDecay,
    ManualDecay,
    StaircaseDecay,
)
from torchnotes.training import Callback, Run, fit

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console

NAME = "decays"
ALPHA, BATCH = 1.0, 64
CONSTANTS = (1.0, 0.3, 0.1, 0.03)
SHOWN = (0, 1, 2, 3, 4, 20)
RATES = "1 Learning rate of each decay (horizontal: epoch)"
EXCESS = "2 Distance from the minimum, log10 of J − J* (horizontal: epoch)"
FIGURES = "3 The same in pictures"


@dataclass(frozen=True)
class DecaysConfig(CommonConfig):
    """Learning-rate decay: every way of the notes against constant rates, on a cost whose minimum is known."""

    epochs: int = 40
    """Passes over the training set."""

    def __post_init__(self) -> None:
        """Refuse a run whose last quarter holds no epoch."""
        super().__post_init__()
        if self.epochs < 8:
            raise ValueError(f"epochs must be at least 8, got {self.epochs}; the last quarter of them is judged.")


@dataclass(frozen=True)
class Way:
    """One of the notes' decays: its formula, what makes it, and the same formula as a function of the epoch."""

    formula: str
    make: Callable[[torch.optim.Optimizer], Decay]
    rate: Callable[[int], float]


WAYS = {
    "inverse time": Way("α₀/(1 + epoch)", lambda o: InverseTimeDecay(o, decay_rate=1.0), lambda e: 1 / (1 + e)),
    "inverse root": Way("α₀/√epoch", InverseSqrtDecay, lambda e: 1 / math.sqrt(max(e, 1))),
    "exponential": Way(
        "0.95^epoch · α₀", lambda o: ExponentialDecay(o, gamma=0.95), lambda e: math.exp(e * math.log(0.95))
    ),
    "staircase": Way("halved every 8", lambda o: StaircaseDecay(o, step_size=8), lambda e: 2.0 ** -(e // 8)),
    "by hand": Way(
        "÷10 at 20 and 30", lambda o: ManualDecay(o, by_hand(o)), lambda e: 10.0 ** -((e >= 20) + (e >= 30))
    ),
}


def by_hand(optimizer: torch.optim.Optimizer) -> dict[int, float]:
    """What someone might set who watches the curve: a tenth from epoch 20 on, a hundredth from 30."""
    rate = float(optimizer.param_groups[0]["lr"])
    return {20: rate / 10, 30: rate / 100}


@dataclass(frozen=True)
class Descent:
    """J − J* after each epoch, the mean over several orders of the samples; and the rate in each epoch."""

    rates: tuple[float, ...]
    excess: tuple[float, ...]

    @property
    def end(self) -> float:
        """Mean of the last quarter of the epochs."""
        return mean(self.excess[-(len(self.excess) // 4) :])

    @property
    def second_quarter(self) -> float:
        """Mean of the second quarter of the epochs."""
        quarter = len(self.excess) // 4
        return mean(self.excess[quarter : 2 * quarter])


@dataclass
class Results:
    """What the experiment found. ``schedules``: each decay's α/α₀ as its closed form has it, and as it was stepped."""

    judged: bool = True
    least: float = 0.0
    schedules: dict[str, tuple[list[float], list[float]]] = field(default_factory=dict)
    decayed: dict[str, Descent] = field(default_factory=dict)
    constant: dict[float, Descent] = field(default_factory=dict)
    reading: list[Claim] = field(default_factory=list)


class Watch(Callback):
    """Keeps J − J* after every epoch."""

    def __init__(self, problem: Regression, least: float) -> None:
        self.problem, self.least = problem, least
        self.excess: list[float] = []

    def on_epoch(self, run: Run) -> None:
        """Evaluate the whole training set."""
        assert isinstance(run.model, Linear)
        self.excess.append(self.problem.value(run.model) - self.least)


def schedule(way: Way, epochs: int) -> tuple[list[float], list[float]]:
    """α/α₀ by the notes' formula, and as the optimiser has it when the decay is stepped once an epoch."""
    optimizer = GradientDescent([torch.zeros(1, requires_grad=True)], lr=ALPHA)
    decay, stepped = way.make(optimizer), []
    for _ in range(epochs):
        stepped.append(float(optimizer.param_groups[0]["lr"]) / ALPHA)
        optimizer.step()
        decay.step()
    return [way.rate(epoch) for epoch in range(epochs)], stepped


def descend(problem: Regression, least: float, rate: float, way: Way | None, config: DecaysConfig) -> Descent:
    """Mini-batch gradient descent from zero, at a constant rate or with a decay."""
    digits, runs = problem.digits, []
    rates: list[float] = []
    for order in range(1 if config.quick else 3):
        net = problem.start()
        optimizer = GradientDescent(problem.groups(net), lr=rate)
        watch = Watch(problem, least)
        run = fit(
            net, (digits.x_train, digits.y_train), loss=cross_entropy, optimizer=optimizer, epochs=config.epochs,
            batch_size=BATCH, scheduler=None if way is None else way.make(optimizer), callbacks=[watch],
            progress=False, seed=config.seed + order,
        )  # fmt: skip
        rates = [record["lr"] for record in run.history]
        runs.append(watch.excess)
    return Descent(tuple(rates), tuple(mean(epoch) for epoch in zip(*runs, strict=True)))


def measure(config: DecaysConfig, tick: Callable[[str], None]) -> Results:
    """All parts."""
    digits = load_digits(seed=config.seed, device=config.device)
    if config.quick:
        digits = replace(digits, x_train=digits.x_train[:500], y_train=digits.y_train[:500])
    problem = Regression(digits)
    results = Results(judged=not config.quick)
    results.least, _ = problem.minimum()
    tick("minimum found")
    results.schedules = {name: schedule(way, config.epochs) for name, way in WAYS.items()}
    for rate in CONSTANTS:
        results.constant[rate] = descend(problem, results.least, rate, None, config)
        tick(f"constant rate {rate:g}")
    for name, way in WAYS.items():
        results.decayed[name] = descend(problem, results.least, ALPHA, way, config)
        tick(name)
    return results


def tables(results: Results) -> list[Table]:
    """The rates of every decay, and where each descent ended."""
    epochs = len(next(iter(results.schedules.values()))[0])
    shown = [epoch for epoch in SHOWN if epoch < epochs]
    rates = Table(
        f"Learning rates from α₀ = 0.2 in epochs {', '.join(map(str, shown))}",
        ("decay", "formula", *map(str, shown)),
        "As the schedulers of torchnotes.optim set them; α₀/√epoch has no value at epoch 0 and takes that of epoch 1.",
    )
    for name, (_, stepped) in results.schedules.items():
        rates.rows.append((name, WAYS[name].formula, *(f"{0.2 * stepped[epoch]:.4f}" for epoch in shown)))
    ends = Table(
        f"Distance from the minimum, J − J*, with batches of {BATCH}",
        ("rate", "formula", "last α", "2 epochs", "half way", "end", "× nearer"),
        "End: mean of the last quarter of the epochs. × nearer: than at the constant rate α₀.",
    )
    reference = results.constant[ALPHA].end
    rows = [(f"constant {rate:g}", "α₀" if rate == ALPHA else "", d) for rate, d in results.constant.items()]
    rows += [(name, WAYS[name].formula, d) for name, d in results.decayed.items()]
    for name, formula, d in rows:
        numbers = (d.excess[1], d.excess[len(d.excess) // 2 - 1], d.end)
        cells = (f"{d.rates[-1]:.4g}", *(f"{number:.5f}" for number in numbers), f"{reference / d.end:.1f}")
        ends.rows.append((name, formula, *cells))
    return [rates, ends]


def claims(results: Results) -> list[Claim]:
    """The notes' statements, each judged by what was measured."""
    large, decayed = results.constant[ALPHA], results.decayed
    off = max(
        abs(a - b) / b for formula, stepped in results.schedules.values() for a, b in zip(stepped, formula, strict=True)
    )
    inverse = [0.2 * share for share in results.schedules["inverse time"][1][:5]]
    nearer = {name: large.end / d.end for name, d in decayed.items()}
    early = max(d.excess[1] for d in decayed.values()) / large.excess[1]
    slowest = results.constant[min(results.constant)]
    best_name = min(decayed, key=lambda name: decayed[name].end)
    best_rate = min(results.constant, key=lambda rate: results.constant[rate].end)
    steady = large.end / large.second_quarter
    judged = results.judged
    return [
        Claim(
            "α₀/(1 + epoch), k α₀/√epoch, 0.95^epoch α₀, a staircase and rates by hand are what the schedulers set.",
            off < 1e-9,
            f"From 0.2 the first gives {', '.join(f'{rate:.4g}' for rate in inverse)}; all agree with their formulas "
            f"to {amount(off, none='the last bit')}.",
        ),
        Claim(
            "At a constant rate mini-batches end up wandering about the minimum.",
            steady > 0.5 if judged else None,
            f"At rate {ALPHA:g} J − J* is {large.second_quarter:.4f} in the second quarter of the epochs and still "
            f"{large.end:.4f} in the last.",
        ),
        Claim(
            "With any of the decays the end is nearer the minimum.",
            all(ratio > 1 for ratio in nearer.values()) if judged else None,
            "Nearer than at the constant rate: "
            + ", ".join(f"{ratio:.1f} times ({name})" for name, ratio in nearer.items())
            + ".",
        ),
        Claim(
            "A decayed rate is as fast at the beginning as a constant large one; a constant small one is not.",
            early < 1.5 and slowest.excess[1] > 2 * large.excess[1] if judged else None,
            f"After two epochs the decayed ones are at most {early:.2f} times as far away as the constant {ALPHA:g}; "
            f"the constant {min(results.constant):g} is {slowest.excess[1] / large.excess[1]:.0f} times as far.",
        ),
        Claim(
            "No constant rate does both: the best decay ends nearer than every constant rate.",
            decayed[best_name].end < results.constant[best_rate].end if judged else None,
            f"Nearest of all: {best_name} with {decayed[best_name].end:.5f}; of the constant rates {best_rate:g} with "
            f"{results.constant[best_rate].end:.5f}.",
        ),
    ]


def rates_figure(results: Results) -> Figure:
    """Every decay's rate, epoch by epoch."""
    figure = blank_figure(1, 1, panel=(8.5, 4.2))
    axes = figure.axes[0]
    for k, (name, (_, stepped)) in enumerate(results.schedules.items()):
        axes.step(range(len(stepped)), stepped, where="post", color=f"C{k}", label=f"{name}: {WAYS[name].formula}")
    axes.set(xlabel="epoch", ylabel="α / α₀", yscale="log")
    axes.set_title("Five ways to let the learning rate decay", loc="left")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def excess_figure(results: Results) -> Figure:
    """Distance from the minimum after every epoch."""
    figure = blank_figure(1, 1, panel=(9, 5))
    axes = figure.axes[0]
    grays = ("black", "dimgray", "darkgray", "lightgray")
    for color, (rate, d) in zip(grays, results.constant.items(), strict=True):
        axes.semilogy(range(1, len(d.excess) + 1), d.excess, color=color, ls="--", label=f"constant {rate:g}")
    for k, (name, d) in enumerate(results.decayed.items()):
        axes.semilogy(range(1, len(d.excess) + 1), d.excess, color=f"C{k}", label=f"{name} from {ALPHA:g}")
    axes.set(xlabel="epoch", ylabel="J − J*")
    axes.set_title("Distance from the minimum: constant rates and decays", loc="left")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def write_logs(results: Results, logs: VariantLogs) -> None:
    """One run a decay and a constant rate, and the pictures."""
    named = {f"constant_{rate:g}": d for rate, d in results.constant.items()}
    named.update({name.replace(" ", "_"): d for name, d in results.decayed.items()})
    for name, d in named.items():
        for epoch, (rate, excess) in enumerate(zip(d.rates, d.excess, strict=True)):
            logs[name].add_scalar(f"{RATES}/learning rate", rate, epoch)
            logs[name].add_scalar(f"{EXCESS}/training set", math.log10(max(excess, 1e-9)), epoch + 1)
    save_figure(
        logs["overview"], f"{FIGURES}/Distance from the minimum with each decay", excess_figure(results),
        logs.folder / "excess.png",
        "Softmax regression on the digits by mini-batches; J* is the cost at the minimum. A large constant rate is "
        "soon near and stays off, a small one is slow; the decays are fast first and near at the end.",
    )  # fmt: skip
    save_figure(
        logs["overview"], f"{FIGURES}/Learning rate of each decay", rates_figure(results), logs.folder / "rates.png",
        "The share of the first learning rate that each way leaves, epoch by epoch, on a logarithmic scale.",
    )  # fmt: skip


def main(config: DecaysConfig, console: Console | None = None) -> Results:
    """Run the experiment, write its logs, print its tables and their reading."""
    pieces = 1 + len(CONSTANTS) + len(WAYS)
    return run_experiment(NAME, config, console, pieces, measure, claims, tables, write_logs)


if __name__ == "__main__":
    command_line(DecaysConfig, main, NAME)
