"""What watching a net costs: training steps with a monitor beside the same steps without, in one process.

    python -m experiments.benchmarks.monitor_overhead --json monitor_overhead.json

The net: 50 layers, 256 wide, ReLU, batch 256, SGD. Every variant trains its own copy; they take
turns, a block of steps each, so that a slow moment of the machine falls on all of them. The figure is the ratio of the
mean step of a variant's block to that of the bare blocks beside it, as a median over the rounds.

Beside ours, two common ways to log the same net, written as those libraries do it:

* fastai-style: a forward hook on each layer takes mean, standard deviation, share near zero and a 40-bin histogram,
  each brought to the host on every step;
* wandb-style: ``watch(log="all")``: a hook on each parameter takes a 64-bin histogram of gradient and weight on every
  logged step.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torchnotes.diagnostics import SignalMonitor
from torchnotes.init import initialize_


@dataclass(frozen=True)
class Config:
    """What to time."""

    depth: int = 50
    width: int = 256
    batch: int = 256
    rounds: int = 4
    steps: int = 50  # in a block: a monitor that logs every 50th step logs once in each
    peer_steps: int = 5  # in a block of the other libraries' hooks, every step of which is logged
    device: str = "cpu"
    json: Path | None = None


@dataclass(frozen=True)
class Row:
    """One variant."""

    variant: str
    step_ms: float
    ratio: float  # to the bare step; 1.01 is 1 % slower
    low: float  # quartiles over the rounds
    high: float


class FastaiStyle:
    """Statistics of each activation, by forward hooks, brought to the host one by one."""

    def __init__(self, net: nn.Module) -> None:
        self.stats: list[tuple[float, float, float, Tensor]] = []
        for module in net.modules():
            if not list(module.children()):
                module.register_forward_hook(self._hook)

    def _hook(self, module: nn.Module, args: Any, output: Tensor) -> None:
        values = output.detach()
        near_zero = (values.abs() < 0.05).float().mean().item()
        histogram = values.float().histc(40, 0, 10).cpu()
        self.stats.append((values.mean().item(), values.std().item(), near_zero, histogram))


class WandbStyle:
    """Histograms of each weight and its gradient, by hooks on the parameters, on every step."""

    def __init__(self, net: nn.Module) -> None:
        self.logged: list[tuple[list[float], float, float]] = []
        for parameter in net.parameters():
            parameter.register_hook(lambda gradient, p=parameter: self._log(p, gradient))

    def _log(self, parameter: Tensor, gradient: Tensor) -> None:
        for values in (gradient, parameter):
            flat = values.detach().reshape(-1)
            low, high = flat.min().item(), flat.max().item()
            self.logged.append((flat.histc(64, low, high).cpu().tolist(), low, high))


def make_net(config: Config) -> nn.Sequential:
    """The net, initialised by He's rule."""
    hidden = [m for _ in range(config.depth - 1) for m in (nn.Linear(config.width, config.width), nn.ReLU())]
    net = nn.Sequential(*hidden, nn.Linear(config.width, 10))
    initialize_(net, generator=torch.Generator().manual_seed(0))
    return net.to(config.device)


def make_step(config: Config, watch: Callable[[nn.Module], Any]) -> Callable[[], None]:
    """A training step of a net of its own, watched."""
    net = make_net(config)
    watcher = watch(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    x = torch.randn(config.batch, config.width, device=config.device)
    y = torch.randint(0, 10, (config.batch,), device=config.device)

    def step() -> None:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
        if isinstance(watcher, SignalMonitor):
            watcher.step(loss)

    return step


def variants(logs: Path) -> dict[str, Callable[[nn.Module], Any]]:
    """How each variant attaches itself to a net."""
    return {
        "bare": lambda net: None,
        "SignalMonitor, every=50": lambda net: SignalMonitor(net, logs / "every50", every=50),
        "SignalMonitor, every=1": lambda net: SignalMonitor(net, logs / "every1", every=1),
        "fastai-style hooks, every step": FastaiStyle,
        "wandb-style watch, every step": WandbStyle,
    }


def measure(config: Config) -> list[Row]:
    """Time all variants, in turn."""
    with tempfile.TemporaryDirectory() as folder:
        steps = {name: make_step(config, watch) for name, watch in variants(Path(folder)).items()}
        times: dict[str, list[float]] = {name: [] for name in steps}
        for step in steps.values():
            step()
            step()
        for _ in range(config.rounds):
            for name, step in steps.items():
                count = config.peer_steps if "-style" in name else config.steps
                _synchronize(config)
                start = time.perf_counter()
                for _ in range(count):
                    step()
                _synchronize(config)
                times[name].append((time.perf_counter() - start) / count)
    rows = []
    for name, taken in times.items():
        ratios = [a / b for a, b in zip(taken, times["bare"], strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else (ratios[0],) * 3
        rows.append(Row(name, 1e3 * statistics.median(taken), statistics.median(ratios), low, high))
    return rows


def _synchronize(config: Config) -> None:
    if config.device != "cpu":
        torch.accelerator.synchronize()


def main(config: Config) -> None:
    """Measure and print."""
    from rich.console import Console
    from rich.table import Table

    rows = measure(config)
    table = Table(title=f"{config.depth} layers of {config.width}, batch {config.batch}, {config.device}")
    for heading in ("variant", "ms a step", "ratio to bare", "quartiles"):
        table.add_column(heading, justify="left" if heading == "variant" else "right")
    for row in rows:
        table.add_row(row.variant, f"{row.step_ms:.1f}", f"{row.ratio:.3f}", f"{row.low:.3f} to {row.high:.3f}")
    Console().print(table)
    if config.json is not None:
        config.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config, description=__doc__))
