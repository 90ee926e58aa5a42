"""The command line: ``python -m experiments.shallow_and_deep``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from experiments.console import command_line
from experiments.logs import VariantLogs, save_figure
from experiments.report import run_experiment
from experiments.shallow_and_deep import measuring, reading
from experiments.shallow_and_deep.measuring import NAME, Results, ShallowAndDeepConfig

if TYPE_CHECKING:
    from rich.console import Console


def write_logs(results: Results, logs: VariantLogs) -> None:
    """Errors by hidden units, curves of the race, and the pictures."""
    for units, nets in results.shallow.items():
        for name in ("train_error", "test_error"):
            mean = sum(getattr(net, name) for net in nets) / len(nets)
            tag = f"1 Planar flower, one hidden layer (horizontal: units)/{name.replace('_', ' ')}"
            logs["one_hidden_layer"].add_scalar(tag, mean, units)
    for (problem, activation), lap in results.race.items():
        for step in range(0, len(lap.costs), max(1, len(lap.costs) // 200)):
            logs[activation].add_scalar(f"2 J at the best rate/{problem}", lap.costs[step], step)
    overview, folder, group = logs["overview"], logs.folder, "3 Pictures"
    save_figure(
        overview, f"{group}/What each net makes of the flower", reading.regions_figure(results), folder / "regions.png",
        "Training points of the planar flower, and how each net divides the plane. Without a hidden layer, and with "
        "any number of linear ones, the boundary is a straight line.",
    )  # fmt: skip
    save_figure(
        overview, f"{group}/Error against hidden units", reading.units_figure(results), folder / "units.png",
        "Error on the training points and on fresh ones, mean and range over seeds, with one hidden layer of tanh "
        "units; dotted: logistic regression.",
    )  # fmt: skip
    save_figure(
        overview, f"{group}/Four activations in a race", reading.race_figure(results), folder / "activations.png",
        "Steps of gradient descent until the same cost is reached, median over seeds, each activation at its own best "
        "rate. Hatched bars did not arrive.",
    )  # fmt: skip


def main(config: ShallowAndDeepConfig, console: Console | None = None) -> Results:
    """Run the experiment, write its logs, print its tables and their reading."""
    return run_experiment(
        NAME, config, console, measuring.pieces(config), measuring.measure, reading.claims, reading.tables, write_logs
    )


if __name__ == "__main__":
    command_line(ShallowAndDeepConfig, main, NAME)
