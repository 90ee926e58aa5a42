"""Regularisation: none, L2, L1, more images, early stopping and dropout compared on few digits.

    python -m experiments.regularization

1. A net far too large for 150 digits, trained with each remedy, once on right labels and once with a fifth of the
   training labels wrong, so that fitting them all is a fault. The strength of each remedy is chosen on dev images, the
   result judged on test images: errors, the norm of the weights, and how many of them are next to nothing.
2. J with and without the penalty's term: which of the two must fall at every step.
3. Early stopping: where the dev cost is least, and the weights kept.

Source: the notes, "regularisation" and "other regularisation methods"; SPEC A14, E4, F8, F9, E6.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from experiments.config import CommonConfig
from experiments.console import Claim, Table, command_line, progress
from experiments.datasets import Sets, split
from experiments.descent import descend
from experiments.digits import CLASSES
from experiments.figures import blank_figure
from experiments.logs import VariantLogs, save_figure
from experiments.nets import error_rate
from experiments.report import finish, terminal, write_summary
from experiments.threads import one_thread
from torchnotes import nn
from torchnotes.data import augment
from torchnotes.init import initialize_
from torchnotes.optim import Momentum
from torchnotes.regularization import Penalty
from torchnotes.training import EarlyStopping, MonotonicReport, check_monotonic, evaluate, predict

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console

NAME = "regularization"
SIZES = (64, 100, 50, CLASSES)
RATE, MOMENTUM, EVERY = 0.1, 0.9, 10  # dev cost every so many steps
NONE, L2, L1, IMAGES, STOP, DROP = "none", "L2", "L1", "augmentation", "early stopping", "dropout"
STRENGTHS: dict[str, tuple[float, ...]] = {  # λ, λ, pixels of shift and degrees / 10, patience, keep_prob
    NONE: (0.0,),
    L2: (3.0, 10.0),
    L1: (0.3, 1.0),
    IMAGES: (1.0,),
    STOP: (5.0,),
    DROP: (0.5, 0.8),
}
SMALL = 0.01  # of the largest weight of its layer: next to nothing


@dataclass(frozen=True)
class RegularizationConfig(CommonConfig):
    """Regularisation: none, L2, L1, more images, early stopping and dropout compared on few digits."""

    few: int = 150
    """Training digits."""
    wrong: float = 0.2
    """Share of training labels made wrong in the second half."""

    def __post_init__(self) -> None:
        """Refuse a share that is none."""
        super().__post_init__()
        if not 0 <= self.wrong < 1:
            raise ValueError(f"wrong must be a share of the labels, in [0, 1), got {self.wrong}; 0.2 is a fifth.")


@dataclass(frozen=True)
class Trained:
    """One run.

    Attributes:
        train: error on the training digits, by the labels it was given.
        dev: on dev images.
        test: on test images.
        norm: Σ ‖W‖².
        sparse: share of weights below a hundredth of their layer's largest.
        dev_costs: every ten steps.
        stopped: the step whose weights were kept.
    """

    train: float
    dev: float
    test: float
    norm: float
    sparse: float
    dev_costs: tuple[float, ...]
    stopped: int


@dataclass
class Results:
    """What the experiment found; for every remedy the runs at the strength that does best on dev images.

    Attributes:
        clean: with right labels.
        runs: with some of the training labels wrong.
    """

    strengths: dict[tuple[str, str], float] = field(default_factory=dict)
    clean: dict[str, list[Trained]] = field(default_factory=dict)
    runs: dict[str, list[Trained]] = field(default_factory=dict)
    wrong: float = 0.2
    with_penalty: list[float] = field(default_factory=list)
    without_penalty: list[float] = field(default_factory=list)
    pictures: Tensor | None = None
    judged: bool = True
    reading: list[Claim] = field(default_factory=list)


def few_digits(config: RegularizationConfig, seed: int) -> Sets:
    """A few digits to train on, 400 for dev, the rest for test; pixels in 0…1, so that images can be augmented."""
    from sklearn import datasets

    bunch = datasets.load_digits()
    x, y = torch.from_numpy(bunch.data).float() / 16, torch.from_numpy(bunch.target)
    m = len(x)
    sets = split(x, y, seed=seed, fractions=(config.few / m, 400 / m, 1 - (config.few + 400) / m))
    return sets.to(config.device)


def spoil(sets: Sets, share: float, seed: int) -> Sets:
    """Give a share of the training digits another label; dev and test set stay right."""
    generator, y = torch.Generator().manual_seed(seed), sets.y_train.cpu()
    chosen = torch.randperm(len(y), generator=generator)[: round(share * len(y))]
    other = torch.randint(1, CLASSES, (len(chosen),), generator=generator)
    spoilt = y.clone()
    spoilt[chosen] = (y[chosen] + other) % CLASSES
    return replace(sets, y_train=spoilt.to(sets.y_train.device))


def more_images(x: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Each image turned, cropped and distorted a little; digits are not flipped."""
    images = x.view(-1, 1, 8, 8)
    return augment(
        images, flip=0.0, crop=0.15 * strength, rotation=10 * strength, distortion=0.03 * strength, generator=generator
    ).flatten(1)


