"""One optimiser step, ours against ``torch.optim``'s, side by side in one process.

    python -m experiments.benchmarks.optim_speed --parameters 100000000 --json optim_speed.json

Both update their own copy of the same tensors, in turn, and the times are compared pair by pair: each row is a ratio
to PyTorch's foreach version (below 1: ours is faster), with PyTorch's per-tensor and fused versions beside it.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from torchnotes import optim


@dataclass(frozen=True)
class Config:
    """What to time."""

    parameters: tuple[int, ...] = (1_000_000, 100_000_000)
    tensors: int = 200
    rules: tuple[str, ...] = ("GradientDescent", "Momentum", "RMSprop", "Adam")
    seconds: float = 4.0  # of measurement for each row
    device: str = "cpu"
    json: Path | None = None
    markdown: Path | None = None


@dataclass(frozen=True)
class Row:
    """One rule at one size; times in milliseconds a step, medians."""

    rule: str
    parameters: int
    tensors: int
    device: str
    ours_ms: float
    foreach_ms: float
    per_tensor_ms: float | None
    fused_ms: float | None
    ratio_to_foreach: float
    ratio_to_foreach_low: float  # quartiles of the ratio over the pairs
    ratio_to_foreach_high: float
    ratio_to_fused: float | None


Make = Callable[[list[Tensor]], Optimizer]
MAKERS: dict[str, tuple[Make, Callable[..., Optimizer], bool]] = {
    "GradientDescent": (lambda p: optim.GradientDescent(p, 1e-3), lambda p, **k: torch.optim.SGD(p, 1e-3, **k), True),
    "Momentum": (
        lambda p: optim.Momentum(p, 1e-3, form="sum"),
        lambda p, **k: torch.optim.SGD(p, 1e-3, 0.9, **k),
        True,
    ),
    "RMSprop": (lambda p: optim.RMSprop(p, 1e-3), lambda p, **k: torch.optim.RMSprop(p, 1e-3, **k), False),
    "Adam": (lambda p: optim.Adam(p, 1e-3), lambda p, **k: torch.optim.Adam(p, 1e-3, **k), True),
}


def _tensors(config: Config, parameters: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    size = parameters // config.tensors
    tensors: list[Tensor] = []
    for _ in range(config.tensors):
        param = torch.nn.Parameter(torch.randn(size, generator=generator).to(config.device))
        param.grad = torch.randn(size, generator=generator).to(config.device)
        tensors.append(param)
    return tensors


def _time(optimizer: Optimizer, repeats: int, device: str) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        optimizer.step()
    if device != "cpu":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeats * 1e3


def _pairs(ours: Optimizer, theirs: Optimizer, config: Config) -> list[tuple[float, float]]:
    """Times of both, taken in turn so that what else the machine does falls on both."""
    for optimizer in (ours, theirs, ours, theirs):
        _time(optimizer, 1, config.device)
    once = max(_time(ours, 1, config.device), _time(theirs, 1, config.device))
    repeats = max(1, round(20 / max(once, 1e-3)))  # at least 20 ms a sample
    pairs: list[tuple[float, float]] = []
    end = time.perf_counter() + config.seconds
    while time.perf_counter() < end or len(pairs) < 5:
        first, second = (ours, theirs) if len(pairs) % 2 else (theirs, ours)
        a, b = _time(first, repeats, config.device), _time(second, repeats, config.device)
        pairs.append((a, b) if first is ours else (b, a))
    return pairs


def measure(rule: str, parameters: int, config: Config) -> Row:
    """Time one rule against PyTorch's three versions."""
    make, twin, has_fused = MAKERS[rule]
    tensors = _tensors(config, parameters)  # all work on the same memory: each step costs the same whatever the values
    ours = make(tensors)
    pairs = _pairs(ours, twin(tensors, foreach=True), config)
    ratios = sorted(a / b for a, b in pairs)
    quartiles = statistics.quantiles(ratios, n=4)

    def against(**kwargs: bool) -> tuple[float, float]:
        both = _pairs(ours, twin(tensors, **kwargs), config)
        return statistics.median(b for _, b in both), statistics.median(a / b for a, b in both)

    per_tensor_ms, _ = against(foreach=False)
    fused_ms, to_fused = against(fused=True) if has_fused else (None, None)
    return Row(
        rule,
        parameters,
        config.tensors,
        config.device,
        statistics.median(a for a, _ in pairs),
        statistics.median(b for _, b in pairs),
        per_tensor_ms,
        fused_ms,
        statistics.median(ratios),
        quartiles[0],
        quartiles[2],
        to_fused,
    )


def markdown(rows: Iterable[Row]) -> str:
    """The rows as a table."""

    def cell(value: Any) -> str:
        return "–" if value is None else f"{value:.2f}"

    def to_fused(ratio: float | None) -> str:
        return cell(ratio) + (" **loses**" if ratio is not None and ratio > 1 else "")

    lines = [
        "| rule | parameters | tensors | ours, ms | torch foreach, ms | per tensor, ms | fused, ms "
        "| ours / foreach (quartiles) | ours / fused |",
        "|---|---:|---:|---:|---:|---:|---:|---|---|",
    ]
    for row in rows:
        spread = f"{row.ratio_to_foreach:.2f} ({row.ratio_to_foreach_low:.2f}–{row.ratio_to_foreach_high:.2f})"
        spread += " **loses**" if row.ratio_to_foreach > 1 else ""
        lines.append(
            f"| {row.rule} | {row.parameters:,} | {row.tensors} | {cell(row.ours_ms)} | {cell(row.foreach_ms)} "
            f"| {cell(row.per_tensor_ms)} | {cell(row.fused_ms)} | {spread} | {to_fused(row.ratio_to_fused)} |"
        )
    return "\n".join(lines)


def main(config: Config) -> list[Row]:
    """Measure every row, print the table, write it where asked."""
    from rich.progress import track

    cases = [(rule, parameters) for parameters in config.parameters for rule in config.rules]
    rows = [measure(rule, parameters, config) for rule, parameters in track(cases, description="optimiser steps")]
    setting = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if config.device != "cpu" else "cpu",
    }
    print(f"torch {setting['torch']}, {setting['threads']} threads, {setting['device']}\n\n{markdown(rows)}")
    if config.json is not None:
        config.json.write_text(json.dumps({"setting": setting, "rows": [asdict(row) for row in rows]}, indent=2) + "\n")
    if config.markdown is not None:
        config.markdown.write_text(markdown(rows) + "\n")
    return rows


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config, description=__doc__))
