"""The command line: ``python -m experiments.mini_batches``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from experiments.console import command_line
from experiments.logs import VariantLogs, save_figure
from experiments.mini_batches.measuring import NAME, MiniBatchesConfig, Results, images, measure, sizes
from experiments.mini_batches.reading import claims, noise_figure, paths_figure, race_figure, tables
from experiments.report import run_experiment

if TYPE_CHECKING:
    from rich.console import Console

EPOCHS = "1 The race to a training cost, by size (horizontal: hundredths of an epoch)"
STEPS = "2 Cost of each batch as it comes by, at one rate on a convex cost (horizontal: step)"
FIGURES = "3 The same in pictures"


def write_logs(results: Results, logs: VariantLogs) -> None:
    """One run a batch size, and the pictures."""
    for size, lap in results.race.items():
        writer = logs[f"batch_{size:04}"]
        for epochs, _, cost in lap.curve:
            writer.add_scalar(f"{EPOCHS}/cost over the training set", cost, round(100 * epochs))
        for step, cost in enumerate(results.costs.get(size, ())):
            writer.add_scalar(f"{STEPS}/cost of the batch", cost, step)
    overview = logs["overview"]
    save_figure(
        overview, f"{FIGURES}/Three ways down the same bowl", paths_figure(results), logs.folder / "paths.png",
        "Softmax regression on the digits, drawn in the plane of its minimum, the start and the direction in which "
        "single samples wander most. All samples walk straight down, one sample wanders; a mini-batch lies between.",
    )  # fmt: skip
    save_figure(
        overview, f"{FIGURES}/Cost per epoch and per second", race_figure(results), logs.folder / "race.png",
        "A ReLU net trained to the same cost with each batch size, each at the best rate of a grid. What a small batch "
        "gains in steps per epoch it loses in time per sample: a sample alone takes nearly as long as 64 together.",
    )  # fmt: skip
    save_figure(
        overview, f"{FIGURES}/Noise of a gradient by batch size", noise_figure(results), logs.folder / "noise.png",
        "Distance of a batch's gradient from the whole training set's. It falls like 1/√B, and reaches 0 when the "
        "batch is the whole set.",
    )  # fmt: skip


def main(config: MiniBatchesConfig, console: Console | None = None) -> Results:
    """Run the experiment, write its logs, print its tables and their reading."""
    pieces = 3 * len(sizes(len(images(config).x_train), config.quick)) + 6
    return run_experiment(NAME, config, console, pieces, measure, claims, tables, write_logs)


if __name__ == "__main__":
    command_line(MiniBatchesConfig, main, NAME)
