"""Part 1, the notes' own example: a linear net with every W = c·I multiplies its input by c at every layer.

ŷ = c^(L-1) W[L] x, so with c a little above 1 the signal explodes and with c a little below it vanishes, and the
gradient, which runs through the transposes of the same matrices, does the same on its way back.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from experiments.logs import VariantLogs, add_depth_curve
from experiments.vanishing_exploding import tags
from experiments.vanishing_exploding.settings import Growth, Size, of_report
from torchnotes import nn
from torchnotes.diagnostics import probe

FACTORS = (0.5, 0.9, 1.1, 1.5)
SIX_DIGITS = 0.5e-6


def linear_net(factor: float, depth: int) -> torch.nn.Sequential:
    """``depth`` linear layers of two units, every W = factor·I and b = 0, as in the notes."""
    net = torch.nn.Sequential(*(nn.Linear(2, 2, dtype=torch.float64) for _ in range(depth)))
    with torch.no_grad():
        for layer in net:
            layer.weight.copy_(factor * torch.eye(2))
            layer.bias.zero_()
    return net


def measure(size: Size, device: torch.device, logs: VariantLogs, step: Callable[[str], None]) -> list[Growth]:
    """Probe the four nets on the notes' input x = [1, 1]; the loss is the sum of the outputs."""
    found = []
    for factor in FACTORS:
        net = linear_net(factor, size.linear_depth).to(device)
        x = torch.ones(1, 2, dtype=torch.float64, device=device)
        report = probe(net, x, loss=_sum)
        writer = logs[f"linear_{factor}"]
        layers = report.layers
        add_depth_curve(writer, f"{tags.DEPTH}/1 linear nets: activations", [x.activation.log10_rms for x in layers])
        add_depth_curve(writer, f"{tags.DEPTH}/2 linear nets: gradients", [x.gradient.log10_rms for x in layers])
        growth = report.forward_growth, report.backward_growth
        found.append(of_report(growth, "linear", f"W = {factor}·I", (factor, factor), SIX_DIGITS))
        step(f"part 1: a linear net with {found[-1].weights}")
    return found


def _sum(output: Tensor) -> Tensor:
    return output.sum()
