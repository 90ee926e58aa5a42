"""What is run: nets on the planar flower, the collapse of linear layers, the race of the activations."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from experiments.config import CommonConfig
from experiments.console import Claim
from experiments.datasets import breast_cancer, moons, planar_flower, split
from experiments.descent import Cost, binary_error, descend, steps_to
from experiments.digits import load_digits
from experiments.nets import new_net
from torchnotes import nn, ops
from torchnotes.optim import Momentum

NAME = "shallow_and_deep"
ACTIVATIONS = {"sigmoid": "sigmoid", "tanh": "tanh", "relu": "ReLU", "leaky_relu": "leaky ReLU"}
DEEP = {"3 layers of 8": (8, 8, 8), "5 layers of 8": (8,) * 5}
LINEAR = "5 linear layers"
RATE, MOMENTUM = 0.2, 0.9


@dataclass(frozen=True)
class ShallowAndDeepConfig(CommonConfig):
    """Shallow and deep networks: what hidden layers add, and which activation learns in the fewest steps."""

    samples: int = 400
    """Training points of the planar flower."""


@dataclass(frozen=True)
class Size:
    """How much is run."""

    units: tuple[int, ...] = (1, 2, 3, 5, 20, 50)
    seeds: int = 3
    flower_steps: int = 600
    rates: tuple[float, ...] = (1.0, 3.0, 0.3, 10.0)  # those in the middle first: the others stop sooner
    race_seeds: int = 3
    shorter: int = 1

    @classmethod
    def of(cls, config: CommonConfig) -> Size:
        """What the command line asks for."""
        if config.quick:
            return cls(units=(1, 4, 20), seeds=1, flower_steps=100, rates=(1.0,), race_seeds=1, shorter=20)
        return cls()


@dataclass(frozen=True)
class Trained:
    """A net on the flower."""

    net: nn.MLP
    train_error: float
    test_error: float

    @property
    def parameters(self) -> int:
        """How many numbers were learnt."""
        return sum(p.numel() for p in self.net.parameters())


@dataclass(frozen=True)
class Problem:
    """One problem of the race.

    Attributes:
        sizes: of the net.
        target: the cost to reach.
        steps: how many may be taken.
    """

    name: str
    x: Tensor
    y: Tensor
    loss: Cost
    sizes: tuple[int, ...]
    target: float
    steps: int


@dataclass(frozen=True)
class Lap:
    """An activation on a problem, at its best rate.

    Attributes:
        rate: the best of the grid.
        steps: to the target, one number a seed; infinite where it was not reached.
        costs: J along the first seed's run.
        limit: the steps allowed.
    """

    rate: float
    steps: tuple[float, ...]
    costs: list[float]
    limit: int

    @property
    def median(self) -> float:
        """Steps of the middle seed."""
        return statistics.median(self.steps)


@dataclass
class Results:
    """What the experiment found."""

    x: Tensor
    y: Tensor
    single: list[Trained] = field(default_factory=list)
    shallow: dict[int, list[Trained]] = field(default_factory=dict)
    deep: dict[str, list[Trained]] = field(default_factory=dict)
    collapse: float = math.nan
    slopes: dict[str, tuple[float, float]] = field(default_factory=dict)
    race: dict[tuple[str, str], Lap] = field(default_factory=dict)
    shapes: list[str] = field(default_factory=list)
    test_samples: int = 0
    judged: bool = True
    reading: list[Claim] = field(default_factory=list)


def pieces(config: ShallowAndDeepConfig) -> int:
    """Pieces of work."""
    size = Size.of(config)
    return len(size.units) + len(DEEP) + 2 + len(ACTIVATIONS) * 5


def measure(config: ShallowAndDeepConfig, tick: Callable[[str], None]) -> Results:
    """All three parts."""
    size = Size.of(config)
    x, y = (t.to(config.device) for t in planar_flower(config.samples, seed=config.seed))
    fresh = [t.to(config.device) for t in planar_flower(4000, seed=config.seed + 1_000)]
    results = Results(x, y, test_samples=len(fresh[0]), judged=not config.quick)

    def trained(hidden: Sequence[int], activation: str = "tanh") -> list[Trained]:
        found = []
        for seed in range(config.seed, config.seed + size.seeds):
            net = new_net([2, *hidden, 1], activation, seed=seed, device=config.device)
            optimizer = Momentum(net.parameters(), lr=RATE, momentum=MOMENTUM)
            descend(net, x, y, loss=nn.BCEWithLogitsLoss(), steps=size.flower_steps, optimizer=optimizer)
            found.append(Trained(net, binary_error(net, x, y), binary_error(net, *fresh)))
        return found

    results.single = trained(())
    tick("logistic regression")
    for units in size.units:
        results.shallow[units] = trained((units,))
        tick(f"one hidden layer of {units}")
    for name, hidden in DEEP.items():
        results.deep[name] = trained(hidden)
        tick(name)
    results.deep[LINEAR] = trained((8, 8, 8, 8), "identity")
    results.collapse = collapse(results.deep[LINEAR][0].net, x)
    results.shapes = shapes(results.deep["3 layers of 8"][0].net)
    results.slopes = {name: slopes(name) for name in ACTIVATIONS}
    tick(LINEAR)
    for problem in problems(config, size):
        for activation in ACTIVATIONS:
            results.race[problem.name, activation] = lap(problem, activation, config, size)
            tick(f"{problem.name}, {activation}")
    return results


def collapse(net: nn.MLP, x: Tensor) -> float:
    """How far a linear net is from the one map (W, b) its layers multiply out to, relative, in float64."""
    weight = torch.eye(x.shape[1], dtype=torch.float64, device=x.device)
    bias = torch.zeros(1, x.shape[1], dtype=torch.float64, device=x.device)
    double = new_net([2, 8, 8, 8, 8, 1], "identity", seed=0, device=x.device).double()
    double.load_state_dict(net.state_dict())
    for layer in double:
        assert isinstance(layer, nn.Linear)
        assert layer.bias is not None
        weight, bias = layer.weight @ weight, bias @ layer.weight.T + layer.bias
    with torch.no_grad():
        deep, one = double(x.double()), x.double() @ weight.T + bias
        return float((deep - one).abs().max() / deep.abs().max())


def shapes(net: nn.MLP) -> list[str]:
    """W and its gradient, layer by layer: both (n_l, n_{l-1})."""
    return [
        f"{tuple(layer.weight.shape)}"
        for layer in net
        if isinstance(layer, nn.Linear)
        and layer.weight.grad is not None
        and layer.weight.grad.shape == layer.weight.shape == (layer.out_features, layer.in_features)
    ]


def slopes(activation: str) -> tuple[float, float]:
    """g'(0) and g'(10), by the hand-derived backward."""
    z = torch.tensor([0.0, 10.0], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(getattr(ops, activation)(z).sum(), z)
    return float(slope[0]), float(slope[1])


def problems(config: ShallowAndDeepConfig, size: Size) -> list[Problem]:
    """Five of them, from two features to 64 pixels, shallow and deep."""
    tumours, labels, _ = breast_cancer()
    cancer = split(tumours, labels, seed=config.seed).normalized()
    digits = load_digits(seed=config.seed)
    binary, classes = nn.BCEWithLogitsLoss(), nn.CrossEntropyLoss()
    flower, half_moons = planar_flower(400, seed=config.seed), moons(400, seed=config.seed)
    listed = [
        ("planar flower, 20 units", *flower, binary, (2, 20, 1), 0.35, 300),
        ("moons, 20 units", *half_moons, binary, (2, 20, 1), 0.15, 300),
        ("breast cancer, 20 units", cancer.x_train, cancer.y_train, binary, (30, 20, 1), 0.05, 200),
        ("digits, 50 units", digits.x_train, digits.y_train, classes, (64, 50, 10), 0.1, 100),
        ("digits, 5 layers of 50", digits.x_train, digits.y_train, classes, (64, *(50,) * 5, 10), 0.1, 100),
    ]
    return [
        Problem(name, x.to(config.device), y.to(config.device), loss, sizes, target, steps // size.shorter)
        for name, x, y, loss, sizes, target, steps in listed
    ]


def lap(problem: Problem, activation: str, config: ShallowAndDeepConfig, size: Size) -> Lap:
    """Run every rate with every seed; the best rate is the one whose middle seed arrives first."""
    found: dict[float, list[list[float]]] = {}
    limit = problem.steps
    for rate in size.rates:
        found[rate] = []
        for seed in range(config.seed, config.seed + size.race_seeds):
            net = new_net(problem.sizes, activation, seed=seed, device=config.device)
            costs = descend(
                net, problem.x, problem.y, loss=problem.loss, rate=rate, steps=limit + 1, until=problem.target
            )
            found[rate].append(costs)
        limit = int(min(limit, _median(found[rate], problem.target)))  # a slower rate need not be run any longer
    best = min(found, key=lambda rate: (_median(found[rate], problem.target), _last(found[rate][0])))
    steps = tuple(steps_to(costs, problem.target) for costs in found[best])
    return Lap(best, steps, found[best][0], problem.steps)


def _median(runs: list[list[float]], target: float) -> float:
    return statistics.median(steps_to(costs, target) for costs in runs)


def _last(costs: list[float]) -> float:
    return costs[-1] if math.isfinite(costs[-1]) else math.inf
