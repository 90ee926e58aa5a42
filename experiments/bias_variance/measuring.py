"""What is measured, and how."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from experiments.config import CommonConfig
from experiments.console import Claim
from experiments.digits import CLASSES
from experiments.nets import error_rate, new_net
from torchnotes import nn
from torchnotes.data import InputNormalizer
from torchnotes.optim import GradientDescent, Momentum, l2_groups
from torchnotes.training import FitDiagnosis, diagnose_fit, evaluate, fit, predict

NAME = "bias_variance"
BATCH, POOL = 64, 1000  # the other 797 digits are the dev set
TOLERANCE = 0.04  # a gap up to this is low: the notes call 1 point low and 10 points high
NOTES = {  # training error, dev error, base error → the notes' verdict
    (0.01, 0.11, 0.0): "high variance",
    (0.15, 0.16, 0.0): "high bias",
    (0.15, 0.30, 0.0): "high bias and high variance",
    (0.005, 0.01, 0.0): "low bias, low variance",
    (0.15, 0.16, 0.15): "low bias, low variance",
}


@dataclass(frozen=True)
class BiasVarianceConfig(CommonConfig):
    """Bias and variance: errors over size of net and of data, and the recipe followed until both are low."""

    dev: int = 797
    """Dev images, at most 797."""


@dataclass(frozen=True)
class Setup:
    """How a net is trained: what the recipe changes.

    Attributes:
        units: of the one hidden layer.
        samples: of the training set.
        momentum: 0 is plain gradient descent.
        steps: of the optimiser.
        decay: λ of the L2 penalty λ/(2m) ‖W‖².
    """

    units: int = 3
    samples: int = 100
    momentum: float = 0.0
    steps: int = 100
    decay: float = 0.0


@dataclass(frozen=True)
class Fit:
    """Errors of a trained net."""

    train: float
    dev: float


@dataclass(frozen=True)
class Step:
    """One step of the recipe: what was done, the errors after it, and what they mean."""

    done: str
    against: str
    setup: Setup
    errors: Fit
    diagnosis: FitDiagnosis


@dataclass(frozen=True)
class Calls:
    """Judgements of one net by few dev images: shares called low, high and unclear; and what it truly is."""

    truth: str
    images: int
    without: dict[str, float]
    with_sizes: dict[str, float]


@dataclass
class Results:
    """What the experiment found."""

    verdicts: dict[tuple[float, float, float], str] = field(default_factory=dict)
    sizes: dict[int, list[Fit]] = field(default_factory=dict)
    data: dict[int, list[Fit]] = field(default_factory=dict)
    recipe: list[Step] = field(default_factory=list)
    calls: Calls | None = None
    judged: bool = True
    reading: list[Claim] = field(default_factory=list)


@dataclass(frozen=True)
class Pool:
    """All digits in one order: the first 1,000 to train on, the rest for dev."""

    x: Tensor
    y: Tensor
    dev: int

    @classmethod
    def load(cls, seed: int, dev: int, device: str) -> Pool:
        """Shuffle by seed."""
        from sklearn import datasets

        bunch = datasets.load_digits()
        order = torch.randperm(len(bunch.data), generator=torch.Generator().manual_seed(seed))
        x, y = torch.from_numpy(bunch.data).float()[order], torch.from_numpy(bunch.target)[order]
        return cls(x.to(device), y.to(device), dev)

    def sets(self, samples: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """The first samples to train on, and the dev set, normalised by the former."""
        normalizer = InputNormalizer().fit(self.x[:samples])
        rest = slice(POOL, POOL + self.dev)
        return (normalizer(self.x[:samples]), self.y[:samples]), (normalizer(self.x[rest]), self.y[rest])


def train(setup: Setup, pool: Pool, seed: int) -> tuple[nn.MLP, Fit]:
    """Train by mini-batches and take both errors."""
    known, unknown = pool.sets(setup.samples)
    net = new_net([64, setup.units, CLASSES], seed=seed, device=pool.x.device)
    groups = l2_groups(net, setup.decay / setup.samples)
    optimizer = (
        Momentum(groups, lr=0.05, momentum=setup.momentum) if setup.momentum else GradientDescent(groups, lr=0.05)
    )
    epochs = max(1, round(setup.steps / -(-setup.samples // BATCH)))
    loss = nn.CrossEntropyLoss()
    fit(net, known, loss=loss, optimizer=optimizer, epochs=epochs, batch_size=BATCH, seed=seed, progress=False)
    errors = [evaluate(net, *data, loss=loss, metrics={"error": error_rate})["error"] for data in (known, unknown)]
    return net, Fit(*errors)


def diagnose(errors: Fit, setup: Setup, dev: int) -> FitDiagnosis:
    """What the errors mean, with their sampling error; a person reads these digits without fault."""
    return diagnose_fit(errors.train, errors.dev, n_train=setup.samples, n_dev=dev, tolerance=TOLERANCE)


Remedy = tuple[str, Callable[[Setup], Setup]]
AGAINST_BIAS: tuple[Remedy, ...] = (
    ("a bigger net: 30 units", lambda s: replace(s, units=30)),
    ("another optimiser: momentum 0.9", lambda s: replace(s, momentum=0.9)),
    ("train longer: 600 steps", lambda s: replace(s, steps=600)),
    ("a bigger net: 100 units", lambda s: replace(s, units=100)),
)
AGAINST_VARIANCE: tuple[Remedy, ...] = (
    ("more data: 300 digits", lambda s: replace(s, samples=300)),
    ("more data: 1,000 digits", lambda s: replace(s, samples=1000, steps=1200)),
    ("regularise: L2 with λ = 3", lambda s: replace(s, decay=3.0)),
    ("another architecture: 100 units", lambda s: replace(s, units=100)),
)


def follow_recipe(pool: Pool, seed: int, most: int) -> list[Step]:
    """Bias first, then variance, one remedy at a time, until both are low or the remedies are used up."""
    setup, remedies = Setup(), {"bias": list(AGAINST_BIAS), "variance": list(AGAINST_VARIANCE)}
    steps, done, against = [], "start: 3 units, 100 digits, 100 steps", ""
    for _ in range(most):
        _, errors = train(setup, pool, seed)
        diagnosis = diagnose(errors, setup, pool.dev)
        steps.append(Step(done, against, setup, errors, diagnosis))
        against = next((name for name in remedies if getattr(diagnosis, name).level != "low"), "")
        if not against or not remedies[against]:
            break
        done, change = remedies[against].pop(0)
        setup = change(setup)
    return steps


def judge_by_few(setup: Setup, pool: Pool, seed: int, images: int) -> Calls:
    """Judge the variance of a net on many random small dev sets, with and without its sampling error."""
    net, errors = train(setup, pool, seed)
    truth = diagnose_fit(errors.train, errors.dev, tolerance=TOLERANCE).variance.level
    _, (x, y) = pool.sets(setup.samples)
    wrong = (predict(net, x).argmax(1) != y).cpu()
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, dict[str, float]] = {kind: dict.fromkeys(("low", "high", "unclear"), 0.0) for kind in "ab"}
    for _ in range(400):
        few = float(wrong[torch.randperm(len(wrong), generator=generator)[:images]].double().mean())
        plain = diagnose_fit(errors.train, few, tolerance=TOLERANCE)
        sized = diagnose_fit(errors.train, few, n_train=setup.samples, n_dev=images, tolerance=TOLERANCE)
        found["a"][plain.variance.level] += 1 / 400
        found["b"][sized.variance.level] += 1 / 400
    return Calls(truth, images, found["a"], found["b"])


def measure(config: BiasVarianceConfig, tick: Callable[[str], None]) -> Results:
    """All four parts."""
    quick = config.quick
    results = Results(judged=not quick)
    results.verdicts = {k: diagnose_fit(k[0], k[1], base_error=k[2]).verdict for k in NOTES}
    numbers = range(config.seed, config.seed + (1 if quick else 3))
    pools = {seed: Pool.load(seed, config.dev, config.device) for seed in numbers}
    trained = Setup(momentum=0.9, steps=30 if quick else 400)
    for units in (1, 32) if quick else (1, 2, 4, 8, 16, 32, 64, 128):
        setup = replace(trained, units=units, samples=300)
        results.sizes[units] = [train(setup, pools[seed], seed)[1] for seed in numbers]
        tick(f"{units} units")
    for samples in (50, 300) if quick else (50, 100, 200, 400, 700, 1000):
        setup = replace(trained, units=64, samples=samples)
        results.data[samples] = [train(setup, pools[seed], seed)[1] for seed in numbers]
        tick(f"{samples} digits")
    results.recipe = follow_recipe(pools[config.seed], config.seed, 3 if quick else 9)
    tick("the recipe")
    setup = replace(trained, units=64, samples=200)
    results.calls = judge_by_few(setup, pools[config.seed], config.seed, 50)
    tick("few dev images")
    return results
