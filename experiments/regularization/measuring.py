"""What is measured, and how."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from experiments.config import CommonConfig
from experiments.console import Claim
from experiments.datasets import Sets, split
from experiments.descent import descend
from experiments.digits import CLASSES
from experiments.nets import error_rate
from torchnotes import nn
from torchnotes.data import augment
from torchnotes.init import initialize_
from torchnotes.optim import Momentum
from torchnotes.regularization import Penalty
from torchnotes.training import EarlyStopping, evaluate, predict

NAME = "regularization"
SIZES = (64, 100, 50, CLASSES)
RATE, MOMENTUM, EVERY = 0.1, 0.9, 10  # dev cost every so many steps
NONE, L2, L1, IMAGES, STOP, DROP = "none", "L2", "L1", "augmentation", "early stopping", "dropout"
STRENGTHS: dict[str, tuple[float, ...]] = {  # λ, λ, pixels of shift and degrees / 10, patience, keep_prob
    NONE: (0.0,),
    L2: (3.0, 10.0),
    L1: (0.3, 1.0),
    IMAGES: (1.0,),
    STOP: (5.0,),
    DROP: (0.5, 0.8),
}
SMALL = 0.01  # of the largest weight of its layer: next to nothing


@dataclass(frozen=True)
class RegularizationConfig(CommonConfig):
    """Regularisation: none, L2, L1, more images, early stopping and dropout compared on few digits."""

    few: int = 150
    """Training digits."""
    wrong: float = 0.2
    """Share of training labels made wrong in the second half."""

    def __post_init__(self) -> None:
        """Refuse a share that is none."""
        super().__post_init__()
        if not 0 <= self.wrong < 1:
            raise ValueError(f"wrong must be a share of the labels, in [0, 1), got {self.wrong}; 0.2 is a fifth.")


@dataclass(frozen=True)
class Trained:
    """One run.

    Attributes:
        train: error on the training digits, by the labels it was given.
        dev: on dev images.
        test: on test images.
        norm: Σ ‖W‖².
        sparse: share of weights below a hundredth of their layer's largest.
        dev_costs: every ten steps.
        stopped: the step whose weights were kept.
    """

    train: float
    dev: float
    test: float
    norm: float
    sparse: float
    dev_costs: tuple[float, ...]
    stopped: int


@dataclass
class Results:
    """What the experiment found; for every remedy the runs at the strength that does best on dev images.

    Attributes:
        clean: with right labels.
        runs: with some of the training labels wrong.
    """

    strengths: dict[tuple[str, str], float] = field(default_factory=dict)
    clean: dict[str, list[Trained]] = field(default_factory=dict)
    runs: dict[str, list[Trained]] = field(default_factory=dict)
    wrong: float = 0.2
    with_penalty: list[float] = field(default_factory=list)
    without_penalty: list[float] = field(default_factory=list)
    pictures: Tensor | None = None
    judged: bool = True
    reading: list[Claim] = field(default_factory=list)


def few_digits(config: RegularizationConfig, seed: int) -> Sets:
    """A few digits to train on, 400 for dev, the rest for test; pixels in 0…1, so that images can be augmented."""
    from sklearn import datasets

    bunch = datasets.load_digits()
    x, y = torch.from_numpy(bunch.data).float() / 16, torch.from_numpy(bunch.target)
    m = len(x)
    sets = split(x, y, seed=seed, fractions=(config.few / m, 400 / m, 1 - (config.few + 400) / m))
    return sets.to(config.device)


def spoil(sets: Sets, share: float, seed: int) -> Sets:
    """Give a share of the training digits another label; dev and test set stay right."""
    generator, y = torch.Generator().manual_seed(seed), sets.y_train.cpu()
    chosen = torch.randperm(len(y), generator=generator)[: round(share * len(y))]
    other = torch.randint(1, CLASSES, (len(chosen),), generator=generator)
    spoilt = y.clone()
    spoilt[chosen] = (y[chosen] + other) % CLASSES
    return replace(sets, y_train=spoilt.to(sets.y_train.device))


def more_images(x: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Each image turned, cropped and distorted a little; digits are not flipped."""
    images = x.view(-1, 1, 8, 8)
    return augment(
        images, flip=0.0, crop=0.15 * strength, rotation=10 * strength, distortion=0.03 * strength, generator=generator
    ).flatten(1)


