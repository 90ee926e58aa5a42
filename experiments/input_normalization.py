"""Normalised inputs: the shape of the cost, the steps to its minimum, and what the misprinted σ² would do.

    python -m experiments.input_normalization

1. Logistic regression on two features of very different range: J over the two weights, raw and normalised, with the
   path of gradient descent at each one's best rate.
2. Steps to the minimum for raw inputs, normalised ones, and the forms the notes print by mistake, on four problems.
3. Test samples normalised by the training set's μ and σ, and by their own.

Source: the notes, "normalising inputs"; SPEC E1, G1, G14.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from experiments.config import CommonConfig
from experiments.console import Claim, Table, command_line
from experiments.datasets import breast_cancer, moons, split
from experiments.descent import binary_error, descend
from experiments.figures import blank_figure
from experiments.logs import VariantLogs, save_figure
from experiments.nets import new_net
from experiments.report import run_experiment
from torchnotes import nn, ops
from torchnotes.data import InputNormalizer

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console

NAME = "input_normalization"
RAW, NORMAL, PRINTED, UNCENTRED = "raw", "normalised", "(x − μ)/σ², as printed", "x/√(Σx²/m), not centred"
SCALINGS = (RAW, NORMAL, PRINTED, UNCENTRED)
PAIR, WIDE, TEN, ALIKE = "radius and concavity", "area and smoothness", "ten features", "moons (alike)"
FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)  # of 2/λmax, the largest safe rate where the curvature is largest
NEAR = 0.01  # of the way from the start to the minimum left to go


@dataclass(frozen=True)
class InputNormalizationConfig(CommonConfig):
    """Normalised inputs: the shape of the cost, the steps to its minimum, and what the misprinted σ² would do."""

    limit: int = 5_000
    """Steps of gradient descent allowed."""


@dataclass(frozen=True)
class Descent:
    """Gradient descent on one problem in one scaling, at the best rate.

    Attributes:
        rate: the best of the grid.
        steps: until 1 % of the way is left; infinite if not within the limit.
        condition: largest over smallest curvature of J at the minimum, over weights and bias.
        above: J − minimum at every step.
        path: (w, b) at every step, (steps, n + 1).
    """

    rate: float
    steps: float
    condition: float
    above: list[float]
    path: Tensor


@dataclass
class Results:
    """What the experiment found."""

    descents: dict[tuple[str, str], Descent] = field(default_factory=dict)
    pair: tuple[Tensor, Tensor] | None = None
    variances: dict[str, Tensor] = field(default_factory=dict)
    second_moment: tuple[float, float] = (math.nan, math.nan)
    test_errors: dict[str, float] = field(default_factory=dict)
    limit: int = 0
    judged: bool = True
    reading: list[Claim] = field(default_factory=list)


def scaled(x: Tensor) -> dict[str, Tensor]:
    """The inputs in the four scalings."""
    normalizer = InputNormalizer().fit(x)
    return {
        RAW: x,
        NORMAL: normalizer(x),
        PRINTED: (x - normalizer.mean) / normalizer.var,
        UNCENTRED: x / x.square().mean(0).sqrt(),
    }


def problems(config: InputNormalizationConfig) -> dict[str, tuple[Tensor, Tensor]]:
    """Three from the table of tumours, whose ranges differ, and one whose ranges are alike."""
    x, y, names = breast_cancer(torch.float64)
    sets = split(x, y, seed=config.seed)

    def columns(*chosen: str) -> Tensor:
        return sets.x_train[:, [names.index(f"mean {name}") for name in chosen]]

    points, labels = moons(seed=config.seed)
    found = {
        PAIR: (columns("radius", "concavity"), sets.y_train),
        WIDE: (columns("area", "smoothness"), sets.y_train),
        TEN: (sets.x_train[:, :10], sets.y_train),
        ALIKE: (points.double(), labels.double()),
    }
    return {name: (a.to(config.device), b.to(config.device)) for name, (a, b) in found.items()}


def with_ones(x: Tensor) -> Tensor:
    """A column of ones beside the inputs, so that b is one more weight."""
    return torch.cat([x, torch.ones_like(x[:, :1])], dim=1)


def costs(x: Tensor, y: Tensor, theta: Tensor) -> Tensor:
    """J of each column of parameters (n + 1, k): (k,)."""
    z = x @ theta
    return ops.binary_cross_entropy_with_logits(z, y.expand_as(z), reduction="none").mean(0)


def curvature(x: Tensor, theta: Tensor) -> Tensor:
    """The Hessian of J: Xᵀ diag(a(1 − a)) X / m."""
    a = ops.sigmoid(x @ theta)
    return (x * a * (1 - a)).T @ x / len(x)


def minimum(x: Tensor, y: Tensor) -> tuple[float, Tensor]:
    """J and the parameters at the minimum, by Newton's method."""
    theta = x.new_zeros(x.shape[1], 1)
    for _ in range(40):
        gradient = x.T @ (ops.sigmoid(x @ theta) - y) / len(x)
        theta = theta - torch.linalg.solve(curvature(x, theta), gradient)
    return float(costs(x, y, theta)), theta


