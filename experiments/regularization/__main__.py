"""The command line: ``python -m experiments.regularization``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from experiments.console import command_line
from experiments.logs import VariantLogs, save_figure
from experiments.regularization.measuring import EVERY, NAME, STRENGTHS, RegularizationConfig, Results, measure
from experiments.regularization.reading import claims, cost_figure, errors_figure, pictures_figure, tables
from experiments.report import run_experiment

if TYPE_CHECKING:
    from rich.console import Console


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
    return run_experiment(NAME, config, console, 2 * len(STRENGTHS) + 1, measure, claims, tables, write_logs)


if __name__ == "__main__":
    command_line(RegularizationConfig, main, NAME)
