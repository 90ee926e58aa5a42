"""Dropout: what it leaves unchanged, what it does to J, what it is worth, and prediction with it off.

    python -m experiments.dropout

1. Inverted dropout itself: how many units it zeroes, the mean it keeps, and what happens without the division.
2. J of full-batch gradient descent with dropout off, with a fresh mask in every pass, and with one mask held fixed.
3. A large net on few digits: no dropout, one keep_prob for all layers, the lowest at the largest layer or elsewhere,
   and at the input.
4. Prediction: dropout off, one pass with it on, and the average of many passes.

Source: the notes, "dropout regularisation" and "understanding dropout"; SPEC A10, F9, F13.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from experiments.config import CommonConfig
from experiments.console import Claim, Table, command_line, progress
from experiments.descent import descend
from experiments.digits import CLASSES, Digits, load_digits
from experiments.figures import blank_figure
from experiments.logs import VariantLogs, save_figure
from experiments.nets import error_rate
from experiments.report import finish, terminal, write_summary
from experiments.threads import one_thread
from torchnotes import nn, ops
from torchnotes.init import initialize_
from torchnotes.optim import Momentum
from torchnotes.regularization import Penalty
from torchnotes.training import MonotonicReport, check_monotonic, predict

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console

NAME = "dropout"
SIZES = (64, 256, 64, CLASSES)  # the first weight matrix, and the second, have 16,384 entries each
NONE, EVERY, LARGEST, SMALLEST, INPUT = "none", "0.5 everywhere", "0.5 after 256", "0.5 after 64", "0.5 at the input"
KEEP_PROBS = {  # of the input, the 256 units, the 64 units
    NONE: (1.0, 1.0, 1.0),
    EVERY: (1.0, 0.5, 0.5),
    LARGEST: (1.0, 0.5, 1.0),
    SMALLEST: (1.0, 1.0, 0.5),
    INPUT: (0.5, 1.0, 1.0),
}
OFF, FRESH, FIXED = "off", "a fresh mask in each pass", "one mask held fixed"
RATE, MOMENTUM = 0.05, 0.9
SIGMAS = 4.0  # a mean further from what is expected, in standard errors, is not chance


@dataclass(frozen=True)
class DropoutConfig(CommonConfig):
    """Dropout: what it leaves unchanged, what it does to J, what it is worth, and prediction with it off."""

    few: int = 200
    """Training digits of part 3."""


@dataclass(frozen=True)
class Mask:
    """Dropout of a layer of 50 ones: units zeroed per sample, the mean left, both with their standard error."""

    zeroed: float
    zeroed_error: float
    mean: float
    mean_error: float
    undivided: float
    never_kept: int


@dataclass(frozen=True)
class Trained:
    """A net of part 3: errors and the squared norm of its weights, one number a seed."""

    train: tuple[float, ...]
    dev: tuple[float, ...]
    norm: tuple[float, ...]

    @property
    def dev_mean(self) -> float:
        """Mean over the seeds."""
        return statistics.fmean(self.dev)


@dataclass
class Results:
    """What the experiment found."""

    masks: dict[float, Mask] = field(default_factory=dict)
    costs: dict[str, list[float]] = field(default_factory=dict)
    trained: dict[str, Trained] = field(default_factory=dict)
    passes: dict[int, tuple[float, float]] = field(default_factory=dict)
    off_error: float = math.nan
    one_pass_errors: tuple[float, ...] = ()
    average_error: float = math.nan
    judged: bool = True
    reading: list[Claim] = field(default_factory=list)


def mask(keep_prob: float, samples: int, seed: int, device: str) -> Mask:
    """Drop a layer of 50 ones for many samples."""
    generator = torch.Generator(device).manual_seed(seed)
    ones = torch.ones(samples, 50, dtype=torch.float64, device=device)
    out = ops.dropout(ones, keep_prob=keep_prob, generator=generator)
    zeroed = (out == 0).double().sum(1)
    root = math.sqrt(samples)
    return Mask(
        float(zeroed.mean()),
        float(zeroed.std()) / root,
        float(out.mean()),
        float(out.mean(1).std()) / root,
        float((out * keep_prob).mean()),
        int((out.abs().sum(0) == 0).sum()),
    )


def net_with(keep_probs: tuple[float, ...], seed: int, device: str) -> tuple[nn.MLP, torch.Generator]:
    """A net with weights drawn on the CPU, and the generator its masks come from."""
    generator = torch.Generator(device).manual_seed(seed)
    net = nn.MLP(SIZES, "relu", keep_probs, generator=generator)
    initialize_(net, generator=torch.Generator().manual_seed(seed))
    return net.to(device), generator


def watch_cost(kind: str, digits: Digits, steps: int, seed: int) -> list[float]:
    """J along full-batch gradient descent with dropout off, with fresh masks, or with one mask."""
    keep = KEEP_PROBS[NONE if kind == OFF else EVERY]
    net, generator = net_with(keep, seed, str(digits.x_train.device))
    net.train()

    def rewind(step: int) -> None:
        if kind == FIXED:
            generator.manual_seed(seed)

    return descend(net, digits.x_train, digits.y_train, loss=nn.CrossEntropyLoss(), rate=0.1, steps=steps, each=rewind)


def train_few(keep_probs: tuple[float, ...], digits: Digits, few: int, steps: int, seed: int) -> nn.MLP:
    """Fit the first few digits with momentum."""
    net, _ = net_with(keep_probs, seed, str(digits.x_train.device))
    optimizer = Momentum(net.parameters(), lr=RATE, momentum=MOMENTUM)
    x, y = digits.x_train[:few], digits.y_train[:few]
    descend(net.train(), x, y, loss=nn.CrossEntropyLoss(), steps=steps, optimizer=optimizer)
    return net


def error(net: torch.nn.Module, x: Tensor, y: Tensor, passes: int = 0) -> float:
    """Share misread, with dropout off or by the average of so many passes with it on."""
    return float(error_rate(predict(net, x, dropout_passes=passes), y))


def squared_norm(net: torch.nn.Module) -> float:
    """Σ ‖W‖² over the layers: the L2 penalty with λ/(2m) = 1."""
    return float(Penalty("l2", lambd=2.0, m=1)(net).detach())


def compare(config: DropoutConfig, digits: Digits, results: Results, tick: Callable[[str], None]) -> nn.MLP:
    """Part 3; returns the net with dropout everywhere of the first seed."""
    seeds, steps = (1, 40) if config.quick else (5, 400)
    kept: nn.MLP | None = None
    for name, keep_probs in KEEP_PROBS.items():
        train, dev, norm = [], [], []
        for seed in range(config.seed, config.seed + seeds):
            shuffled = load_digits(seed=seed, device=config.device)
            net = train_few(keep_probs, shuffled, config.few, steps, seed)
            train.append(error(net, shuffled.x_train[: config.few], shuffled.y_train[: config.few]))
            dev.append(error(net, shuffled.x_dev, shuffled.y_dev))
            norm.append(squared_norm(net))
            if name == EVERY and kept is None:
                kept = net
        results.trained[name] = Trained(tuple(train), tuple(dev), tuple(norm))
        tick(f"keep_prob {name}")
    assert kept is not None
    return kept


def average_passes(net: nn.MLP, digits: Digits, counts: tuple[int, ...], results: Results) -> None:
    """Part 4: the average of k passes against dropout switched off: outputs and answers."""
    x, y = digits.x_dev, digits.y_dev
    off = predict(net, x)
    results.off_error = error(net, x, y)
    results.one_pass_errors = tuple(error(net, x, y, passes=1) for _ in range(10))
    for k in counts:
        mean = predict(net, x, dropout_passes=k)
        distance = float((mean - off).norm() / off.norm())
        results.passes[k] = (distance, float((mean.argmax(1) == off.argmax(1)).double().mean()))
        results.average_error = float(error_rate(mean, y))


def measure(config: DropoutConfig, tick: Callable[[str], None]) -> Results:
    """All four parts."""
    digits = load_digits(seed=config.seed, device=config.device)
    results = Results(judged=not config.quick)
    for keep_prob in (0.5, 0.8, 0.9, 1.0):
        results.masks[keep_prob] = mask(keep_prob, 2_000 if config.quick else 20_000, config.seed, config.device)
    tick("masks")
    for kind in (OFF, FRESH, FIXED):
        results.costs[kind] = watch_cost(kind, digits, 20 if config.quick else 100, config.seed)
        tick(f"J with dropout: {kind}")
    net = compare(config, digits, results, tick)
    average_passes(net, digits, (1, 3, 10) if config.quick else (1, 3, 10, 30, 100, 300, 1000), results)
    tick("many passes")
    return results


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


def write_logs(results: Results, logs: VariantLogs) -> None:
    """Curves of J, and the pictures."""
    for kind, costs in results.costs.items():
        for step, cost in enumerate(costs):
            logs[kind.replace(" ", "_")].add_scalar("1 Full-batch gradient descent/J", cost, step)
    overview = logs["overview"]
    for k, (distance, same) in results.passes.items():
        overview.add_scalar("2 Average of k passes (horizontal: k)/distance from dropout off", distance, k)
        overview.add_scalar("2 Average of k passes (horizontal: k)/same answers", same, k)
    save_figure(
        overview, "3 Pictures/J with dropout on and off", cost_figure(results), logs.folder / "cost.png",
        "With dropout off J must fall at every step, and a rise is a bug; with a fresh mask in each pass a rise means "
        "nothing; with one mask held fixed J is one function again, and falls.",
    )  # fmt: skip
    save_figure(
        overview, "3 Pictures/Averaging passes", passes_figure(results), logs.folder / "passes.png",
        "How far the average of k passes with dropout on is from one pass with it off. Chance averages out like 1/√k; "
        "what is left is the difference between averaging outputs and averaging weights.",
    )  # fmt: skip


def main(config: DropoutConfig, console: Console | None = None) -> Results:
    """Run the experiment, write its logs, print its tables and their reading."""
    console = terminal(console)
    with one_thread(), VariantLogs(config.log_dir / NAME) as logs:
        with progress(console, 5 + len(KEEP_PROBS)) as tick:
            results = measure(config, tick)
        results.reading = claims(results)
        write_logs(results, logs)
        write_summary(logs, results.reading, tables(results))
    finish(NAME, config, console, logs, results.reading, tables(results))
    return results


if __name__ == "__main__":
    command_line(DropoutConfig, main, NAME)
