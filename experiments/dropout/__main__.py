"""The command line: ``python -m experiments.dropout``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from experiments.console import command_line
from experiments.dropout.measuring import KEEP_PROBS, NAME, DropoutConfig, Results, measure
from experiments.dropout.reading import claims, cost_figure, passes_figure, tables
from experiments.logs import VariantLogs, save_figure
from experiments.report import run_experiment

if TYPE_CHECKING:
    from rich.console import Console


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
    return run_experiment(NAME, config, console, 5 + len(KEEP_PROBS), measure, claims, tables, write_logs)


if __name__ == "__main__":
    command_line(DropoutConfig, main, NAME)
