"""The command line: ``python -m experiments.bias_variance``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from experiments.bias_variance.measuring import NAME, BiasVarianceConfig, Results, measure
from experiments.bias_variance.reading import claims, curves_figure, means, recipe_figure, tables
from experiments.console import command_line
from experiments.logs import VariantLogs, save_figure
from experiments.report import run_experiment

if TYPE_CHECKING:
    from rich.console import Console


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
    return run_experiment(NAME, config, console, 6 if config.quick else 16, measure, claims, tables, write_logs)


if __name__ == "__main__":
    command_line(BiasVarianceConfig, main, NAME)
