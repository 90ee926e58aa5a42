"""The command line: ``python -m experiments.vanishing_exploding``."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch

from experiments.console import Claim, command_line, markdown_reading, print_reading, progress, record
from experiments.digits import load_digits
from experiments.figures import growth_heat_map
from experiments.logs import VariantLogs, add_hparams, how_to_open, save_figure
from experiments.threads import one_thread
from experiments.vanishing_exploding import linear_nets, random_nets, reading, tags, training
from experiments.vanishing_exploding.settings import ACTIVATIONS, INITS, NAME, Config, Growth, Size

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Results:
    """All numbers of a run, and what they mean."""

    linear: tuple[Growth, ...]
    nets: tuple[Growth, ...]
    trainings: tuple[training.Training, ...]
    claims: tuple[Claim, ...]


def main(config: Config, console: Console) -> Results:
    """Run the three parts; print the table, its reading and how to see the curves."""
    size, device = Size.of(config), torch.device(config.device)
    folder = config.log_dir / NAME
    digits = load_digits(seed=config.seed, device=device)
    pieces = len(linear_nets.FACTORS) + len(INITS) * (len(ACTIVATIONS) + len(size.rates) * size.epochs)
    with one_thread(), VariantLogs(folder) as logs, progress(console, pieces) as step:
        linear = linear_nets.measure(size, device, logs, step)
        nets = random_nets.measure(size, config.seed, digits, logs, step)
        trainings = training.run(size, config.seed, digits, logs, step)
        claims = reading.claims(size, linear, nets, trainings)
        table = reading.table(size, linear, nets, trainings)
        summary = f"{table.title}\n\n{table.markdown()}\n\n{markdown_reading(claims)}\n"
        logs["summary"].add_text("0 What was measured and what it means", summary)
        _write_summary(logs, nets, trainings)
    results = Results(tuple(linear), tuple(nets), tuple(trainings), tuple(claims))
    (folder / "report.md").write_text(summary, encoding="utf-8")
    (folder / "results.json").write_text(json.dumps(asdict(results), indent=1), encoding="utf-8")
    table.print(console)
    print_reading(console, claims)
    record(NAME, config, claims, [table])
    console.print(f"\nTo see the curves: {how_to_open(folder)}", soft_wrap=True, highlight=False)
    return results


def _write_summary(logs: VariantLogs, nets: list[Growth], trainings: list[training.Training]) -> None:
    """The heat map, and one row an init in the HParams table."""
    title = "Growth of the signal's rms per layer, before training"
    rows = [f"{init.scheme}\n{init.variance}" for init in INITS]
    panels = {
        "activations, first layer to last": reading.heat_map(nets, "forward"),
        "gradients, last layer to first": reading.heat_map(nets, "backward"),
    }
    figure = growth_heat_map(title, rows, list(ACTIVATIONS.values()), panels)
    caption = (
        "By what factor one layer changes the signal, for each init and activation: blue vanishes, white is kept, red "
        "explodes. Only variance 2/n keeps a ReLU net's signal, and no init of these keeps a sigmoid net's gradient."
    )
    path = logs.folder / "growth_per_layer.png"
    save_figure(logs["summary"], f"{tags.FIGURES}/init × activation", figure, path, caption)
    for init in INITS:
        relu = next(net for net in nets if (net.net, net.weights) == ("ReLU", init.variance))
        top = reading.best(trainings, init.variance)
        metrics = {
            "growth per ReLU layer, forward": relu.forward,
            "growth per ReLU layer, backward": relu.backward,
            "best accuracy on dev images": top.last.dev_accuracy,
        }
        add_hparams(
            logs[init.variant],
            {"init": init.scheme, "variance of a weight": init.variance, "best rate": top.rate},
            metrics,
            group=tags.HPARAMS,
        )


if __name__ == "__main__":
    command_line(Config, main, NAME)
