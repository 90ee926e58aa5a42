"""Logistic regression: one neuron by hand on real tumours, and what its loops cost against vectorised code.

    python -m experiments.logistic_regression

1. One step of gradient descent written three ways: the notes' two loops (over samples and over features), the loop over
   samples alone, and no loop; beside them the library's layer and loss, differentiated by their own backward.
2. Training by hand and by ``nn.Linear`` + ``nn.BCEWithLogitsLoss`` + ``optim.GradientDescent``: the same neuron.
3. The minimum found, against scikit-learn's solver, which knows nothing of our arithmetic.
4. The time of a step against the number of samples.

Source: the notes, "logistic regression" and "vectorisation"; SPEC F1, F12, A2, A8, A14, E5, E6, G13.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from experiments.config import CommonConfig
from experiments.console import Claim, Table, amount, command_line
from experiments.datasets import Sets, breast_cancer, split
from experiments.figures import blank_figure
from experiments.logs import VariantLogs, save_figure
from experiments.report import run_experiment
from torchnotes import nn, ops
from torchnotes.optim import GradientDescent
from torchnotes.regularization import Penalty
from torchnotes.training import check_monotonic, predict

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console

NAME = "logistic_regression"
LAMBDA = 1.0
WAYS = {"two loops": "over samples and features", "one loop": "over samples", "vectorised": "no loop"}
SAME = 1e-9  # relative; float64 sums of some hundred terms in another order differ by about 1e-14


@dataclass(frozen=True)
class LogisticRegressionConfig(CommonConfig):
    """Logistic regression: one neuron by hand on real tumours, and what its loops cost against vectorised code."""

    rate: float = 0.5
    """Learning rate α."""
    iterations: int = 8000
    """Steps of gradient descent."""


@dataclass(frozen=True)
class Step:
    """What one pass over the samples yields: J, dw (n, 1) and db."""

    cost: float
    dw: Tensor
    db: float


@dataclass
class Results:
    """What the experiment found."""

    differences: dict[str, float] = field(default_factory=dict)
    by_hand: list[float] = field(default_factory=list)
    neuron: list[float] = field(default_factory=list)
    minimum: float = math.nan
    weight_difference: float = math.nan
    scores: tuple[float, float] = (math.nan, math.nan)
    activations: tuple[float, float] = (math.nan, math.nan)
    errors: dict[str, float] = field(default_factory=dict)
    seconds: dict[tuple[str, int], float] = field(default_factory=dict)
    timed_on: str = "cpu"
    reading: list[Claim] = field(default_factory=list)


def two_loops(x: list[list[float]], y: list[float], w: list[float], b: float) -> tuple[float, list[float], float]:
    """The notes' first form: every sample, and in it every feature, one number at a time."""
    m, n = len(x), len(w)
    cost, dw, db = 0.0, [0.0] * n, 0.0
    for i in range(m):
        z = b
        for j in range(n):
            z += w[j] * x[i][j]
        a = 1 / (1 + math.exp(-z))
        cost += -(y[i] * math.log(a) + (1 - y[i]) * math.log(1 - a))
        dz = a - y[i]
        for j in range(n):
            dw[j] += x[i][j] * dz
        db += dz
    return cost / m, [total / m for total in dw], db / m


def one_loop(x: Tensor, y: Tensor, w: Tensor, b: float) -> Step:
    """The features vectorised, the samples not: dw += x⁽ⁱ⁾ dz⁽ⁱ⁾."""
    cost, dw, db = 0.0, torch.zeros_like(w), 0.0
    for row, label in zip(x, y.flatten().tolist(), strict=True):
        z = float(row @ w) + b
        a = 1 / (1 + math.exp(-z))
        cost += -(label * math.log(a) + (1 - label) * math.log(1 - a))
        dz = a - label
        dw += row.unsqueeze(1) * dz
        db += dz
    return Step(cost / len(x), dw / len(x), db / len(x))


def vectorised(x: Tensor, y: Tensor, w: Tensor, b: float) -> Step:
    """No loop: z = x w + b, a = σ(z), dz = a − y, dw = xᵀ dz / m, db = Σ dz / m."""
    z = x @ w + b  # (m, 1)
    a = ops.sigmoid(z)
    dz = a - y
    return Step(float(ops.binary_cross_entropy(a, y)), x.T @ dz / len(x), float(dz.mean()))


