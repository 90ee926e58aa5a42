"""Part 3: the same ReLU net trained from each init, over a small log grid of learning rates.

Stochastic gradient descent with momentum 0.9 on the digits. What a layer does to the signal before training decides
whether training can start: a gradient that reaches the first layers as 1e-8 moves them at no learning rate of the grid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
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
MONITORED = 20  # steps


@dataclass(frozen=True)
class Epoch:
    """What an epoch brought: loss and training accuracy as its batches came by, dev accuracy at its end."""

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


def run(size: Size, seed: int, digits: Digits, logs: VariantLogs, step: Callable[[str], None]) -> list[Training]:
    """Train every init at every rate."""
    finished = []
    for init in INITS:
        for rate in size.rates:
            writer = logs[init.variant]
            net = _net(size, init, seed, digits)
            epochs: list[Epoch] = []
            with _monitor(net, writer) if rate == size.shown_rate else nullcontext():
                for now in _epochs(net, digits, size, rate, seed):
                    epochs.append(now)
                    _write(writer, size, rate, len(epochs), now)
                    logs.flush()
                    step(f"part 3: ReLU net, variance {init.variance}, rate {rate:g}")
            finished.append(Training(init.variance, rate, tuple(epochs)))
    return finished


def _monitor(net: torch.nn.Module, writer: SummaryWriter) -> SignalMonitor:
    return SignalMonitor(net, writer, every=MONITORED, first_group=tags.MONITOR, histograms=False)


def _net(size: Size, init: Init, seed: int, digits: Digits) -> torch.nn.Module:
    hidden = [size.trained_width] * (size.trained_depth - 1)
    net = nn.MLP([digits.x_train.shape[1], *hidden, CLASSES], activation="relu")
    initialize_(net, init.scheme, generator=torch.Generator().manual_seed(seed))
    return net.to(digits.x_train.device)


def _epochs(net: torch.nn.Module, digits: Digits, size: Size, rate: float, seed: int) -> Iterator[Epoch]:
    """Train epoch by epoch; the shuffle is drawn on the CPU, so that every device sees the same batches."""
    x, y = digits.x_train, digits.y_train
    optimizer = torch.optim.SGD(net.parameters(), lr=rate, momentum=MOMENTUM)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(size.epochs):
        losses, hits = [], []
        for batch in torch.randperm(len(x), generator=generator).to(x.device).split(size.batch):
            scores = net(x[batch])
            loss = cross_entropy(scores, y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
            hits.append((scores.argmax(dim=1) == y[batch]).sum())
        train_accuracy = torch.stack(hits).sum().item() / len(x)
        yield Epoch(torch.stack(losses).mean().item(), train_accuracy, _accuracy(net, digits.x_dev, digits.y_dev))


@torch.no_grad()
def _accuracy(net: torch.nn.Module, x: Tensor, y: Tensor) -> float:
    net.eval()
    share = float((net(x).argmax(dim=1) == y).double().mean())
    net.train()
    return share


def _write(writer: SummaryWriter, size: Size, rate: float, epoch: int, now: Epoch) -> None:
    if rate == size.shown_rate:
        group, suffix = tags.TRAINING.format(rate=rate), ""
    else:
        group, suffix = tags.OTHER_RATES, f", rate {rate:g}"
    writer.add_scalar(f"{group}/accuracy on dev images{suffix}", now.dev_accuracy, epoch)
    writer.add_scalar(f"{group}/accuracy on training images{suffix}", now.train_accuracy, epoch)
    writer.add_scalar(f"{group}/loss{suffix}", now.loss, epoch)