def small_share(net: torch.nn.Module) -> float:
    """The share of weights that are below a hundredth of their layer's largest."""
    weights = [w.detach().abs() for w in Penalty.weights(net).values()]
    small = sum(int((w < SMALL * w.max()).sum()) for w in weights)
    return small / sum(w.numel() for w in weights)


def train(remedy: str, strength: float, sets: Sets, steps: int, seed: int) -> Trained:
    """Full-batch momentum with one remedy."""
    device = sets.x_train.device
    masks = torch.Generator(device).manual_seed(seed)
    net = nn.MLP(SIZES, "relu", strength if remedy == DROP else 1.0, generator=masks)
    initialize_(net, generator=torch.Generator().manual_seed(seed))
    net.to(device)
    loss, optimizer = nn.CrossEntropyLoss(), Momentum(net.parameters(), lr=RATE, momentum=MOMENTUM)
    penalties: dict[str, Literal["l1", "l2"]] = {L1: "l1", L2: "l2"}
    kind = penalties.get(remedy)
    penalty = Penalty(kind, lambd=strength, m=len(sets.x_train)) if kind else None
    stopping = EarlyStopping(patience=int(strength)) if remedy == STOP else None
    dev_costs: list[float] = []
    x, y, done = sets.x_train, sets.y_train, 0
    while done < steps:
        for _ in range(EVERY):
            inputs = more_images(x, strength, masks) if remedy == IMAGES else x
            descend(net, inputs, y, loss=loss, steps=1, optimizer=optimizer, penalty=penalty)
        done += EVERY
        dev_costs.append(evaluate(net, sets.x_dev, sets.y_dev, loss=loss)["loss"])
        if stopping is not None and stopping.update(dev_costs[-1], net):
            break
    if stopping is not None:
        stopping.restore(net)
        done = EVERY * stopping.best_epoch
    errors = [
        float(error_rate(predict(net, a), b)) for a, b in ((x, y), (sets.x_dev, sets.y_dev), (sets.x_test, sets.y_test))
    ]
    norm = float(Penalty("l2", lambd=2.0, m=1)(net).detach())
    return Trained(errors[0], errors[1], errors[2], norm, small_share(net), tuple(dev_costs), done)


def watch_cost(sets: Sets, steps: int, seed: int) -> tuple[list[float], list[float]]:
    """J with and without the L2 term along gradient descent on J with it, from weights that are too large."""
    net = nn.MLP(SIZES, "relu")
    initialize_(net, gain=1.5, generator=torch.Generator().manual_seed(seed))
    net.to(sets.x_train.device)
    loss, penalty = nn.CrossEntropyLoss(), Penalty("l2", lambd=10.0, m=len(sets.x_train))
    plain: list[float] = []

    def note(step: int) -> None:
        with torch.no_grad():
            plain.append(float(loss(net(sets.x_train), sets.y_train)))

    whole = descend(net, sets.x_train, sets.y_train, loss=loss, rate=0.1, steps=steps, penalty=penalty, each=note)
    return whole, plain


def measure(config: RegularizationConfig, tick: Callable[[str], None]) -> Results:
    """All three parts."""
    seeds, steps = (1, 20) if config.quick else (4, 500)
    results = Results(judged=not config.quick, wrong=config.wrong)
    numbers = range(config.seed, config.seed + seeds)
    sets = {seed: few_digits(config, seed) for seed in numbers}
    spoilt = {seed: spoil(sets[seed], config.wrong, seed) for seed in numbers}
    for name, runs, data in (("right", results.clean, sets), ("wrong", results.runs, spoilt)):
        for remedy, strengths in STRENGTHS.items():
            tried = strengths[:1] if config.quick else strengths
            found = {strength: [train(remedy, strength, data[n], steps, n) for n in numbers] for strength in tried}
            best = min(found, key=lambda strength: statistics.fmean(run.dev for run in found[strength]))
            results.strengths[name, remedy], runs[remedy] = best, found[best]
            tick(f"{remedy}, {name} labels")
    first = sets[config.seed]
    results.with_penalty, results.without_penalty = watch_cost(first, 20 if config.quick else 600, config.seed)
    generator = torch.Generator(config.device).manual_seed(config.seed)
    rows = [first.x_train[:8]] + [more_images(first.x_train[:8], 1.0, generator) for _ in range(3)]
    results.pictures = torch.stack(rows).view(4, 8, 8, 8).cpu()
    tick("J with and without the penalty")
    return results