def small_share(net: torch.nn.Module) -> float:
    """The share of weights that are below a hundredth of their layer's largest."""
    weights = [w.detach().abs() for w in Penalty.weights(net).values()]
    small = sum(int((w < SMALL * w.max()).sum()) for w in weights)
    return small / sum(w.numel() for w in weights)


def train(remedy: str, strength: float, sets: Sets, steps: int, seed: int) -> Trained:
    """Full-batch momentum with one remedy."""
    device = sets.x_train.device
    masks = torch.Generator(device).manual_seed(seed)
    net = nn.MLP(SIZES, "relu", strength if remedy == DROP else 1.0, generator=masks)
    initialize_(net, generator=torch.Generator().manual_seed(seed))
    net.to(device)
    loss, optimizer = nn.CrossEntropyLoss(), Momentum(net.parameters(), lr=RATE, momentum=MOMENTUM)
    penalties: dict[str, Literal["l1", "l2"]] = {L1: "l1", L2: "l2"}
    kind = penalties.get(remedy)
    penalty = Penalty(kind, lambd=strength, m=len(sets.x_train)) if kind else None
    stopping = EarlyStopping(patience=int(strength)) if remedy == STOP else None
    dev_costs: list[float] = []
    x, y, done = sets.x_train, sets.y_train, 0
    while done < steps:
        for _ in range(EVERY):
            inputs = more_images(x, strength, masks) if remedy == IMAGES else x
            descend(net, inputs, y, loss=loss, steps=1, optimizer=optimizer, penalty=penalty)
        done += EVERY
        dev_costs.append(evaluate(net, sets.x_dev, sets.y_dev, loss=loss)["loss"])
        if stopping is not None and stopping.update(dev_costs[-1], net):
            break
    if stopping is not None:
        stopping.restore(net)
        done = EVERY * stopping.best_epoch
    errors = [
        float(error_rate(predict(net, a), b)) for a, b in ((x, y), (sets.x_dev, sets.y_dev), (sets.x_test, sets.y_test))
    ]
    norm = float(Penalty("l2", lambd=2.0, m=1)(net).detach())
    return Trained(errors[0], errors[1], errors[2], norm, small_share(net), tuple(dev_costs), done)


def watch_cost(sets: Sets, steps: int, seed: int) -> tuple[list[float], list[float]]:
    """J with and without the L2 term along gradient descent on J with it, from weights that are too large."""
    net = nn.MLP(SIZES, "relu")
    initialize_(net, gain=1.5, generator=torch.Generator().manual_seed(seed))
    net.to(sets.x_train.device)
    loss, penalty = nn.CrossEntropyLoss(), Penalty("l2", lambd=10.0, m=len(sets.x_train))
    plain: list[float] = []

    def note(step: int) -> None:
        with torch.no_grad():
            plain.append(float(loss(net(sets.x_train), sets.y_train)))

    whole = descend(net, sets.x_train, sets.y_train, loss=loss, rate=0.1, steps=steps, penalty=penalty, each=note)
    return whole, plain


