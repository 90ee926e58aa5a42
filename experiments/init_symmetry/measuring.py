"""What is measured, and how."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from experiments.config import CommonConfig
from experiments.console import Claim
from experiments.descent import descend, steps_to
from experiments.digits import CLASSES, Digits, load_digits
from torchnotes import init, nn

NAME = "init_symmetry"
HIDDEN, CONSTANT, RATE = 20, 0.1, 0.5
FIRST = 5  # steps in which the units' gradients are compared, before round-off has grown
APART = 0.1  # of the largest weight: units further from one another are no longer copies
STARTS = ("zeros, tanh", "zeros, sigmoid", "constant 0.1", "0.01·randn", "√(1/n)·randn", "10·√(1/n)·randn")
VARIANTS = dict(
    zip(
        STARTS, ("zeros_tanh", "zeros_sigmoid", "constant", "random_0.01", "random_1_over_n", "random_10x"), strict=True
    )
)
RANDOM = STARTS[3:]
SCHEMES: dict[str, Literal["small", "lecun", "xavier", "he"]] = {
    "0.01²": "small",
    "1/n": "lecun",
    "2/(n_in+n_out)": "xavier",
    "2/n": "he",
}
GAINS = (0.25, 0.5, 0.71, 1.0, 1.41, 2.0, 4.0)
FAN = 256


@dataclass(frozen=True)
class InitSymmetryConfig(CommonConfig):
    """Initial weights: why not zeros or a constant, how large at random, and what the misprints would do."""

    steps: int = 400
    """Steps of gradient descent in part 1."""


@dataclass(frozen=True)
class Start:
    """A training run of part 1.

    Attributes:
        distances: largest difference between two hidden units' weights, at every step, relative to the largest weight.
        gradients: the largest difference between two units' gradients in the first steps, relative to the largest.
        costs: J at every step.
        error: on dev images at the end.
        flat: share of hidden outputs on the flat part of tanh (|a| > 0.99) before training.
        moved: whether any hidden weight is another than at the start.
    """

    distances: list[float]
    gradients: float
    costs: list[float]
    error: float
    flat: float
    moved: bool


@dataclass(frozen=True)
class Formula:
    """A printed formula for the weights of a unit with n inputs of variance 1, and the variance of z it gives.

    Attributes:
        measured: variance of z over units and inputs.
        expected: the same in closed form.
        meant: what the notes want: 1 for tanh, 2 for ReLU.
    """

    printed: str
    measured: float
    expected: float
    meant: float


@dataclass
class Results:
    """What the experiment found."""

    starts: dict[str, Start] = field(default_factory=dict)
    one_unit: float = math.nan
    formulas: dict[str, Formula] = field(default_factory=dict)
    race: dict[str, float] = field(default_factory=dict)
    race_limit: int = 0
    gains: dict[float, float] = field(default_factory=dict)
    rates: dict[float, float] = field(default_factory=dict)
    judged: bool = True
    reading: list[Claim] = field(default_factory=list)


def spread(weight: Tensor) -> float:
    """The largest difference between two units' weights, relative to the largest weight; 0 for all zeros."""
    largest = float(weight.abs().max())
    return float((weight.max(dim=0).values - weight.min(dim=0).values).max()) / largest if largest else 0.0