def best_descent(x: Tensor, y: Tensor, lowest: float, limit: int) -> Descent:
    """Gradient descent from zeros at all rates of the grid side by side, one column each; the first to arrive wins."""
    x = with_ones(x)
    steepest = float(torch.linalg.eigvalsh(x.T @ x / (4 * len(x))).max())
    rates = torch.tensor(FACTORS, dtype=x.dtype, device=x.device) * 2 / steepest
    theta, start = x.new_zeros(x.shape[1], len(FACTORS)), math.log(2) - lowest
    paths, above = [theta], [costs(x, y, theta) - lowest]
    for step in range(1, limit + 1):
        theta = theta - rates * (x.T @ (ops.sigmoid(x @ theta) - y) / len(x))
        paths.append(theta)
        above.append(costs(x, y, theta) - lowest)
        if step % 20 == 0 and bool((torch.stack(above[-20:]) <= NEAR * start).any()):
            break
    table = torch.stack(above)
    arrived = table <= NEAR * start
    first = torch.where(arrived.any(0), arrived.double().argmax(0).double(), math.inf)
    best = int(first.argmin()) if bool(arrived.any()) else int(torch.nan_to_num(table[-1], nan=math.inf).argmin())
    steps = float(first[best])
    until = int(steps) + 1 if math.isfinite(steps) else len(table)
    path = torch.stack([theta[:, best] for theta in paths[:until]]).cpu()
    return Descent(float(rates[best]), steps, math.nan, table[:until, best].tolist(), path)


def condition(x: Tensor, y: Tensor) -> float:
    """Largest over smallest curvature at the minimum: singular values of √(a(1 − a)) X keep the digits."""
    x = with_ones(x)
    _, at_normal = minimum(with_ones(InputNormalizer().fit(x[:, :-1])(x[:, :-1])), y)
    a = ops.sigmoid(with_ones(InputNormalizer().fit(x[:, :-1])(x[:, :-1])) @ at_normal)
    singular = torch.linalg.svdvals((a * (1 - a)).sqrt() * x)
    return float((singular[0] / singular[-1]) ** 2)


def errors_on_test(config: InputNormalizationConfig, splits: int) -> dict[str, float]:
    """Mean test error over several splits, the test inputs normalised in three ways."""
    x, y, _ = breast_cancer()
    groups = {"by the training set's μ and σ": 0, "by their own, ten at a time": 10, "by its own, one at a time": 1}
    found = dict.fromkeys(groups, 0.0)
    for seed in range(config.seed, config.seed + splits):
        sets = split(x, y, seed=seed).to(config.device)
        normalizer = InputNormalizer().fit(sets.x_train)
        net = new_net([30, 1], seed=seed, device=config.device)
        descend(net, normalizer(sets.x_train), sets.y_train, loss=nn.BCEWithLogitsLoss(), rate=0.5, steps=200)
        for name, size in groups.items():
            parts = sets.x_test.split(size) if size else [sets.x_test]
            given = [InputNormalizer().fit(p)(p) if size else normalizer(p) for p in parts]
            found[name] += binary_error(net, torch.cat(given), sets.y_test) / splits
    return found


def measure(config: InputNormalizationConfig, tick: Callable[[str], None]) -> Results:
    """All three parts."""
    limit = min(config.limit, 300) if config.quick else config.limit
    results = Results(limit=limit, judged=not config.quick)
    for name, (x, y) in problems(config).items():
        lowest, _ = minimum(with_ones(scaled(x)[NORMAL]), y)
        for scaling, inputs in scaled(x).items():
            found = best_descent(inputs, y, lowest, limit)
            results.descents[name, scaling] = Descent(
                found.rate, found.steps, condition(inputs, y), found.above, found.path
            )
            tick(f"{name}, {scaling}")
        if name == PAIR:
            results.pair = (x, y)
        if name == TEN:
            results.variances = {s: v.var(0, unbiased=False).cpu() for s, v in scaled(x).items()}
            normalizer = InputNormalizer().fit(x)
            ratios = [(part.square().mean(0) / normalizer.var).max() for part in (x, x - normalizer.mean)]
            results.second_moment = (float(ratios[0]), float(ratios[1]))
    results.test_errors = errors_on_test(config, 2 if config.quick else 10)
    tick("test sets")
    return results


