"""Part 3: the same ReLU net trained from each init, over a small log grid of learning rates.

Stochastic gradient descent with momentum 0.9 on the digits. What a layer does to the signal before training decides
whether training can start: a gradient that reaches the first layers as 1e-8 moves them at no learning rate of the grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import cross_entropy

from experiments.digits import CLASSES, Digits
from experiments.logs import VariantLogs
from experiments.vanishing_exploding import tags
from experiments.vanishing_exploding.settings import INITS, Init, Size
from torchnotes import nn
from torchnotes.diagnostics import SignalMonitor
from torchnotes.init import initialize_

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

MOMENTUM = 0.9


@dataclass(frozen=True)
class Epoch:
    """Where a net stands after an epoch; the loss is the mean over the epoch's batches."""

    loss: float
    train_accuracy: float
    dev_accuracy: float


@dataclass(frozen=True)
class Training:
    """One training run."""

    weights: str
    rate: float
    epochs: tuple[Epoch, ...]

    @property
    def last(self) -> Epoch:
        """Where it ended."""
        return self.epochs[-1]


def chance_level(images: int) -> float:
    """The accuracy that guessing one of ten digits stays below, three standard deviations above the mean.

    >>> round(chance_level(360), 3)
    0.147
    """
    p = 1 / CLASSES
    return p + 3 * math.sqrt(p * (1 - p) / images)


def run(size: Size, seed: int, digits: Digits, logs: VariantLogs, step: Callable[[str], None]) -> list[Training]:
    """Train every init at every rate."""
    return [_train(size, init, rate, seed, digits, logs, step) for init in INITS for rate in size.rates]


def _train(
    size: Size, init: Init, rate: float, seed: int, digits: Digits, logs: VariantLogs, step: Callable[[str], None]
) -> Training:
    x, y = digits.x_train, digits.y_train
    net = nn.MLP([x.shape[1]] + [size.trained_width] * (size.trained_depth - 1) + [CLASSES], activation="relu")
    initialize_(net, init.scheme, generator=torch.Generator().manual_seed(seed))
    net.to(x.device)
    optimizer = torch.optim.SGD(net.parameters(), lr=rate, momentum=MOMENTUM)
    order = torch.Generator().manual_seed(seed)  # on the CPU: the same batches on every device
    writer = logs[init.variant]
    shown = rate == size.shown_rate
    epochs = []
    with SignalMonitor(net, writer, every=50) if shown else nullcontext():
        for epoch in range(1, size.epochs + 1):
            losses = []
            for batch in torch.randperm(len(x), generator=order).to(x.device).split(size.batch):
                loss = cross_entropy(net(x[batch]), y[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.detach())
            epochs.append(_evaluate(net, digits, torch.stack(losses).mean().item()))
            _write(writer, size, rate, epoch, epochs[-1])
            logs.flush()
            step(f"part 3: ReLU net, variance {init.variance}, rate {rate:g}")
    return Training(init.variance, rate, tuple(epochs))


@torch.no_grad()
def _evaluate(net: torch.nn.Module, digits: Digits, loss: float) -> Epoch:
    net.eval()
    train, dev = (
        (net(x).argmax(dim=1) == y).double().mean().item()
        for x, y in ((digits.x_train, digits.y_train), (digits.x_dev, digits.y_dev))
    )
    net.train()
    return Epoch(loss, train, dev)


def _write(writer: SummaryWriter, size: Size, rate: float, epoch: int, now: Epoch) -> None:
    if rate == size.shown_rate:
        group, suffix = tags.TRAINING.format(rate=rate), ""
    else:
        group, suffix = tags.OTHER_RATES, f", rate {rate:g}"
    writer.add_scalar(f"{group}/accuracy on dev images{suffix}", now.dev_accuracy, epoch)
    writer.add_scalar(f"{group}/accuracy on training images{suffix}", now.train_accuracy, epoch)
    writer.add_scalar(f"{group}/loss{suffix}", now.loss, epoch)
