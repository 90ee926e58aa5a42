"""The command line: ``python -m experiments.optimizers``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from experiments.console import command_line
from experiments.logs import VariantLogs, save_figure
from experiments.optimizers.figures import bowl_figure, digits_figure, heights, leaving_figure, minima_figure
from experiments.optimizers.measuring import NAME, NETS, OptimizersConfig, Results, measure
from experiments.optimizers.reading import claims, tables
from experiments.report import run_experiment

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console

BOWL = "1 Height on the bowl, log10, each rule at its best rate (horizontal: step)"
DIGITS = "2 Training cost on the digits, each rule at its best rate (horizontal: epoch)"
FIGURES = "3 The same in pictures"
PICTURES: tuple[tuple[str, Callable[[Results], Figure], str, str], ...] = (
    ("Ways down a long bowl", bowl_figure, "bowl.png",
     "Four rules on a bowl 50 times as steep across as along, from the same start, each at the rate at which it is "
     "settled soonest. A dot is a step; the star is the minimum."),
    ("Who leaves a plateau and a saddle", leaving_figure, "leaving.png",
     "Position after every step, at the same rate for all. Where the slope is tiny, gradient descent and momentum take "
     "tiny steps; RMSprop and Adam divide by its size, and step by about the rate."),
    ("How rare minima are", minima_figure, "minima.png",
     "Left: how seldom a random symmetric matrix has no direction that leads down, by dimension. Right: of the points "
     "found at which the gradient of a small net's cost vanishes, how many are saddles."),
    ("The four rules on the digits", digits_figure, "digits.png",
     "Training cost of a ReLU net with two hidden layers, each rule at the best of three learning rates."),
)  # fmt: skip


def write_logs(results: Results, logs: VariantLogs) -> None:
    """One run a rule, and the pictures."""
    for name, path in results.paths.items():
        for step, height in enumerate(heights(path)):
            logs[name.replace(" ", "_")].add_scalar(f"{BOWL}/log10 of the height", height, step)
    for name, training in results.digits.items():
        for epoch, cost in enumerate(training.costs, start=1):
            logs[name.replace(" ", "_")].add_scalar(f"{DIGITS}/training cost", cost, epoch)
    for title, draw, file, caption in PICTURES:
        save_figure(logs["overview"], f"{FIGURES}/{title}", draw(results), logs.folder / file, caption)


def main(config: OptimizersConfig, console: Console | None = None) -> Results:
    """Run the experiment, write its logs, print its tables and their reading."""
    pieces = 5 + 5 + 1 + (1 if config.quick else len(NETS)) + 5
    return run_experiment(NAME, config, console, pieces, measure, claims, tables, write_logs)


if __name__ == "__main__":
    command_line(OptimizersConfig, main, NAME)
