"""The command line: ``python -m experiments.init_symmetry``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from experiments.console import command_line
from experiments.init_symmetry.measuring import (
    GAINS,
    NAME,
    SCHEMES,
    STARTS,
    VARIANTS,
    InitSymmetryConfig,
    Results,
    measure,
)
from experiments.init_symmetry.reading import claims, gain_figure, symmetry_figure, tables
from experiments.logs import VariantLogs, save_figure
from experiments.report import run_experiment

if TYPE_CHECKING:
    from rich.console import Console


def write_logs(results: Results, logs: VariantLogs) -> None:
    """Curves of part 1, and the pictures."""
    group = "1 One hidden layer on the digits"
    for name, start in results.starts.items():
        writer = logs[VARIANTS[name]]
        for step, (distance, cost) in enumerate(zip(start.distances, start.costs, strict=True)):
            if step % 5 == 0:
                writer.add_scalar(f"{group}/distance between hidden units", distance, step)
                writer.add_scalar(f"{group}/J", cost, step)
    overview = logs["overview"]
    save_figure(
        overview, "2 Pictures/Symmetry and its breaking", symmetry_figure(results), logs.folder / "symmetry.png",
        "From zeros or a constant the hidden units are copies of one another, and the net learns what one unit can, "
        "until round-off has grown large enough to part them. Random weights part them from the start.",
    )  # fmt: skip
    save_figure(
        overview, "2 Pictures/How much the gain matters", gain_figure(results), logs.folder / "gain.png",
        "J after the same number of steps when the scale of the initial weights, or the learning rate, is multiplied "
        "by a factor. A point that is missing has diverged.",
    )  # fmt: skip


def main(config: InitSymmetryConfig, console: Console | None = None) -> Results:
    """Run the experiment, write its logs, print its tables and their reading."""
    pieces = len(STARTS) + 1 + len(SCHEMES) + (1 if config.quick else len(GAINS))
    return run_experiment(NAME, config, console, pieces, measure, claims, tables, write_logs)


if __name__ == "__main__":
    command_line(InitSymmetryConfig, main, NAME)