def fresh_net(start: str, digits: Digits, seed: int, hidden: int = HIDDEN) -> nn.MLP:
    """A 64-20-10 net in float64 with the weights of a start, drawn on the CPU."""
    net = nn.MLP([64, hidden, CLASSES], "sigmoid" if "sigmoid" in start else "tanh", dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    if start.startswith("zeros"):
        init.initialize_(net, "zeros")
    elif start.startswith("constant"):
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.fill_(CONSTANT if parameter.dim() == 2 else 0.0)
    elif start.startswith("0.01"):
        init.initialize_(net, "small", generator=generator)
    else:
        init.initialize_(net, "lecun", gain=10.0 if start.startswith("10") else 1.0, generator=generator)
    return net.to(digits.x_train.device)


def error(net: torch.nn.Module, digits: Digits) -> float:
    """The share of dev images misread."""
    with torch.no_grad():
        return float((net(digits.x_dev).argmax(1) != digits.y_dev).double().mean())


def train(start: str, digits: Digits, steps: int, seed: int, hidden: int = HIDDEN) -> Start:
    """Gradient descent from a start, watching the hidden units."""
    net = fresh_net(start, digits, seed, hidden)
    layer = net[0]
    with torch.no_grad():
        flat = float((net[1](layer(digits.x_train)).abs() > 0.99).double().mean())
    before = layer.weight.detach().clone()
    distances: list[float] = []
    differences, largest = [0.0], [0.0]

    def watch(step: int) -> None:
        distances.append(spread(layer.weight.detach()))
        if 0 < step <= FIRST and layer.weight.grad is not None:
            differences.append(spread(layer.weight.grad) * float(layer.weight.grad.abs().max()))
            largest.append(float(layer.weight.grad.abs().max()))

    costs = descend(net, digits.x_train, digits.y_train, loss=nn.CrossEntropyLoss(), rate=RATE, steps=steps, each=watch)
    moved = not torch.equal(before, layer.weight)
    gradients = max(differences) / max(largest) if max(largest) else 0.0
    return Start(distances, gradients, costs, error(net, digits), flat, moved)


def formulas(seed: int, quick: bool) -> dict[str, Formula]:
    """The variance of z = Σ w x over many units and unit-variance inputs, for what the notes print."""
    generator = torch.Generator().manual_seed(seed)
    units, samples = (500, 500) if quick else (2000, 2000)
    x = torch.randn(samples, FAN, generator=generator, dtype=torch.float64)
    w = torch.randn(units, FAN, generator=generator, dtype=torch.float64)

    def drawn(fill: Callable[..., Tensor]) -> Tensor:
        return fill(torch.empty(units, FAN, dtype=torch.float64), generator=generator)

    n = FAN
    listed = {
        "√(1/n), for tanh": ("randn·√(1/n)", drawn(init.lecun_normal_), 1.0, 1.0),
        "G10": ("randn/√n", w / math.sqrt(n), 1.0, 1.0),
        "G2": ("randn·√√(1/n)", w * (1 / n) ** 0.25, math.sqrt(n), 1.0),
        "G3": ("w = 1/n", torch.full_like(w, 1 / n), 1 / n, 1.0),
        "√(2/n), for ReLU": ("randn·√(2/n)", drawn(init.he_normal_), 2.0, 2.0),
        "G4": ("randn·2/√n", w * 2 / math.sqrt(n), 4.0, 2.0),
        "G5": ("randn·(2/n)", w * 2 / n, 4 / n, 2.0),
    }
    return {
        name: Formula(printed, float((x @ weight.T).square().mean()), expected, meant)
        for name, (printed, weight, expected, meant) in listed.items()
    }


def deep_costs(
    digits: Digits, scheme: Literal["small", "lecun", "xavier", "he"], gain: float, rate: float, steps: int, seed: int
) -> list[float]:
    """J of a net of five hidden ReLU layers of 50, step by step."""
    net = nn.MLP([64, *(50,) * 5, CLASSES], "relu")
    init.initialize_(net, scheme, gain=gain, generator=torch.Generator().manual_seed(seed))
    net.to(digits.x_train.device)
    x = digits.x_train.float()
    return descend(net, x, digits.y_train, loss=nn.CrossEntropyLoss(), rate=rate, steps=steps)


def measure(config: InitSymmetryConfig, tick: Callable[[str], None]) -> Results:
    """All three parts."""
    digits = load_digits(seed=config.seed, device=config.device, dtype=torch.float64)
    steps = min(config.steps, 60) if config.quick else config.steps
    results = Results(judged=not config.quick, race_limit=20 if config.quick else 150)
    for start in STARTS:
        results.starts[start] = train(start, digits, steps, config.seed)
        tick(start)
    results.one_unit = train("constant 0.1", digits, steps, config.seed, hidden=1).error
    results.formulas = formulas(config.seed, config.quick)
    tick("formulas")
    for variance, scheme in SCHEMES.items():
        rates = (0.1,) if config.quick else (0.1, 0.3)
        runs = [deep_costs(digits, scheme, 1.0, rate, results.race_limit + 1, config.seed) for rate in rates]
        results.race[variance] = min(steps_to(costs, 0.3) for costs in runs)
        tick(f"variance {variance}")
    for gain in GAINS[3:4] if config.quick else GAINS:
        results.gains[gain] = deep_costs(digits, "he", gain, 0.1, results.race_limit, config.seed)[-1]
        results.rates[gain] = deep_costs(digits, "he", 1.0, 0.1 * gain, results.race_limit, config.seed)[-1]
        tick(f"gain and rate × {gain:g}")
    return results
