"""What is measured, and how."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from experiments.config import CommonConfig
from experiments.console import Claim
from experiments.descent import descend
from experiments.digits import CLASSES, Digits, load_digits
from experiments.nets import error_rate
from torchnotes import nn, ops
from torchnotes.init import initialize_
from torchnotes.optim import Momentum
from torchnotes.regularization import Penalty
from torchnotes.training import predict

NAME = "dropout"
SIZES = (64, 256, 64, CLASSES)  # the first weight matrix, and the second, have 16,384 entries each
NONE, EVERY, LARGEST, SMALLEST, INPUT = "none", "0.5 everywhere", "0.5 after 256", "0.5 after 64", "0.5 at the input"
KEEP_PROBS = {  # of the input, the 256 units, the 64 units
    NONE: (1.0, 1.0, 1.0),
    EVERY: (1.0, 0.5, 0.5),
    LARGEST: (1.0, 0.5, 1.0),
    SMALLEST: (1.0, 1.0, 0.5),
    INPUT: (0.5, 1.0, 1.0),
}
OFF, FRESH, FIXED = "off", "a fresh mask in each pass", "one mask held fixed"
RATE, MOMENTUM = 0.05, 0.9
SIGMAS = 4.0  # a mean further from what is expected, in standard errors, is not chance


@dataclass(frozen=True)
class DropoutConfig(CommonConfig):
    """Dropout: what it leaves unchanged, what it does to J, what it is worth, and prediction with it off."""

    few: int = 200
    """Training digits of part 3."""


@dataclass(frozen=True)
class Mask:
    """Dropout of a layer of 50 ones: units zeroed per sample, the mean left, both with their standard error."""

    zeroed: float
    zeroed_error: float
    mean: float
    mean_error: float
    undivided: float
    never_kept: int


@dataclass(frozen=True)
class Trained:
    """A net of part 3: errors and the squared norm of its weights, one number a seed."""

    train: tuple[float, ...]
    dev: tuple[float, ...]
    norm: tuple[float, ...]

    @property
    def dev_mean(self) -> float:
        """Mean over the seeds."""
        return statistics.fmean(self.dev)


@dataclass
class Results:
    """What the experiment found."""

    masks: dict[float, Mask] = field(default_factory=dict)
    costs: dict[str, list[float]] = field(default_factory=dict)
    trained: dict[str, Trained] = field(default_factory=dict)
    passes: dict[int, tuple[float, float]] = field(default_factory=dict)
    off_error: float = math.nan
    one_pass_errors: tuple[float, ...] = ()
    average_error: float = math.nan
    judged: bool = True
    reading: list[Claim] = field(default_factory=list)


def mask(keep_prob: float, samples: int, seed: int, device: str) -> Mask:
    """Drop a layer of 50 ones for many samples."""
    generator = torch.Generator(device).manual_seed(seed)
    ones = torch.ones(samples, 50, dtype=torch.float64, device=device)
    out = ops.dropout(ones, keep_prob=keep_prob, generator=generator)
    zeroed = (out == 0).double().sum(1)
    root = math.sqrt(samples)
    return Mask(
        float(zeroed.mean()),
        float(zeroed.std()) / root,
        float(out.mean()),
        float(out.mean(1).std()) / root,
        float((out * keep_prob).mean()),
        int((out.abs().sum(0) == 0).sum()),
    )


def net_with(keep_probs: tuple[float, ...], seed: int, device: str) -> tuple[nn.MLP, torch.Generator]:
    """A net with weights drawn on the CPU, and the generator its masks come from."""
    generator = torch.Generator(device).manual_seed(seed)
    net = nn.MLP(SIZES, "relu", keep_probs, generator=generator)
    initialize_(net, generator=torch.Generator().manual_seed(seed))
    return net.to(device), generator


def watch_cost(kind: str, digits: Digits, steps: int, seed: int) -> list[float]:
    """J along full-batch gradient descent with dropout off, with fresh masks, or with one mask."""
    keep = KEEP_PROBS[NONE if kind == OFF else EVERY]
    net, generator = net_with(keep, seed, str(digits.x_train.device))
    net.train()

    def rewind(step: int) -> None:
        if kind == FIXED:
            generator.manual_seed(seed)

    return descend(net, digits.x_train, digits.y_train, loss=nn.CrossEntropyLoss(), rate=0.1, steps=steps, each=rewind)


def train_few(keep_probs: tuple[float, ...], digits: Digits, few: int, steps: int, seed: int) -> nn.MLP:
    """Fit the first few digits with momentum."""
    net, _ = net_with(keep_probs, seed, str(digits.x_train.device))
    optimizer = Momentum(net.parameters(), lr=RATE, momentum=MOMENTUM)
    x, y = digits.x_train[:few], digits.y_train[:few]
    descend(net.train(), x, y, loss=nn.CrossEntropyLoss(), steps=steps, optimizer=optimizer)
    return net


def error(net: torch.nn.Module, x: Tensor, y: Tensor, passes: int = 0) -> float:
    """Share misread, with dropout off or by the average of so many passes with it on."""
    return float(error_rate(predict(net, x, dropout_passes=passes), y))


def squared_norm(net: torch.nn.Module) -> float:
    """Σ ‖W‖² over the layers: the L2 penalty with λ/(2m) = 1."""
    return float(Penalty("l2", lambd=2.0, m=1)(net).detach())


def compare(config: DropoutConfig, digits: Digits, results: Results, tick: Callable[[str], None]) -> nn.MLP:
    """Part 3; returns the net with dropout everywhere of the first seed."""
    seeds, steps = (1, 40) if config.quick else (5, 400)
    kept: nn.MLP | None = None
    for name, keep_probs in KEEP_PROBS.items():
        train, dev, norm = [], [], []
        for seed in range(config.seed, config.seed + seeds):
            shuffled = load_digits(seed=seed, device=config.device)
            net = train_few(keep_probs, shuffled, config.few, steps, seed)
            train.append(error(net, shuffled.x_train[: config.few], shuffled.y_train[: config.few]))
            dev.append(error(net, shuffled.x_dev, shuffled.y_dev))
            norm.append(squared_norm(net))
            if name == EVERY and kept is None:
                kept = net
        results.trained[name] = Trained(tuple(train), tuple(dev), tuple(norm))
        tick(f"keep_prob {name}")
    assert kept is not None
    return kept


def average_passes(net: nn.MLP, digits: Digits, counts: tuple[int, ...], results: Results) -> None:
    """Part 4: the average of k passes against dropout switched off: outputs and answers."""
    x, y = digits.x_dev, digits.y_dev
    off = predict(net, x)
    results.off_error = error(net, x, y)
    results.one_pass_errors = tuple(error(net, x, y, passes=1) for _ in range(10))
    for k in counts:
        mean = predict(net, x, dropout_passes=k)
        distance = float((mean - off).norm() / off.norm())
        results.passes[k] = (distance, float((mean.argmax(1) == off.argmax(1)).double().mean()))
        results.average_error = float(error_rate(mean, y))


def measure(config: DropoutConfig, tick: Callable[[str], None]) -> Results:
    """All four parts."""
    digits = load_digits(seed=config.seed, device=config.device)
    results = Results(judged=not config.quick)
    for keep_prob in (0.5, 0.8, 0.9, 1.0):
        results.masks[keep_prob] = mask(keep_prob, 2_000 if config.quick else 20_000, config.seed, config.device)
    tick("masks")
    for kind in (OFF, FRESH, FIXED):
        results.costs[kind] = watch_cost(kind, digits, 20 if config.quick else 100, config.seed)
        tick(f"J with dropout: {kind}")
    net = compare(config, digits, results, tick)
    average_passes(net, digits, (1, 3, 10) if config.quick else (1, 3, 10, 30, 100, 300, 1000), results)
    tick("many passes")
    return results
