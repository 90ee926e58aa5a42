"""What watching a net costs: training steps with a monitor beside the same steps without, in one process.

    python -m experiments.benchmarks.monitor_overhead --json monitor_overhead.json

The net: 50 layers, 256 wide, ReLU, batch 256, SGD. Every variant trains its own copy, one variant after the other: what
one keeps in memory is no burden to another, as it would not be in a training run of its own. The variants that log
every step take turns with the bare net, some steps each, and their times are added up, as a monitor hands on some steps
together; the figure is the median of the ratios in these rounds. All have logged 50 steps before: of the first ones
more is written. The one that logs every 50th takes turns with the bare net step by step, and its logged and unlogged
steps are kept apart: its cost is (49 · unlogged + logged) / (50 · bare), each a median over all rounds. Behind each
figure stands the interval in which 95 % of the figures lie that come out when the rounds are drawn anew, with
replacement.
An unlogged step has one more witness: what the monitor adds to a step of a net of a single weight, all of it its own
code.

Beside ours, two common ways to log the same net, written as those libraries do it:

* fastai-style: a forward hook on each layer takes mean, standard deviation, share near zero and a 40-bin histogram,
  each brought to the host on every step;
* wandb-style: ``watch(log="all")``: a hook on each parameter takes a 64-bin histogram of gradient and weight on every
  logged step.
"""

from __future__ import annotations

import gc
import json
import random
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
    rounds: int = 40
    rounds_of_many: int = 12  # of the variant that logs one step in ``every``, each of as many steps
    every: int = 50
    block: int = 8  # steps in a row of a variant that logs every step
    warm_up: int = 50  # steps before the first that is timed, all of them logged; a multiple of ``every``
    device: str = "cpu"
    json: Path | None = None


@dataclass(frozen=True)
class Row:
    """One variant."""

    variant: str
    step_ms: float
    ratio: float  # to the bare step; 1.01 is 1 % slower
    low: float  # 95 % of the ratios of redrawn rounds lie between these
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


def make_step(config: Config, watch: Callable[[nn.Module], Any]) -> tuple[Callable[[], None], Any]:
    """A training step of a net of its own, watched; and what watches it."""
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

    return step, watcher


def variants(logs: Path) -> dict[str, Callable[[nn.Module], Any]]:
    """How each variant that logs every step attaches itself to a net."""
    return {
        "SignalMonitor, every=1": lambda net: SignalMonitor(net, logs / "every1", every=1),
        "SignalMonitor, every=1, without numba": lambda net: SignalMonitor(
            net, logs / "plain", every=1, compiled=False
        ),
        "SignalMonitor, every=1, detail=10": lambda net: SignalMonitor(net, logs / "detail10", every=1, detail=10),
        "fastai-style hooks, every step": FastaiStyle,
        "wandb-style watch, every step": WandbStyle,
    }


def time_of(config: Config, step: Callable[[], None]) -> float:
    """Seconds that one step takes."""
    _synchronize(config)
    start = time.perf_counter()
    step()
    _synchronize(config)
    return time.perf_counter() - start


Rounds = list[tuple[list[float], list[float], list[float]]]
"""Of each round, the times of bare steps, of unlogged ones and of logged ones."""


def ratio_of(rounds: Rounds, every: int) -> float:
    """Cost of a training step relative to a bare one: where one in ``every`` is logged, from the median of each kind.

    Where each is logged, the median over the rounds of the ratio in each: what the machine does from round to round
    falls on both alike.
    """
    if every == 1:
        return statistics.median(statistics.median(logged) / statistics.median(bare) for bare, _, logged in rounds)
    bare, unlogged, logged = ([time for times in kind for time in times] for kind in zip(*rounds, strict=True))
    rest = statistics.median(unlogged) * (every - 1)
    return float((statistics.median(logged) + rest) / (every * statistics.median(bare)))


def row_of(variant: str, rounds: Rounds, every: int) -> Row:
    """The ratio, with the interval in which it falls when the rounds are drawn anew."""
    rng = random.Random(0)
    redrawn = sorted(ratio_of(rng.choices(rounds, k=len(rounds)), every) for _ in range(1000))
    ratio, bare = ratio_of(rounds, every), statistics.median(t for bare, _, _ in rounds for t in bare)
    return Row(variant, 1e3 * ratio * bare, ratio, redrawn[25], redrawn[974])


