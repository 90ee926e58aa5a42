"""Part 1, the notes' own example: a linear net with every W = c·I multiplies its input by c at every layer.

ŷ = c^(L-1) W[L] x, so with c a little above 1 the signal explodes and with c a little below it vanishes, and the
gradient, which runs through the transposes of the same matrices, does the same on its way back.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from experiments.logs import VariantLogs, add_depth_curves
from experiments.vanishing_exploding import tags
from experiments.vanishing_exploding.settings import Growth, Size, measured
from torchnotes import nn
from torchnotes.diagnostics import probe

FACTORS = (0.5, 0.9, 1.1, 1.5)
SIX_DIGITS = 0.5e-6


def linear_net(factor: float, depth: int) -> torch.nn.Sequential:
    """``depth`` linear layers of two units, every W = factor·I and no b, as in the notes."""
    layers = [nn.Linear(2, 2, bias=False, dtype=torch.float64) for _ in range(depth)]
    with torch.no_grad():
        for layer in layers:
            layer.weight.copy_(factor * torch.eye(2))
    return torch.nn.Sequential(*layers)


def measure(size: Size, device: torch.device, logs: VariantLogs, step: Callable[[str], None]) -> list[Growth]:
    """Probe the four nets on the notes' input x = [1, 1]; the loss is the sum of the outputs."""
    found = []
    for factor in FACTORS:
        net = linear_net(factor, size.linear_depth).to(device)
        x = torch.ones(1, 2, dtype=torch.float64, device=device)
        report = probe(net, x, loss=_sum)
        known = (factor, factor)
        found.append(measured(report, net="linear", weights=f"W = {factor}·I", known=known, tolerance=SIX_DIGITS))
        names = (
            f"{tags.DEPTH}/{number} linear nets: {part}" for number, part in ((1, "activations"), (2, "gradients"))
        )
        add_depth_curves(logs[f"linear_{factor}"], report, *names)
        step(f"part 1: a linear net with {found[-1].weights}")
    return found


def _sum(output: Tensor) -> Tensor:
    return output.sum()