def measure(config: RegularizationConfig, tick: Callable[[str], None]) -> Results:
    """All three parts."""
    seeds, steps = (1, 20) if config.quick else (4, 500)
    results = Results(judged=not config.quick, wrong=config.wrong)
    numbers = range(config.seed, config.seed + seeds)
    sets = {seed: few_digits(config, seed) for seed in numbers}
    spoilt = {seed: spoil(sets[seed], config.wrong, seed) for seed in numbers}
    for name, runs, data in (("right", results.clean, sets), ("wrong", results.runs, spoilt)):
        for remedy, strengths in STRENGTHS.items():
            tried = strengths[:1] if config.quick else strengths
            found = {strength: [train(remedy, strength, data[n], steps, n) for n in numbers] for strength in tried}
            best = min(found, key=lambda strength: statistics.fmean(run.dev for run in found[strength]))
            results.strengths[name, remedy], runs[remedy] = best, found[best]
            tick(f"{remedy}, {name} labels")
    first = sets[config.seed]
    results.with_penalty, results.without_penalty = watch_cost(first, 20 if config.quick else 600, config.seed)
    generator = torch.Generator(config.device).manual_seed(config.seed)
    rows = [first.x_train[:8]] + [more_images(first.x_train[:8], 1.0, generator) for _ in range(3)]
    results.pictures = torch.stack(rows).view(4, 8, 8, 8).cpu()
    tick("J with and without the penalty")
    return results


Runs = dict[str, list[Trained]]


def mean(runs: Runs, remedy: str, name: str) -> float:
    """Mean of one figure over the seeds."""
    return statistics.fmean(getattr(run, name) for run in runs[remedy])


def gain(runs: Runs, remedy: str) -> tuple[float, float]:
    """By how much a remedy errs less on test images than none: mean over the seeds, and its standard error."""
    gains = [plain.test - run.test for plain, run in zip(runs[NONE], runs[remedy], strict=True)]
    return statistics.fmean(gains), statistics.stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else math.inf


def points(runs: Runs, remedy: str) -> str:
    """The gain in words."""
    better, chance = gain(runs, remedy)
    return f"{100 * better:.1f}" + (f" ± {100 * chance:.1f}" if math.isfinite(chance) else "")


def claims(results: Results) -> list[Claim]:
    """The notes' statements, each judged by what this run measured."""
    short = "" if results.judged else " A quick run is too short to tell."
    reports = check_monotonic(results.with_penalty), check_monotonic(results.without_penalty)
    return [
        *_remedies(results, short),
        *_weights(results, short),
        _monotonic(*reports, results.judged),
        _stopping(results, short),
    ]


def _remedies(results: Results, short: str) -> list[Claim]:
    runs, clean = results.runs, results.clean
    texts = {
        L2: "L2 regularisation reduces overfitting.",
        L1: "L1 regularisation reduces overfitting.",
        IMAGES: "More images, made by turning, cropping and distorting, reduce overfitting.",
        STOP: "Early stopping reduces overfitting.",
        DROP: "Dropout reduces overfitting.",
    }
    found = [
        Claim(
            text,
            gain(runs, remedy)[0] > 2 * gain(runs, remedy)[1] if results.judged else None,
            f"With {results.wrong:.0%} of the training labels wrong, test error {mean(runs, remedy, 'test'):.1%} "
            "instead "
            f"of {mean(runs, NONE, 'test'):.1%}: {points(runs, remedy)} points less.{short}",
        )
        for remedy, text in texts.items()
    ]
    helps = [remedy for remedy in texts if gain(clean, remedy)[0] > 2 * gain(clean, remedy)[1]]
    listed = ", ".join(f"{remedy} {points(clean, remedy)}" for remedy in texts)
    found.append(
        Claim(
            "With right labels each of them does, too.",
            len(helps) == len(texts) if results.judged else None,
            f"Without a remedy the net errs on {mean(clean, NONE, 'train'):.1%} of the training digits and "
            f"{mean(clean, NONE, 'test'):.1%} of the test images. Points less with each remedy: {listed}.{short}",
        )
    )
    return found


