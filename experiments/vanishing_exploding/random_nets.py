"""Part 2: every activation × every init through a deep net on handwritten digits, before any training.

The known answers come from ``experiments.mean_field``. They hold for infinitely wide layers; at width n the log of the
rms drifts from them as a random walk along the net, and ``tolerance`` is what that walk can do by chance.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from experiments.digits import CLASSES, Digits
from experiments.logs import VariantLogs, add_depth_curves, add_histograms_along
from experiments.mean_field import expect
from experiments.vanishing_exploding import tags
from experiments.vanishing_exploding.settings import ACTIVATIONS, INITS, Growth, Size, measured
from torchnotes import nn
from torchnotes.diagnostics import SignalReport, probe
from torchnotes.init import initialize_

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

IMAGES = 256
SHOWN_FIRST = {"relu": 3, "tanh": 5}  # number of the first of two cards
HISTOGRAMS = {"relu": "log10 if not 0", "tanh": "untrained", "sigmoid": "untrained"}


def measure(size: Size, seed: int, digits: Digits, logs: VariantLogs, step: Callable[[str], None]) -> list[Growth]:
    """Probe sixteen nets on the same images, with the cross-entropy of the untrained prediction as loss."""
    x, y = digits.x_train[:IMAGES].double(), digits.y_train[:IMAGES]
    sizes = [x.shape[1]] + [size.signal_width] * (size.signal_depth - 1) + [CLASSES]
    found = []
    for activation, label in ACTIVATIONS.items():
        for init in INITS:
            net = nn.MLP(sizes, activation=activation).double()  # float32 ends at 1e-45; small weights go lower
            initialize_(net, init.scheme, generator=torch.Generator().manual_seed(seed))
            net.to(x.device)
            report = probe(net, x, y, loss=cross_entropy)
            variances = [init.formula(n_in, n_out) for n_in, n_out in pairwise(sizes)]
            known = expect(activation, sizes, variances, float(x.square().mean()))
            found.append(
                measured(
                    report,
                    net=label,
                    weights=init.variance,
                    known=(known.forward_growth, known.backward_growth),
                    tolerance=chance_drift(size.signal_depth, size.signal_width),
                )
            )
            _write(logs[init.variant], activation, report)
            if activation in HISTOGRAMS:
                tag = f"{tags.HISTOGRAMS}/{label}, {HISTOGRAMS[activation]}"
                add_histograms_along(logs[init.variant], tag, _values(net, x))
            step(f"part 2: a {label} net with variance {init.variance}")
    return found


def chance_drift(depth: int, width: int) -> float:
    """By how much ln(growth per layer) of one random net may differ from that of an infinitely wide one.

    The ln of the rms takes a step of mean -κ/4n and variance κ/4n at every layer, κ = 5 for ReLU (Hanin and Nica 2020).
    A least-squares slope through a random walk of L steps has the variance 6/5L of a step's. Three standard deviations
    and the mean are allowed.

    >>> round(chance_drift(50, 256), 3)
    0.037
    """
    variance = 5 / (4 * width)
    return variance + 3 * math.sqrt(1.2 / depth * variance)


def _write(writer: SummaryWriter, activation: str, report: SignalReport) -> None:
    label = ACTIVATIONS[activation]
    if activation in SHOWN_FIRST:
        first = SHOWN_FIRST[activation]
        names = f"{tags.DEPTH}/{first} {label} nets: activations", f"{tags.DEPTH}/{first + 1} {label} nets: gradients"
    else:
        names = f"{tags.OTHER_NETS}/{label} nets: activations", f"{tags.OTHER_NETS}/{label} nets: gradients"
    add_depth_curves(writer, report, *names)


@torch.no_grad()
def _values(net: torch.nn.Sequential, x: Tensor) -> list[Tensor]:
    """The activations of every hidden layer; of a rectifier log10 of what is not 0, of the others the values."""
    values = []
    for layer in net:
        x = layer(x)
        if isinstance(layer, nn.ReLU):
            values.append(x[x > 0].log10())
        elif not isinstance(layer, nn.Linear):
            values.append(x)
    return values
