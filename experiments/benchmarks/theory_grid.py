"""Expected growth per layer beside the measured one, over the nets that the theory covers.

    python -m experiments.benchmarks.theory_grid --json theory_grid.json --markdown theory_grid.md

Each row is one net: the growth per layer (geometric mean over the layers) that the theory computes from the net's own
weights, activations, dropout, normalisation and skip connections, beside what was measured in the same pass; and the
worst single layer, where the finite width shows.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from experiments.benchmarks.grid_nets import Residual, linear
from experiments.console import Table, progress
from experiments.threads import one_thread
from torchnotes.diagnostics import expect
from torchnotes.diagnostics.theory import Expectation


@dataclass(frozen=True)
class Config:
    """What to run."""

    widths: tuple[int, ...] = (1024, 2048)
    depth: int = 10
    batch: int = 512
    seed: int = 0
    json: Path | None = None
    markdown: Path | None = None


@dataclass(frozen=True)
class Row:
    """One net at one width; growth of the rms per layer."""

    net: str
    width: int
    forward: float
    measured_forward: float
    backward: float
    measured_backward: float
    chi: float
    depth_scale: float
    worst_layer: float

    @property
    def worst_mean(self) -> float:
        """Relative error of the mean growth, the worse direction."""
        return max(abs(self.forward / self.measured_forward - 1), abs(self.backward / self.measured_backward - 1))


Between = tuple[Callable[[int], nn.Module], ...]
NETS: dict[str, tuple[float, Between]] = {
    "linear, 1/n": (1.0, ()),
    "ReLU, 2/n": (2.0, (lambda w: nn.ReLU(),)),
    "ReLU, 1/n": (1.0, (lambda w: nn.ReLU(),)),
    "leaky ReLU 0.1, 2/n": (2.0, (lambda w: nn.LeakyReLU(0.1),)),
    "tanh, 1/n": (1.0, (lambda w: nn.Tanh(),)),
    "tanh, 2/n": (2.0, (lambda w: nn.Tanh(),)),
    "sigmoid, 1/n": (1.0, (lambda w: nn.Sigmoid(),)),
    "GELU, 2/n": (2.0, (lambda w: nn.GELU(),)),
    "SELU, 1/n": (1.0, (lambda w: nn.SELU(),)),
    "ReLU + dropout 0.3, 2/n": (2.0, (lambda w: nn.ReLU(), lambda w: nn.Dropout(0.3))),
    "batch norm + ReLU": (1.0, (nn.BatchNorm1d, lambda w: nn.ReLU())),
    "layer norm + ReLU": (1.0, (nn.LayerNorm, lambda w: nn.ReLU())),
}


def build(name: str, width: int, config: Config) -> nn.Module:
    """The net of a row."""
    generator = torch.Generator().manual_seed(config.seed)
    if name.startswith("residual"):
        blocks = [Residual(width, generator, 1.0, "pre-norm" in name) for _ in range(config.depth)]
        return nn.Sequential(*blocks)
    variance, between = NETS[name]
    modules: list[nn.Module] = []
    for index in range(config.depth):
        modules.append(linear(width, variance, generator))
        if index < config.depth - 1:
            modules += [make(width) for make in between]
    return nn.Sequential(*modules)


def measure(name: str, width: int, config: Config) -> Row:
    """Run one net. Of residual nets the blocks are the layers."""
    torch.manual_seed(config.seed)  # dropout masks
    x = torch.randn(config.batch, width, generator=torch.Generator().manual_seed(1))
    theory = expect(build(name, width, config), x)
    entries = list(theory.layers)
    if name.startswith("residual"):
        # The first block's input is the data, which receives no gradient.
        entries = [entry for entry in theory.modules if entry.kind == "Residual"][1:]
    backward = _mean([entry.backward for entry in entries])
    chi = backward**2
    return Row(
        name,
        width,
        _mean([entry.forward for entry in entries]),
        _mean([entry.measured_forward for entry in entries]),
        backward,
        _mean([entry.measured_backward for entry in entries]),
        chi,
        1 / abs(math.log(chi)),
        max(map(_worst, entries)),
    )


def _mean(factors: list[float | None]) -> float:
    known = [math.log(factor) for factor in factors if factor is not None]
    if len(known) < len(factors):
        raise RuntimeError("every layer of these nets must have an expectation; one has none")
    return math.exp(sum(known) / len(known))


def _worst(entry: Expectation) -> float:
    pairs = ((entry.forward, entry.measured_forward), (entry.backward, entry.measured_backward))
    return max(abs(expected / measured - 1) for expected, measured in pairs if expected and measured)


def table_of(rows: list[Row]) -> Table:
    """The table."""
    table = Table(
        "Growth of the rms per layer: expected and measured",
        ("net", "width", "forward", "measured", "backward", "measured", "depth scale", "off by", "worst layer"),
    )
    for row in rows:
        numbers = (row.forward, row.measured_forward, row.backward, row.measured_backward)
        scale = f"{row.depth_scale:.3g}" if row.depth_scale < 1000 else "> 1000"
        table.rows.append(
            (
                row.net,
                str(row.width),
                *(f"{number:.4f}" for number in numbers),
                scale,
                f"{row.worst_mean:.2%}",
                f"{row.worst_layer:.2%}",
            )
        )
    return table


def main(config: Config) -> list[Row]:
    """Run the grid, print the table, write what was asked for."""
    from rich.console import Console

    console = Console()
    names = [*NETS, "residual", "residual, pre-norm"]
    rows: list[Row] = []
    with one_thread(), progress(console, len(names) * len(config.widths)) as advance:
        for name in names:
            for width in config.widths:
                rows.append(measure(name, width, config))
                advance(f"{name}, {width} wide")
    table = table_of(rows)
    table.print(console)
    if config.json is not None:
        config.json.write_text(json.dumps([asdict(row) for row in rows]))
    if config.markdown is not None:
        config.markdown.write_text(table.markdown() + "\n")
    return rows


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config, prog="python -m experiments.benchmarks.theory_grid"))