def _weights(results: Results, short: str) -> list[Claim]:
    norms = {remedy: mean(results.runs, remedy, "norm") for remedy in results.runs}
    sparse = {remedy: mean(results.runs, remedy, "sparse") for remedy in results.runs}
    most = max(sparse, key=sparse.__getitem__)
    return [
        Claim(
            "L2 makes the weights small, and early stopping keeps them small, to a similar end.",
            norms[L2] < norms[NONE] and norms[STOP] < norms[NONE] if results.judged else None,
            "Σ‖W‖²: " + ", ".join(f"{norm:.0f} with {remedy}" for remedy, norm in norms.items()) + f".{short}",
        ),
        Claim(
            "L1 makes the weights sparse.",
            most == L1 and sparse[L1] > 2 * sparse[NONE] if results.judged else None,
            "Weights below a hundredth of their layer's largest: "
            + ", ".join(f"{share:.1%} with {remedy}" for remedy, share in sparse.items())
            + f".{short}",
        ),
    ]


def _monotonic(whole: MonotonicReport, plain: MonotonicReport, judged: bool) -> Claim:
    return Claim(
        "With L2 the J to watch is the one with the penalty: it falls at every step, the other does not.",
        whole.monotonic and not plain.monotonic if judged else None,
        f"With its term J rises {len(whole.rises)} times, without it {len(plain.rises)} times.",
    )


def _stopping(results: Results, short: str) -> Claim:
    costs = [run.dev_costs for run in results.runs[NONE]]
    turned = [min(c) < c[-1] for c in costs]
    at = statistics.fmean(EVERY * (c.index(min(c)) + 1) for c in costs)
    rise = statistics.fmean(c[-1] / min(c) for c in costs)
    return Claim(
        "When a net overfits, its dev cost first falls and then rises.",
        all(turned) and rise > 1.01 if results.judged else None,
        f"Without a remedy it is least after {at:.0f} steps on average and ends {rise:.2f} times as high; early "
        f"stopping kept the weights of step {mean(results.runs, STOP, 'stopped'):.0f}.{short}",
    )


def tables(results: Results) -> list[Table]:
    """One row a remedy, for right labels and for wrong ones."""
    seeds = len(results.runs[NONE])
    found = []
    for name, title, runs in (
        ("wrong", f"A net of 64-100-50-10 on few digits, {results.wrong:.0%} of the labels wrong", results.runs),
        ("right", "The same with right labels", results.clean),
    ):
        table = Table(
            title,
            ("remedy", "strength", "train error", "dev error", "test error", "Σ‖W‖²", "small weights"),
            f"Means over {seeds} split{'s' * (seeds > 1)}; the strength (λ, amount of distortion, patience, keep_prob) "
            "is the best on dev images. Small: below a hundredth of their layer's largest.",
        )
        for remedy in runs:
            errors = [f"{mean(runs, remedy, key):.1%}" for key in ("train", "dev", "test")]
            strength = "" if remedy == NONE else f"{results.strengths[name, remedy]:g}"
            norm, sparse = f"{mean(runs, remedy, 'norm'):.0f}", f"{mean(runs, remedy, 'sparse'):.1%}"
            table.rows.append((remedy, strength, *errors, norm, sparse))
        found.append(table)
    return found


def errors_figure(results: Results) -> Figure:
    """Train, dev and test error for every remedy; every split is a dot."""
    figure = blank_figure(2, 1, panel=(8, 3))
    titles = (f"{results.wrong:.0%} of the training labels wrong", "right labels")
    for axis, runs_of, title in zip(figure.axes, (results.runs, results.clean), titles, strict=True):
        for k, (name, color) in enumerate((("train", "tab:blue"), ("dev", "tab:orange"), ("test", "tab:red"))):
            for place, (remedy, runs) in enumerate(runs_of.items()):
                at = place + 0.25 * (k - 1)
                label = f"{name} error" if place == 0 else None
                axis.bar(at, 100 * mean(runs_of, remedy, name), 0.22, color=color, label=label)
                axis.plot([at] * len(runs), [100 * getattr(run, name) for run in runs], ".", color="black", ms=4)
        axis.set_xticks(range(len(runs_of)), list(runs_of))
        axis.set_ylim(0, axis.get_ylim()[1] * 1.25)
        axis.set(ylabel="wrong (%)")
        axis.set_title(f"Errors with each remedy, {title} (dots: single splits)", loc="left", fontsize=11)
    figure.axes[0].legend(ncols=3, loc="upper right")
    return figure


