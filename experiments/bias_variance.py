"""Bias and variance: errors over size of net and of data, and the recipe followed until both are low.

    python -m experiments.bias_variance

1. ``diagnose_fit`` on the notes' five examples.
2. Training and dev error of nets of growing size, and of one net on growing data.
3. The recipe, step by step: a tiny net on few digits; first against bias, then against variance, each step chosen by
   what the diagnosis says.
4. The same net judged on few dev images: what the sampling error is for.

Source: the notes, "bias and variance" and "the basic recipe"; SPEC F10, E2.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from experiments.config import CommonConfig
from experiments.console import Claim, Table, command_line, progress
from experiments.digits import CLASSES
from experiments.figures import blank_figure
from experiments.logs import VariantLogs, save_figure
from experiments.nets import error_rate, new_net
from experiments.report import finish, terminal, write_summary
from experiments.threads import one_thread
from torchnotes import nn
from torchnotes.data import InputNormalizer
from torchnotes.optim import GradientDescent, Momentum, l2_groups
from torchnotes.training import FitDiagnosis, diagnose_fit, evaluate, fit, predict

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console

NAME = "bias_variance"
BATCH, POOL = 64, 1000  # the other 797 digits are the dev set
TOLERANCE = 0.04  # a gap up to this is low: the notes call 1 point low and 10 points high
NOTES = {  # training error, dev error, base error → the notes' verdict
    (0.01, 0.11, 0.0): "high variance",
    (0.15, 0.16, 0.0): "high bias",
    (0.15, 0.30, 0.0): "high bias and high variance",
    (0.005, 0.01, 0.0): "low bias, low variance",
    (0.15, 0.16, 0.15): "low bias, low variance",
}


@dataclass(frozen=True)
class BiasVarianceConfig(CommonConfig):
    """Bias and variance: errors over size of net and of data, and the recipe followed until both are low."""

    dev: int = 797
    """Dev images, at most 797."""


@dataclass(frozen=True)
class Setup:
    """How a net is trained: what the recipe changes.

    Attributes:
        units: of the one hidden layer.
        samples: of the training set.
        momentum: 0 is plain gradient descent.
        steps: of the optimiser.
        decay: λ of the L2 penalty λ/(2m) ‖W‖².
    """

    units: int = 3
    samples: int = 100
    momentum: float = 0.0
    steps: int = 100
    decay: float = 0.0


@dataclass(frozen=True)
class Fit:
    """Errors of a trained net."""

    train: float
    dev: float


@dataclass(frozen=True)
class Step:
    """One step of the recipe: what was done, the errors after it, and what they mean."""

    done: str
    against: str
    setup: Setup
    errors: Fit
    diagnosis: FitDiagnosis


@dataclass(frozen=True)
class Calls:
    """Judgements of one net by few dev images: shares called low, high and unclear; and what it truly is."""

    truth: str
    images: int
    without: dict[str, float]
    with_sizes: dict[str, float]


@dataclass
class Results:
    """What the experiment found."""

    verdicts: dict[tuple[float, float, float], str] = field(default_factory=dict)
    sizes: dict[int, list[Fit]] = field(default_factory=dict)
    data: dict[int, list[Fit]] = field(default_factory=dict)
    recipe: list[Step] = field(default_factory=list)
    calls: Calls | None = None
    judged: bool = True
    reading: list[Claim] = field(default_factory=list)


@dataclass(frozen=True)
class Pool:
    """All digits in one order: the first 1,000 to train on, the rest for dev."""

    x: Tensor
    y: Tensor
    dev: int

    @classmethod
    def load(cls, seed: int, dev: int, device: str) -> Pool:
        """Shuffle by seed."""
        from sklearn import datasets

        bunch = datasets.load_digits()
        order = torch.randperm(len(bunch.data), generator=torch.Generator().manual_seed(seed))
        x, y = torch.from_numpy(bunch.data).float()[order], torch.from_numpy(bunch.target)[order]
        return cls(x.to(device), y.to(device), dev)

    def sets(self, samples: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """The first samples to train on, and the dev set, normalised by the former."""
        normalizer = InputNormalizer().fit(self.x[:samples])
        rest = slice(POOL, POOL + self.dev)
        return (normalizer(self.x[:samples]), self.y[:samples]), (normalizer(self.x[rest]), self.y[rest])


def train(setup: Setup, pool: Pool, seed: int) -> tuple[nn.MLP, Fit]:
    """Train by mini-batches and take both errors."""
    known, unknown = pool.sets(setup.samples)
    net = new_net([64, setup.units, CLASSES], seed=seed, device=pool.x.device)
    groups = l2_groups(net, setup.decay / setup.samples)
    optimizer = (
        Momentum(groups, lr=0.05, momentum=setup.momentum) if setup.momentum else GradientDescent(groups, lr=0.05)
    )
    epochs = max(1, round(setup.steps / -(-setup.samples // BATCH)))
    loss = nn.CrossEntropyLoss()
    fit(net, known, loss=loss, optimizer=optimizer, epochs=epochs, batch_size=BATCH, seed=seed, progress=False)
    errors = [evaluate(net, *data, loss=loss, metrics={"error": error_rate})["error"] for data in (known, unknown)]
    return net, Fit(*errors)


def diagnose(errors: Fit, setup: Setup, dev: int) -> FitDiagnosis:
    """What the errors mean, with their sampling error; a person reads these digits without fault."""
    return diagnose_fit(errors.train, errors.dev, n_train=setup.samples, n_dev=dev, tolerance=TOLERANCE)


Remedy = tuple[str, Callable[[Setup], Setup]]
AGAINST_BIAS: tuple[Remedy, ...] = (
    ("a bigger net: 30 units", lambda s: replace(s, units=30)),
    ("another optimiser: momentum 0.9", lambda s: replace(s, momentum=0.9)),
    ("train longer: 600 steps", lambda s: replace(s, steps=600)),
    ("a bigger net: 100 units", lambda s: replace(s, units=100)),
)
AGAINST_VARIANCE: tuple[Remedy, ...] = (
    ("more data: 300 digits", lambda s: replace(s, samples=300)),
    ("more data: 1,000 digits", lambda s: replace(s, samples=1000, steps=1200)),
    ("regularise: L2 with λ = 3", lambda s: replace(s, decay=3.0)),
    ("another architecture: 100 units", lambda s: replace(s, units=100)),
)


def follow_recipe(pool: Pool, seed: int, most: int) -> list[Step]:
    """Bias first, then variance, one remedy at a time, until both are low or the remedies are used up."""
    setup, remedies = Setup(), {"bias": list(AGAINST_BIAS), "variance": list(AGAINST_VARIANCE)}
    steps, done, against = [], "start: 3 units, 100 digits, 100 steps", ""
    for _ in range(most):
        _, errors = train(setup, pool, seed)
        diagnosis = diagnose(errors, setup, pool.dev)
        steps.append(Step(done, against, setup, errors, diagnosis))
        against = next((name for name in remedies if getattr(diagnosis, name).level != "low"), "")
        if not against or not remedies[against]:
            break
        done, change = remedies[against].pop(0)
        setup = change(setup)
    return steps


def judge_by_few(setup: Setup, pool: Pool, seed: int, images: int) -> Calls:
    """Judge the variance of a net on many random small dev sets, with and without its sampling error."""
    net, errors = train(setup, pool, seed)
    truth = diagnose_fit(errors.train, errors.dev, tolerance=TOLERANCE).variance.level
    _, (x, y) = pool.sets(setup.samples)
    wrong = (predict(net, x).argmax(1) != y).cpu()
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, dict[str, float]] = {kind: dict.fromkeys(("low", "high", "unclear"), 0.0) for kind in "ab"}
    for _ in range(400):
        few = float(wrong[torch.randperm(len(wrong), generator=generator)[:images]].double().mean())
        plain = diagnose_fit(errors.train, few, tolerance=TOLERANCE)
        sized = diagnose_fit(errors.train, few, n_train=setup.samples, n_dev=images, tolerance=TOLERANCE)
        found["a"][plain.variance.level] += 1 / 400
        found["b"][sized.variance.level] += 1 / 400
    return Calls(truth, images, found["a"], found["b"])


def measure(config: BiasVarianceConfig, tick: Callable[[str], None]) -> Results:
    """All four parts."""
    quick = config.quick
    results = Results(judged=not quick)
    results.verdicts = {k: diagnose_fit(k[0], k[1], base_error=k[2]).verdict for k in NOTES}
    numbers = range(config.seed, config.seed + (1 if quick else 3))
    pools = {seed: Pool.load(seed, config.dev, config.device) for seed in numbers}
    trained = Setup(momentum=0.9, steps=30 if quick else 400)
    for units in (1, 32) if quick else (1, 2, 4, 8, 16, 32, 64, 128):
        setup = replace(trained, units=units, samples=300)
        results.sizes[units] = [train(setup, pools[seed], seed)[1] for seed in numbers]
        tick(f"{units} units")
    for samples in (50, 300) if quick else (50, 100, 200, 400, 700, 1000):
        setup = replace(trained, units=64, samples=samples)
        results.data[samples] = [train(setup, pools[seed], seed)[1] for seed in numbers]
        tick(f"{samples} digits")
    results.recipe = follow_recipe(pools[config.seed], config.seed, 3 if quick else 9)
    tick("the recipe")
    setup = replace(trained, units=64, samples=200)
    results.calls = judge_by_few(setup, pools[config.seed], config.seed, 50)
    tick("few dev images")
    return results


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


def write_logs(results: Results, logs: VariantLogs) -> None:
    """Errors over size and data, the recipe, and the pictures."""
    for found, group in (
        (results.sizes, "1 Errors over hidden units (horizontal)"),
        (results.data, "2 Errors over training digits (horizontal)"),
    ):
        for at, fits in found.items():
            for variant, value in zip(("train", "dev"), means(fits), strict=True):
                logs[variant].add_scalar(f"{group}/error", value, at)
    for k, step in enumerate(results.recipe):
        for variant, value in (("train", step.errors.train), ("dev", step.errors.dev)):
            logs[variant].add_scalar("3 The recipe, step by step/error", value, k)
        logs["overview"].add_text("3 The recipe, step by step", f"**{step.done}**\n\n```\n{step.diagnosis}\n```", k)
    save_figure(
        logs["overview"], "4 Pictures/Errors over size and data", curves_figure(results), logs.folder / "curves.png",
        "Training error is bias, what dev error adds to it is variance. Bigger nets lower the first, more data the "
        "second; bands span the splits.",
    )  # fmt: skip
    save_figure(
        logs["overview"], "4 Pictures/The recipe", recipe_figure(results), logs.folder / "recipe.png",
        "Each step is the next remedy against whatever the diagnosis calls high or unclear, bias first.",
    )  # fmt: skip


def main(config: BiasVarianceConfig, console: Console | None = None) -> Results:
    """Run the experiment, write its logs, print its tables and their reading."""
    console = terminal(console)
    with one_thread(), VariantLogs(config.log_dir / NAME) as logs:
        with progress(console, 6 if config.quick else 16) as tick:
            results = measure(config, tick)
        results.reading = claims(results)
        write_logs(results, logs)
        write_summary(logs, results.reading, tables(results))
    finish(NAME, config, console, logs, results.reading, tables(results))
    return results


if __name__ == "__main__":
    command_line(BiasVarianceConfig, main, NAME)
