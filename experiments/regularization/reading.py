"""The tables of a run, its figures, and what they say in plain words."""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING

from experiments.console import Claim, Table
from experiments.figures import blank_figure
from experiments.regularization.measuring import DROP, EVERY, IMAGES, L1, L2, NONE, STOP, Results, Trained
from torchnotes.training import MonotonicReport, check_monotonic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