def cost_figure(results: Results) -> Figure:
    """Dev cost over training for every remedy; J with and without the penalty."""
    figure = blank_figure(1, 2, panel=(5.2, 4))
    left, right = figure.axes
    for remedy, runs in results.runs.items():
        costs = runs[0].dev_costs
        left.plot([EVERY * (k + 1) for k in range(len(costs))], costs, label=remedy)
    left.set(xlabel="step", ylabel="cross-entropy on dev images", xscale="log", yscale="log")
    left.set_title("Dev cost, some labels wrong, first split", loc="left", fontsize=11)
    left.legend(fontsize=8, loc="upper right")
    steps = range(1, len(results.with_penalty) + 1)
    right.loglog(steps, results.with_penalty, label="J with the L2 term")
    right.loglog(steps, results.without_penalty, label="J without it")
    right.set(xlabel="step", ylabel="J")
    right.set_title("Gradient descent on J with the term", loc="left", fontsize=11)
    right.legend(fontsize=9)
    for axis in figure.axes:
        axis.grid(alpha=0.3)
    return figure


def pictures_figure(results: Results) -> Figure:
    """Digits as they are, and augmented."""
    assert results.pictures is not None
    figure = blank_figure(4, 8, panel=(0.9, 0.9))
    for axis, image in zip(figure.axes, results.pictures.flatten(0, 1), strict=True):
        axis.imshow(image.numpy(), cmap="gray_r", vmin=0, vmax=1)
        axis.set_xticks([])
        axis.set_yticks([])
    for row, label in enumerate(("as it is", "augmented", "again", "again")):
        figure.axes[8 * row].set_ylabel(label, fontsize=8)
    return figure


def write_logs(results: Results, logs: VariantLogs) -> None:
    """Dev costs, J, and the pictures."""
    for remedy, runs in results.runs.items():
        for k, cost in enumerate(runs[0].dev_costs):
            logs[remedy.replace(" ", "_")].add_scalar(
                "1 Training on few digits, some labels wrong/dev cost", cost, EVERY * (k + 1)
            )
    for variant, costs in (("J_with_penalty", results.with_penalty), ("J_without_penalty", results.without_penalty)):
        for step in range(0, len(costs), 5):
            logs[variant].add_scalar("2 Gradient descent on J with the L2 term/J", costs[step], step)
    overview, folder, group = logs["overview"], logs.folder, "3 Pictures"
    save_figure(
        overview, f"{group}/Errors with each remedy", errors_figure(results), folder / "errors.png",
        "Errors of the same net with no remedy and with each at its best strength. Above, some of the labels it is "
        "trained on are wrong, and fitting them does harm; below, all are right.",
    )  # fmt: skip
    save_figure(
        overview, f"{group}/Costs while training", cost_figure(results), folder / "costs.png",
        "Left: the dev cost of an overfitting net falls and rises again; early stopping ends where it is least. Right: "
        "the penalty is part of J, and only J with it must fall at every step.",
    )  # fmt: skip
    save_figure(
        overview, f"{group}/Digits, augmented", pictures_figure(results), folder / "augmented.png",
        "Training digits, and three augmented versions of each: turned, cropped and distorted, never flipped.",
    )  # fmt: skip


def main(config: RegularizationConfig, console: Console | None = None) -> Results:
    """Run the experiment, write its logs, print its tables and their reading."""
    console = terminal(console)
    with one_thread(), VariantLogs(config.log_dir / NAME) as logs:
        with progress(console, 2 * len(STRENGTHS) + 1) as tick:
            results = measure(config, tick)
        results.reading = claims(results)
        write_logs(results, logs)
        write_summary(logs, results.reading, tables(results))
    finish(NAME, config, console, logs, results.reading, tables(results))
    return results


if __name__ == "__main__":
    command_line(RegularizationConfig, main, NAME)