def by_autograd(x: Tensor, y: Tensor, w: Tensor, b: float) -> Step:
    """The library's neuron and its own backward."""
    neuron = nn.Linear(len(w), 1, device=x.device, dtype=x.dtype)
    with torch.no_grad():
        neuron.weight.copy_(w.T)
        neuron.get_parameter("bias").fill_(b)
    cost = nn.BCEWithLogitsLoss()(neuron(x), y)
    cost.backward()
    dw, db = (parameter.grad for parameter in neuron.parameters())
    assert dw is not None
    assert db is not None
    return Step(float(cost.detach()), dw.T, float(db))


def as_lists(x: Tensor, y: Tensor, w: Tensor) -> tuple[list[list[float]], list[float], list[float]]:
    """Plain Python numbers, as the loops take them."""
    return x.tolist(), y.flatten().tolist(), w.flatten().tolist()


def compare_steps(x: Tensor, y: Tensor, seed: int) -> dict[str, float]:
    """The largest difference of J, dw and db from the two loops', relative to the largest entry of each."""
    w = 0.1 * torch.randn(x.shape[1], 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    w, b = w.to(x.device), 0.3
    cost, dw, db = two_loops(*as_lists(x, y, w), b)
    expected = torch.tensor([cost, *dw, db], dtype=torch.float64)
    scale = torch.tensor([cost, *[max(map(abs, dw))] * len(dw), abs(db)], dtype=torch.float64)
    found = {}
    for name, way in (("one loop", one_loop), ("vectorised", vectorised), ("nn.Linear", by_autograd)):
        step = way(x, y, w, b)
        got = torch.tensor([step.cost, *step.dw.flatten().tolist(), step.db], dtype=torch.float64)
        found[name] = float(((got - expected) / scale).abs().max())
    return found


def train_by_hand(sets: Sets, config: LogisticRegressionConfig, iterations: int) -> tuple[list[float], Tensor, float]:
    """Gradient descent on J + λ/(2m) ‖w‖², everything written out; returns the costs, w and b."""
    x, y = sets.x_train, sets.y_train
    m = len(x)
    w, b, costs = torch.zeros(x.shape[1], 1, dtype=x.dtype, device=x.device), 0.0, []
    for _ in range(iterations):
        step = vectorised(x, y, w, b)
        costs.append(step.cost + LAMBDA / (2 * m) * float(w.square().sum()))
        w = w - config.rate * (step.dw + LAMBDA / m * w)
        b = b - config.rate * step.db
    return costs, w, b


def train_neuron(
    sets: Sets, config: LogisticRegressionConfig, iterations: int
) -> tuple[list[float], torch.nn.Sequential]:
    """The same by the library: an MLP without hidden layers, its loss, its penalty, its optimiser."""
    neuron = nn.MLP([sets.x_train.shape[1], 1], device=sets.x_train.device, dtype=sets.x_train.dtype)
    with torch.no_grad():
        for parameter in neuron.parameters():
            parameter.zero_()
    loss, penalty = nn.BCEWithLogitsLoss(), Penalty("l2", lambd=LAMBDA, m=len(sets.x_train))
    optimizer, costs = GradientDescent(neuron.parameters(), lr=config.rate), []
    for _ in range(iterations):
        optimizer.zero_grad()
        cost = loss(neuron(sets.x_train), sets.y_train) + penalty(neuron)
        cost.backward()
        optimizer.step()
        costs.append(float(cost.detach()))
    return costs, neuron


def known_minimum(sets: Sets) -> tuple[float, Tensor]:
    """J and w at the minimum, by scikit-learn: it minimises Σ L + ‖w‖²/(2C), so C = 1/λ."""
    from sklearn.linear_model import LogisticRegression

    x, y = sets.x_train.cpu(), sets.y_train.cpu()
    solver = LogisticRegression(C=1 / LAMBDA, tol=1e-12, max_iter=10_000).fit(x.numpy(), y.flatten().numpy())
    w, b = torch.from_numpy(solver.coef_.T), float(solver.intercept_[0])
    return vectorised(x, y, w, b).cost + LAMBDA / (2 * len(x)) * float(w.square().sum()), w


def seconds_of(call: Callable[[], object], budget: float) -> float:
    """The least time of a call among as many as fit into the budget, at least three."""
    least, spent, calls = math.inf, 0.0, 0
    while calls < 3 or spent < budget:
        start = time.perf_counter()
        call()
        took = time.perf_counter() - start
        least, spent, calls = min(least, took), spent + took, calls + 1
    return least


def time_steps(x: Tensor, y: Tensor, sizes: tuple[int, ...], budget: float) -> dict[tuple[str, int], float]:
    """Seconds of one step for every way of writing it and every number of samples (rows repeat beyond the table)."""
    found = {}
    w, b = torch.zeros(x.shape[1], 1, dtype=x.dtype, device=x.device), 0.0
    for m in sizes:
        rows = torch.arange(m, device=x.device) % len(x)
        part, labels = x[rows], y[rows]
        lists = as_lists(part, labels, w)
        found["two loops", m] = seconds_of(lambda lists=lists: two_loops(*lists, b), budget)  # type: ignore[misc,call-arg]
        for name, way in (("one loop", one_loop), ("vectorised", vectorised)):
            found[name, m] = seconds_of(
                lambda way=way, part=part, labels=labels: way(part, labels, w, b),  # type: ignore[misc]
                budget,
            )
    return found


def ratio(results: Results, m: int) -> float:
    """How many times as long the two loops take."""
    return results.seconds["two loops", m] / results.seconds["vectorised", m]


def measure(config: LogisticRegressionConfig, tick: Callable[[str], None]) -> Results:
    """All four parts."""
    x, y, _ = breast_cancer(torch.float64)
    sets = split(x, y, seed=config.seed).normalized().to(config.device)
    iterations = min(config.iterations, 500) if config.quick else config.iterations
    results = Results(timed_on=config.device)
    results.differences = compare_steps(sets.x_train, sets.y_train, config.seed)
    tick("one step, four ways")
    results.by_hand, w, b = train_by_hand(sets, config, iterations)
    tick("trained by hand")
    results.neuron, neuron = train_neuron(sets, config, iterations)
    tick("trained as a neuron")
    results.minimum, known = known_minimum(sets)
    results.weight_difference = float((w.cpu() - known).norm() / known.norm())
    scores = sets.x_test @ w + b
    results.scores = (float(scores.min()), float(scores.max()))
    results.activations = (float(ops.sigmoid(scores).min()), float(ops.sigmoid(scores).max()))
    for name in ("train", "dev", "test"):
        given = predict(neuron, getattr(sets, f"x_{name}")) > 0
        results.errors[name] = float((given != getattr(sets, f"y_{name}").bool()).double().mean())
    sizes = (10, 100, 569) if config.quick else (10, 100, 569, 5690)
    results.seconds = time_steps(sets.x_train, sets.y_train, sizes, 0.02 if config.quick else 0.3)
    tick("timed")
    return results


def claims(results: Results) -> list[Claim]:
    """The notes' statements, each judged by what this run measured."""
    worst = max(results.differences, key=results.differences.__getitem__)
    largest = max(m for _, m in results.seconds)
    apart = max(abs(a - b) / a for a, b in zip(results.by_hand, results.neuron, strict=True))
    monotonic = check_monotonic(results.by_hand)
    gap = results.by_hand[-1] - results.minimum
    converged = len(results.by_hand) >= 5000
    return [
        Claim(
            "Two loops, one loop, no loop and the library's own backward compute the same J, dw and db.",
            results.differences[worst] < SAME,
            f"Largest relative difference {amount(results.differences[worst])} ({worst}).",
        ),
        Claim(
            "Explicit loops are slow; vectorised code computes the same step in a fraction of the time.",
            ratio(results, largest) > 1,
            f"Two loops take {ratio(results, largest):,.0f} times as long with {largest:,} samples of 30 features, "
            f"{ratio(results, 10):.1f} times with 10 (on {results.timed_on}).",
        ),
        Claim(
            "A single neuron with a sigmoid is logistic regression.",
            apart < SAME,
            f"Over {len(results.neuron):,} steps, J of nn.MLP([30, 1]) departs from J by hand by {amount(apart)} at "
            "most.",
        ),
        Claim(
            "J falls at every step of gradient descent.",
            monotonic.monotonic,
            f"From {results.by_hand[0]:.4f} (ln 2: it starts from zeros) to {results.by_hand[-1]:.4f}; {monotonic}.",
        ),
        Claim(
            "Gradient descent arrives at the minimum.",
            abs(gap) < 1e-6 if converged else None,
            f"J is within {abs(gap):.0e} of the minimum that scikit-learn finds, the weights within "
            f"{results.weight_difference:.0e} of theirs." + ("" if converged else " Too few steps to tell."),
        ),
        Claim(
            "z can be any number; σ(z) lies between 0 and 1 and can be read as a probability.",
            0 < results.activations[0] < results.activations[1] < 1 and not 0 <= results.scores[0] <= 1,
            f"On the test set z runs from {results.scores[0]:.1f} to {results.scores[1]:.1f}, σ(z) from "
            f"{results.activations[0]:.1g} to {results.activations[1]:.6f}; {results.errors['test']:.1%} of the "
            "tumours are put on the wrong side.",
        ),
    ]


def tables(results: Results) -> list[Table]:
    """The times, and the errors."""
    times = Table(
        "Time of one step (J, dw, db) on 30 features",
        ("written with", "loops", *(f"m = {m:,}" for m in sizes_of(results))),
        f"Milliseconds, the least of many, on {results.timed_on}, one CPU thread.",
    )
    for name, what in WAYS.items():
        times.rows.append((name, what, *(f"{results.seconds[name, m] * 1e3:.3f}" for m in sizes_of(results))))
    factors = [f"{ratio(results, m):,.1f}" for m in sizes_of(results)]
    times.rows += [None, ("ratio", "two loops / vectorised", *factors)]
    errors = Table("Tumours on the wrong side", ("set", "error"), "Breast cancer, 569 tumours split 60/20/20 by class.")
    errors.rows += [(name, f"{error:.1%}") for name, error in results.errors.items()]
    return [times, errors]


def sizes_of(results: Results) -> list[int]:
    """The numbers of samples timed."""
    return sorted({m for _, m in results.seconds})


def cost_figure(results: Results) -> Figure:
    """How far J is above its minimum, by hand and by the neuron."""
    figure = blank_figure(1, 1, panel=(7, 4.2))
    (axis,) = figure.axes
    steps = np.arange(len(results.by_hand)) + 1
    for costs, style, label in (
        (results.by_hand, {"lw": 5, "alpha": 0.35}, "by hand"),
        (results.neuron, {"ls": "--", "color": "black"}, "nn.MLP([30, 1]) + optim.GradientDescent"),
    ):
        above = np.array(costs) - results.minimum
        axis.loglog(steps, np.where(above > 1e-12, above, np.nan), label=label, **style)  # below it is round-off
    axis.set(xlabel="step of gradient descent", ylabel="J − minimum")
    axis.set_title("Logistic regression: by hand, and as a single neuron", loc="left", fontsize=11)
    axis.legend(loc="lower left")
    axis.grid(alpha=0.3)
    return figure


def time_figure(results: Results) -> Figure:
    """Time of a step against the number of samples, log-log."""
    figure = blank_figure(1, 1, panel=(7, 4.2))
    (axis,) = figure.axes
    sizes = sizes_of(results)
    for name, what in WAYS.items():
        axis.loglog(sizes, [results.seconds[name, m] * 1e3 for m in sizes], "-o", label=f"{name} ({what})")
    last = sizes[-1]
    middle = 1e3 * math.sqrt(results.seconds["two loops", last] * results.seconds["vectorised", last])
    axis.annotate(
        "", (last, results.seconds["two loops", last] * 1e3), (last, results.seconds["vectorised", last] * 1e3),
        arrowprops={"arrowstyle": "<->", "color": "gray"},
    )  # fmt: skip
    axis.annotate(f"× {ratio(results, last):,.0f} ", (last, middle), ha="right", va="center", color="gray", fontsize=11)
    axis.set(xlabel="samples m (30 features each)", ylabel="time of one step (ms)")
    axis.set_title("The same J, dw and db with and without loops", loc="left", fontsize=11)
    axis.legend(loc="upper left", fontsize=9)
    axis.grid(alpha=0.3)
    return figure


def write_logs(results: Results, logs: VariantLogs) -> None:
    """Curves of J and of the times, and both figures."""
    for variant, costs in (("by_hand", results.by_hand), ("neuron", results.neuron)):
        for step in sorted({int(s) for s in np.geomspace(1, len(costs), 200)}):
            logs[variant].add_scalar("1 Training/J with the L2 penalty", costs[step - 1], step)
    for (name, m), seconds in results.seconds.items():
        logs[name.replace(" ", "_")].add_scalar("2 Time of one step by the number of samples/ms", seconds * 1e3, m)
    overview = logs["overview"]
    save_figure(
        overview, "3 Pictures/The cost, by hand and as a neuron", cost_figure(results), logs.folder / "cost.png",
        "How far J is above its minimum (known from scikit-learn's solver). The two curves lie on one another: a "
        "single neuron is logistic regression.",
    )  # fmt: skip
    save_figure(
        overview, "3 Pictures/Loops against vectorised code", time_figure(results), logs.folder / "time.png",
        "Time of one step against the number of samples. Loops cost time for every sample (a loop whose body calls the "
        "tensor library, most of all); without them the fixed cost of a call dominates up to thousands of rows.",
    )  # fmt: skip


def main(config: LogisticRegressionConfig, console: Console | None = None) -> Results:
    """Run the experiment, write its logs, print its tables and their reading."""
    return run_experiment(NAME, config, console, 4, measure, claims, tables, write_logs)


if __name__ == "__main__":
    command_line(LogisticRegressionConfig, main, NAME)