def shown(results: Results, name: str, scaling: str) -> str:
    """Steps, or that it did not arrive."""
    steps = results.descents[name, scaling].steps
    return f"{steps:,.0f}" if math.isfinite(steps) else f"over {results.limit:,}"


def claims(results: Results) -> list[Claim]:
    """The notes' statements, each judged by what this run measured."""
    names = list(dict.fromkeys(name for name, _ in results.descents))
    apart = [name for name in names if name != ALIKE]
    raw, normal = ({n: results.descents[n, s] for n in names} for s in (RAW, NORMAL))
    printed, unit = results.variances[PRINTED], results.variances[NORMAL]
    own = {k: v for k, v in results.test_errors.items() if "own" in k}
    train_error = next(v for k, v in results.test_errors.items() if "own" not in k)
    similar = raw[ALIKE].steps / normal[ALIKE].steps
    return [
        Claim(
            "Features of different range make J a narrow bowl; normalised, it is rounder.",
            all(normal[n].condition < raw[n].condition / 10 for n in apart),
            "Largest over smallest curvature at the minimum: "
            + "; ".join(f"{n} {raw[n].condition:.0e} raw, {normal[n].condition:,.3g} normalised" for n in apart)
            + ".",
        ),
        Claim(
            "The raw bowl allows small steps only, the normalised one larger steps.",
            all(normal[n].rate > raw[n].rate for n in apart),
            "Best rates: "
            + "; ".join(f"{n} {raw[n].rate:.2g} raw, {normal[n].rate:.2g} normalised" for n in apart)
            + ".",
        ),
        Claim(
            "Normalised inputs need fewer steps to the minimum.",
            all(normal[n].steps < raw[n].steps for n in apart) if results.judged else None,
            "Until 1 % of the way is left: "
            + "; ".join(f"{n} {shown(results, n, RAW)} raw, {shown(results, n, NORMAL)} normalised" for n in apart)
            + ("." if results.judged else ". A quick run is too short to tell."),
        ),
        Claim(
            "Where the ranges are alike it matters little.",
            0.5 <= similar <= 2,
            f"On the moons: {shown(results, ALIKE, RAW)} steps raw, {shown(results, ALIKE, NORMAL)} normalised (up to "
            "twice as many counts as little).",
        ),
        Claim(
            "Dividing by σ², as printed, gives every feature the variance 1 (SPEC G1).",
            bool((printed - 1).abs().max() < 0.01),
            f"It gives variances from {float(printed.min()):.1e} to {float(printed.max()):.1e}, which is 1/σ²; "
            "dividing "
            f"by σ gives {float(unit.min()):.3f} to {float(unit.max()):.3f}. Steps on {TEN}: "
            f"{shown(results, TEN, PRINTED)} by σ², {shown(results, TEN, NORMAL)} by σ.",
        ),
        Claim(
            "σ² = Σx²/m is the variance, once the mean has been taken off (SPEC G14), and only then.",
            abs(results.second_moment[1] - 1) < 1e-9 and results.second_moment[0] > 1.01,
            f"Σx²/m over the variance: {results.second_moment[1]:.6f} after centring, up to "
            f"{results.second_moment[0]:.0f} before.",
        ),
        Claim(
            "The test set must go through the training set's μ and σ.",
            all(error > train_error for error in own.values()),
            f"Test error {train_error:.1%} so; "
            + ", ".join(f"{error:.1%} normalised {name}" for name, error in own.items())
            + " (where every input becomes 0).",
        ),
    ]


def tables(results: Results) -> list[Table]:
    """Steps, rates and condition."""
    table = Table(
        "Gradient descent to the minimum of logistic regression",
        ("problem", "inputs", "best rate", "steps", "curvature ratio"),
        f"Steps until 1 % of J's way from the start to its minimum is left, at most {results.limit:,}; the best of "
        f"{len(FACTORS)} rates in each scaling. Curvature ratio: largest over smallest at the minimum.",
    )
    for (name, scaling), found in results.descents.items():
        if scaling == RAW and table.rows:
            table.rows.append(None)
        steps = shown(results, name, scaling)
        table.rows.append((name, scaling, f"{found.rate:.2g}", steps, f"{found.condition:,.3g}"))
    return [table]


