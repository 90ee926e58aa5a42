"""What is measured."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import mean

import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector

from experiments.config import CommonConfig
from experiments.console import Claim
from experiments.digits import CLASSES, Digits, load_digits
from experiments.nets import error_rate, new_net
from experiments.optimizers.critical import net_points, positive_share
from experiments.optimizers.rules import CURVATURE, RULES, Rule, bowl, plateau, saddle, walk
from torchnotes.ops import cross_entropy
from torchnotes.optim import Adam, Momentum, RMSprop
from torchnotes.training import fit

NAME = "optimizers"
START = [-8.0, 1.0]
DONE = 1e-3  # of the height at the start
BOWL_RATES = (0.01, 0.02, 0.03, 0.038, 0.06, 0.1, 0.2, 0.3, 0.5)
DIGIT_RATES = {
    "gradient descent": (0.1, 0.3, 1.0),
    "momentum": (0.1, 0.3, 1.0),
    "RMSprop": (0.001, 0.003, 0.01),
    "Adam": (0.003, 0.01, 0.03),
}
RATE = 0.1  # on plateau and saddle, for all
EDGE, FAR, FURTHER = 2.0, 6.0, 12.0  # where the plateau ends, and where one starts on it
ASIDE, LEFT = 1e-6, 0.5  # start beside the saddle; |y| at which it has been left
JITTER = 1e-3  # noise of the gradient
NETS = (1, 2, 3, 4)  # hidden units of the nets whose critical points are looked for


@dataclass(frozen=True)
class OptimizersConfig(CommonConfig):
    """Gradient descent, momentum, RMSprop and Adam on a bowl, a plateau, a saddle and the digits."""

    patience: int = 8000
    """Steps after which a plateau counts as not left."""


@dataclass(frozen=True)
class Training:
    """A rule on the digits at its best rate: training cost in each epoch and dev error at the end, means over seeds."""

    rate: float
    costs: tuple[float, ...]
    error: float


@dataclass
class Results:
    """What the experiment found.

    Attributes:
        bowl: by rule, the rate at which it is settled soonest, and the step from which it is.
        paths: the points visited at that rate.
        swing: Σ|Δy| of gradient descent and of momentum at the same rate, just below the first one's limit.
        limits: the largest stable rate of both, measured and known.
        first: |Δy|/|Δx| of the first step, by rule.
        plateau: steps to its edge, by rule; None where patience ended.
        plateau_known: the same of gradient descent, by the integral of dw over its speed.
        further: steps of RMSprop and Adam from further out, by where ε stands.
        saddle: steps to leave it, by rule, from 1e-6 beside it; from exactly on it without noise; and with.
        positive: by dimension, the share of random symmetric matrices with only positive eigenvalues.
        nets: by number of parameters, critical points found and minima among them.
        digits: trainings on the digits.
        conversion: largest difference of weights between the two forms of momentum, relative to the way gone.
        first_adam: length of Adam's first step in units of α: right, S corrected by β₁, no correction.
        epsilon: largest difference of weights between the two places of ε after training, relative to the way gone.
        epsilon_costs: training cost with ε outside the root, and inside.
    """

    judged: bool = True
    bowl: dict[str, tuple[float, int]] = field(default_factory=dict)
    paths: dict[str, list[list[float]]] = field(default_factory=dict)
    swing: tuple[float, float] = (0.0, 0.0)
    limits: dict[str, tuple[float, float]] = field(default_factory=dict)
    first: dict[str, float] = field(default_factory=dict)
    plateau: dict[str, int | None] = field(default_factory=dict)
    plateau_known: float = 0.0
    further: dict[tuple[str, str], int | None] = field(default_factory=dict)
    saddle: dict[str, tuple[int | None, int | None, int | None]] = field(default_factory=dict)
    positive: dict[int, float] = field(default_factory=dict)
    matrices: int = 0
    nets: dict[int, tuple[int, int]] = field(default_factory=dict)
    digits: dict[str, Training] = field(default_factory=dict)
    conversion: float = math.inf
    first_adam: tuple[float, float, float] = (0.0, 0.0, 0.0)
    epsilon: float = math.inf
    epsilon_costs: tuple[float, float] = (1.0, 2.0)
    reading: list[Claim] = field(default_factory=list)


def settled(points: list[list[float]]) -> int | None:
    """The step from which the height on the bowl stays below the target."""
    heights = [0.5 * (x * x + CURVATURE * y * y) for x, y in points]
    above = [step for step, height in enumerate(heights) if not height < DONE * heights[0]]
    return above[-1] + 1 if above[-1] + 1 < len(points) else None


def on_the_bowl(config: OptimizersConfig, results: Results, tick: Callable[[str], None]) -> None:
    """Part 1."""
    for name, rule in RULES.items():
        found: dict[float, tuple[int, list[list[float]]]] = {}
        for rate in BOWL_RATES[3:6] if config.quick else BOWL_RATES:
            points = walk(bowl, START, rule, rate, 150 if config.quick else 600, device=config.device)
            step = settled(points)
            if step is not None:
                found[rate] = (step, points)
        if found:
            best = min(found, key=lambda rate: found[rate][0])
            results.bowl[name] = (best, found[best][0])
            results.paths[name] = found[best][1][: found[best][0] + 1]
        one = walk(bowl, [1.0, 1.0], rule, 1e-3, 1, device=config.device)
        results.first[name] = abs(one[1][1] - 1) / abs(one[1][0] - 1)
        tick(f"bowl: {name}")
    two = (RULES["gradient descent"], RULES["momentum"])
    ways = [walk(bowl, START, rule, 0.038, 200, device=config.device) for rule in two]
    swings = [sum(abs(b[1] - a[1]) for a, b in pairwise(way)) for way in ways]
    results.swing = (swings[0], swings[1])
    known = (2 / CURVATURE, 2 * 1.9 / 0.1 / CURVATURE)  # 2/λ, and 2(1 + β)/((1 − β)λ) for β = 0.9
    for name, rule, limit in zip(("gradient descent", "momentum"), two, known, strict=True):
        results.limits[name] = (_limit(rule, (limit / 3, limit * 3), 6 if config.quick else 12), limit)
    tick("bowl: largest rates")


def _limit(rule: Rule, between: tuple[float, float], halvings: int) -> float:
    """Halve the range in which the largest rate lies that does not diverge, on a logarithmic scale."""
    low, high = between
    for _ in range(halvings):
        middle = math.sqrt(low * high)
        grew = abs(walk(bowl, [0.0, 1e-3], rule, middle, 200)[-1][1]) > 1e-3
        low, high = (low, middle) if grew else (middle, high)
    return math.sqrt(low * high)


def plateau_and_saddle(config: OptimizersConfig, results: Results, tick: Callable[[str], None]) -> None:
    """Part 2: the same rate for all; in one coordinate RMSprop and Adam step by about the rate whatever the slope."""
    patience = 250 if config.quick else config.patience

    def edge(start: float, rule: Rule) -> int | None:
        points = walk(plateau, [start], rule, RATE, patience, until=lambda w: float(w) < EDGE, device=config.device)
        return len(points) - 1 if points[-1][0] < EDGE else None

    def leave(y: float, rule: Rule, noise: float) -> int | None:
        def gone(w: Tensor) -> bool:
            return abs(float(w[1])) > LEFT

        points = walk(
            saddle, [1.0, y], rule, RATE, 400, until=gone, noise=noise, seed=config.seed, device=config.device
        )
        return len(points) - 1 if abs(points[-1][1]) > LEFT else None

    for name, rule in RULES.items():
        results.plateau[name] = edge(FAR, rule)
        results.saddle[name] = (leave(ASIDE, rule, 0.0), leave(0.0, rule, 0.0), leave(0.0, rule, JITTER))
        tick(f"plateau and saddle: {name}")
    # dw/dt = −α σ²(1 − σ), and 1/(σ²(1 − σ)) = (1 + e⁻ʷ)² (1 + eʷ): integrate from the edge to the start
    results.plateau_known = (_time(FAR) - _time(EDGE)) / RATE
    forms: dict[tuple[str, str], Rule] = {
        ("RMSprop", "outside"): lambda p, rate: RMSprop(p, lr=rate, alpha=0.9),
        ("RMSprop", "inside"): lambda p, rate: RMSprop(p, lr=rate, alpha=0.9, eps_form="inside"),
        ("Adam", "outside"): lambda p, rate: Adam(p, lr=rate),
        ("Adam", "inside"): lambda p, rate: Adam(p, lr=rate, eps_form="inside"),
    }
    results.further = {key: edge(FURTHER, rule) for key, rule in forms.items()}
    tick("plateau: where ε stands")


def _time(w: float) -> float:
    """∫ (1 + e⁻ʷ)² (1 + eʷ) dw = eʷ + 3w − 3e⁻ʷ − ½e⁻²ʷ."""
    return math.exp(w) + 3 * w - 3 * math.exp(-w) - 0.5 * math.exp(-2 * w)


def critical_points(config: OptimizersConfig, results: Results, tick: Callable[[str], None]) -> None:
    """Part 3."""
    results.matrices = 20_000 if config.quick else 400_000
    for dimension in range(1, 4 if config.quick else 8):
        results.positive[dimension] = positive_share(dimension, results.matrices, config.seed)
    tick("random matrices")
    for hidden in NETS[:1] if config.quick else NETS:
        results.nets[4 * hidden + 1] = net_points(
            hidden, 40 if config.quick else 120, 40 if config.quick else 100, config.seed
        )
        tick(f"critical points of a net of {4 * hidden + 1} parameters")


def train(digits: Digits, optimizer_of: Rule, rate: float, epochs: int, seed: int) -> tuple[Training, Tensor, float]:
    """A net of two hidden layers; the run, its last weights as a vector, and how far they went."""
    net = new_net((64, 32, 16, CLASSES), seed=seed, device=digits.x_train.device)
    start = parameters_to_vector(net.parameters()).detach().clone()
    run = fit(
        net, (digits.x_train, digits.y_train), loss=cross_entropy, optimizer=optimizer_of(list(net.parameters()), rate),
        epochs=epochs, dev=(digits.x_dev, digits.y_dev), metrics={"error": error_rate}, batch_size=64, progress=False,
        seed=seed,
    )  # fmt: skip
    costs = tuple(record["train_loss"] for record in run.history)
    end = parameters_to_vector(net.parameters()).detach()
    return Training(rate, costs, run.history[-1]["dev_error"]), end, float((end - start).abs().max())


def _mean(trainings: list[Training]) -> Training:
    costs = tuple(mean(epoch) for epoch in zip(*(training.costs for training in trainings), strict=True))
    return Training(trainings[0].rate, costs, mean(training.error for training in trainings))


def on_the_digits(digits: Digits, config: OptimizersConfig, results: Results, tick: Callable[[str], None]) -> None:
    """Part 4."""
    epochs = 2 if config.quick else 10
    seeds = range(config.seed, config.seed + (1 if config.quick else 3))
    for name, rule in RULES.items():
        rates = DIGIT_RATES[name][1:2] if config.quick else DIGIT_RATES[name]
        trainings = [_mean([train(digits, rule, rate, epochs, seed)[0] for seed in seeds]) for rate in rates]
        results.digits[name] = min(trainings, key=lambda training: training.costs[-1])
        tick(f"digits: {name}")

    def apart(one: Rule, other: Rule, rates: tuple[float, float]) -> tuple[float, tuple[float, float]]:
        (first, ending, way), (second, other_ending, _) = (
            train(digits, rule, rate, 1 if config.quick else 3, config.seed)
            for rule, rate in zip((one, other), rates, strict=True)
        )
        return float((ending - other_ending).abs().max()) / way, (first.costs[-1], second.costs[-1])

    def summed(params: list[Tensor], rate: float) -> torch.optim.Optimizer:
        return Momentum(params, lr=rate, momentum=0.9, form="sum")

    def inside(params: list[Tensor], rate: float) -> torch.optim.Optimizer:
        return Adam(params, lr=rate, eps_form="inside")

    results.conversion, _ = apart(RULES["momentum"], summed, (0.3, 0.03))
    results.epsilon, results.epsilon_costs = apart(RULES["Adam"], inside, (0.003, 0.003))
    results.first_adam = (_first_step(), *wrong_first_steps())
    tick("forms of the rules")


def _first_step() -> float:
    """|Δw|/α of Adam's first step on a gradient of 3."""
    w = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    w.grad = torch.full_like(w, 3.0)
    Adam([w], lr=0.5).step()
    return abs(w.item()) / 0.5


def wrong_first_steps() -> tuple[float, float]:
    """The same with S corrected by β₁, as printed under one of the S, and without any correction."""
    v, s = 0.1 * 3.0, 0.001 * 3.0**2  # (1 − β₁) dw and (1 − β₂) dw²
    return (v / 0.1) / math.sqrt(s / 0.1), v / math.sqrt(s)


def measure(config: OptimizersConfig, tick: Callable[[str], None]) -> Results:
    """All parts."""
    digits = load_digits(seed=config.seed, device=config.device)
    results = Results(judged=not config.quick)
    for part in (on_the_bowl, plateau_and_saddle, critical_points):
        part(config, results, tick)
    on_the_digits(digits, config, results, tick)
    return results