def beside_bare(config: Config, bare: Callable[[], None], step: Callable[[], None]) -> Rounds:
    """Some steps of the bare net and some of a variant that logs every step, in turn."""
    rounds: Rounds = []
    for _ in range(config.rounds):
        times = []
        for turn in (bare, step):
            turn()  # the first after another net has run finds its caches cold
            times.append(statistics.fmean(time_of(config, turn) for _ in range(config.block)))
        rounds.append(([times[0]], [], [times[1]]))
    return rounds


def one_in_many(config: Config, bare: Callable[[], None], step: Callable[[], None]) -> Rounds:
    """The same step by step, of a variant that logs one in ``every``."""
    rounds: Rounds = []
    for _ in range(config.rounds_of_many):
        times: tuple[list[float], list[float], list[float]] = ([], [], [])
        for index in range(config.every):
            times[0].append(time_of(config, bare))
            times[1 if index else 2].append(time_of(config, step))
        rounds.append(times)
    return rounds


def measure(config: Config) -> list[Row]:
    """Time all variants, one after the other."""
    every = config.every
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        bare, _ = make_step(config, lambda net: None)
        sparse, monitor = make_step(config, lambda net: SignalMonitor(net, Path(folder) / "sparse", every=1))
        warm_up(config, bare, sparse)
        monitor.every = every
        taken = one_in_many(config, bare, sparse)
        monitor.close()
        rows += [
            row_of("bare", [(bare_times, [], bare_times) for bare_times, _, _ in taken], 1),
            row_of(f"SignalMonitor, every={every}", taken, every),
            row_of("  its unlogged steps", [(bare_times, [], times) for bare_times, times, _ in taken], 1),
            row_of("  its logged steps", [(bare_times, [], times) for bare_times, _, times in taken], 1),
        ]
        for name, watch in variants(Path(folder)).items():
            step, watcher = make_step(config, watch)
            warm_up(config, bare, step)
            rows.append(row_of(name, beside_bare(config, bare, step), 1))
            if isinstance(watcher, SignalMonitor):
                watcher.close()
            del step, watcher
            gc.collect()  # what one variant has kept is no burden to the next
    return rows


def warm_up(config: Config, *steps: Callable[[], None]) -> None:
    """Take the steps before the first that is timed."""
    for step in steps:
        for _ in range(config.warm_up):
            step()


def hook_time(steps: int = 2000) -> float:
    """Seconds that a monitor adds to an unlogged step by what it runs: steps of a net of one weight, with and without.

    What runs on such a step does not depend on the net. In the loop it is hot; amid a larger net's step it is not.
    """
    small = Config(depth=1, width=1, batch=1)
    bare, _ = make_step(small, lambda net: None)
    watched, monitor = make_step(small, lambda net: SignalMonitor(net, None, every=10**9))
    watched()
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(steps):
        times[0].append(time_of(small, bare))
        times[1].append(time_of(small, watched))
    monitor.close()
    return statistics.median(times[1]) - statistics.median(times[0])


def _synchronize(config: Config) -> None:
    if config.device != "cpu":
        torch.accelerator.synchronize()


def main(config: Config) -> None:
    """Measure and print."""
    from rich.console import Console
    from rich.table import Table

    rows, hooks = measure(config), hook_time()
    table = Table(title=f"{config.depth} layers of {config.width}, batch {config.batch}, {config.device}")
    for heading in ("variant", "ms a step", "ratio to bare", "95 % interval"):
        table.add_column(heading, justify="left" if heading == "variant" else "right")
    for row in rows:
        table.add_row(row.variant, f"{row.step_ms:.1f}", f"{row.ratio:.3f}", f"{row.low:.3f} to {row.high:.3f}")
    Console().print(table, f"What a monitor runs on an unlogged step takes {1e6 * hooks:.0f} µs in a loop of its own.")
    if config.json is not None:
        config.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config, description=__doc__))