def profile(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
    """J over weights (k, 2), each with the bias that is best for it."""
    z = x @ w.T
    b = -z.mean(0)
    for _ in range(15):  # Newton's method in one variable, damped
        a = ops.sigmoid(z + b)
        b = b - ((a - y).mean(0) / (a * (1 - a)).mean(0).clamp_min(1e-6)).clamp(-2, 2)
    return ops.binary_cross_entropy_with_logits(z + b, y.expand_as(z), reduction="none").mean(0)


def contour_figure(results: Results) -> Figure:
    """J over two weights, raw and normalised, in equal units, with the path down."""
    assert results.pair is not None
    x, y = results.pair
    figure = blank_figure(1, 2, panel=(5.4, 4.8))
    for axis, scaling in zip(figure.axes, (RAW, NORMAL), strict=True):
        inputs, found = scaled(x)[scaling], results.descents[PAIR, scaling]
        lowest, at = minimum(with_ones(scaled(x)[NORMAL]), y)
        goal = at[:2, 0] if scaling == NORMAL else at[:2, 0] / InputNormalizer().fit(x).std.to(at)
        _contours(axis, inputs, y, goal, lowest)
        path = found.path[:, :2].numpy()
        axis.plot(*path.T, "-", color="white", lw=1.2)
        axis.plot(*path[:: max(1, len(path) // 40)].T, ".", color="white", ms=4)
        axis.plot(*goal.cpu().numpy(), "*", color="red", ms=12)
        axis.set(xlabel="weight of the radius", ylabel="weight of the concavity")
        rate, steps = f"{found.rate:.2g}", shown(results, PAIR, scaling)
        axis.set_title(f"{scaling}: rate {rate}, {steps} steps", fontsize=11)
    return figure


def _contours(axis: Any, x: Tensor, y: Tensor, goal: Tensor, lowest: float) -> None:
    """Levels of J − minimum in a square window that holds the start (0, 0) and the goal."""
    reach = 0.75 * float(goal.abs().max())
    middle = (goal / 2).tolist()
    sides = [np.linspace(center - reach, center + reach, 61) for center in middle]
    grid = torch.as_tensor(np.stack(np.meshgrid(*sides), -1).reshape(-1, 2), dtype=x.dtype, device=x.device)
    above = (profile(x, y, grid) - lowest).cpu().numpy().reshape(61, 61)
    levels = np.geomspace(1e-3, max(2e-3, float(above.max())), 14)
    axis.contourf(*sides, np.maximum(above, 1e-3), levels=levels, cmap="viridis", norm="log")
    axis.set_aspect("equal")


def descent_figure(results: Results) -> Figure:
    """J − minimum against steps in the four scalings, on two problems."""
    figure = blank_figure(1, 2, panel=(5.2, 4))
    for axis, name in zip(figure.axes, (PAIR, TEN), strict=True):
        for scaling in SCALINGS:
            found = results.descents[name, scaling]
            axis.loglog(np.arange(len(found.above)) + 1, found.above, label=scaling)
        axis.set(xlabel="step", ylabel="J − minimum")
        axis.set_title(name, loc="left", fontsize=11)
        axis.grid(alpha=0.3)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize=9)
    return figure


def write_logs(results: Results, logs: VariantLogs) -> None:
    """One run a scaling, and the pictures."""
    variants = dict(zip(SCALINGS, ("raw", "normalised", "divided_by_variance", "not_centred"), strict=True))
    for (name, scaling), found in results.descents.items():
        for step in sorted({int(s) for s in np.geomspace(1, len(found.above), 100)}):
            tag = f"1 J above its minimum/{name}"
            logs[variants[scaling]].add_scalar(tag, found.above[step - 1], step - 1)
    overview, folder, group = logs["overview"], logs.folder, "2 Pictures"
    save_figure(
        overview, f"{group}/J over two weights", contour_figure(results), folder / "contours.png",
        "J of logistic regression over the weights of two features (the bias at its best), both axes in the same unit; "
        "white: gradient descent from 0 at its best rate, red: the minimum. Raw, the bowl is a gutter.",
    )  # fmt: skip
    save_figure(
        overview, f"{group}/J above its minimum, step by step", descent_figure(results), folder / "steps.png",
        "Every scaling at its own best rate. The curves end where 1 % of the way is left.",
    )  # fmt: skip


def main(config: InputNormalizationConfig, console: Console | None = None) -> Results:
    """Run the experiment, write its logs, print its tables and their reading."""
    return run_experiment(NAME, config, console, 4 * len(SCALINGS) + 1, measure, claims, tables, write_logs)


if __name__ == "__main__":
    command_line(InputNormalizationConfig, main, NAME)
