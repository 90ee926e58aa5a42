"""The command line: ``python -m experiments.batch_norm``."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from experiments.batch_norm.measuring import DEPTHS, NAME, BatchNormConfig, Results, measure
from experiments.batch_norm.reading import WORDS, claims, costs_figure, noise_figure, shift_figure, tables
from experiments.console import command_line
from experiments.logs import VariantLogs, save_figure
from experiments.report import run_experiment

if TYPE_CHECKING:
    from rich.console import Console

COSTS = "1 Training cost against the learning rate (horizontal: 30 + 10·log10 of the rate)"
SHIFTS = "2 Shift of a hidden layer's values while the net learns (horizontal: step)"
FIGURES = "3 The same in pictures"


def write_logs(results: Results, logs: VariantLogs) -> None:
    """One run with it and one without, and the pictures."""
    for (normed, depth, rate), cost in results.costs.items():
        if math.isfinite(cost):
            step = round(30 + 10 * math.log10(rate))
            logs[f"{WORDS[normed]}_batch_norm"].add_scalar(f"{COSTS}/{depth:02} hidden layers", cost, step)
    for normed, shifts in results.shifts.items():
        for step, (moved, widened) in enumerate(shifts):
            writer = logs[f"{WORDS[normed]}_batch_norm"]
            writer.add_scalar(f"{SHIFTS}/1 mean, in standard deviations", moved, step)
            writer.add_scalar(f"{SHIFTS}/2 log of the standard deviation", widened, step)
    save_figure(
        logs["overview"], f"{FIGURES}/Training cost by learning rate and depth", costs_figure(results),
        logs.folder / "rates.png",
        "Nets trained for the same few epochs at each learning rate, with batch normalisation and without. What to "
        "compare is how far up and down the rates reach at which a net learns.",
    )  # fmt: skip
    save_figure(
        logs["overview"], f"{FIGURES}/Shift of a hidden layer", shift_figure(results), logs.folder / "shift.png",
        "How far the mean and the spread of the third hidden layer's values move from where they started, over the "
        "same images, while all layers learn.",
    )  # fmt: skip
    save_figure(
        logs["overview"], f"{FIGURES}/Noise from the rest of the batch", noise_figure(results),
        logs.folder / "noise.png",
        "The same sample normalised together with random others: the standard deviation of what comes out, by the size "
        "of the batch.",
    )  # fmt: skip


def main(config: BatchNormConfig, console: Console | None = None) -> Results:
    """Run the experiment, write its logs, print its tables and their reading."""
    pieces = 1 + 2 * (len(DEPTHS) + 1) + 2 + 5 + 1
    return run_experiment(NAME, config, console, pieces, measure, claims, tables, write_logs)


if __name__ == "__main__":
    command_line(BatchNormConfig, main, NAME)
