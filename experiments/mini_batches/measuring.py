"""What is measured."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from statistics import median

import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from experiments.config import CommonConfig
from experiments.console import Claim
from experiments.convex import Regression
from experiments.digits import CLASSES, Digits, load_digits
from experiments.nets import error_rate, new_net
from torchnotes.data import minibatches
from torchnotes.nn import Linear
from torchnotes.ops import cross_entropy
from torchnotes.optim import GradientDescent
from torchnotes.training import evaluate, fit, predict

NAME = "mini_batches"
HIDDEN = (64, 32)
PATH_RATE = 0.03
PICTURE_RATE = 0.15
TARGET = 0.02  # training cost at the finish; guessing costs ln 10 = 2.3


@dataclass(frozen=True)
class MiniBatchesConfig(CommonConfig):
    """Mini-batches: noise per step, cost per epoch and per second, the size rule, powers of two, shuffling."""

    target: float = TARGET
    """Training cost at which the race ends."""

    def __post_init__(self) -> None:
        """Refuse a finish that is behind the start."""
        super().__post_init__()
        if not 0 < self.target < math.log(CLASSES):
            raise ValueError(
                f"target must be a cost above 0 and below ln 10 = 2.3, which guessing reaches, got {self.target}."
            )


@dataclass(frozen=True)
class Noise:
    """Distance of a batch's gradient from the whole set's, relative to it: rms over draws, and as theory has it."""

    measured: float
    known: float
    standard_error: float

    @property
    def agrees(self) -> bool:
        """Within four standard errors, and a millionth for round-off where both are 0."""
        return abs(self.measured - self.known) <= 4 * self.standard_error + 1e-6


@dataclass(frozen=True)
class Lap:
    """One size's way to the target at its best rate. ``curve`` holds (epochs, seconds, cost)."""

    rate: float
    reached: bool
    steps: int
    curve: tuple[tuple[float, float, float], ...]

    @property
    def epochs(self) -> float:
        """Passes over the training set."""
        return self.curve[-1][0]

    @property
    def seconds(self) -> float:
        """Of the steps alone: the cost is evaluated with the clock stopped."""
        return self.curve[-1][1]


@dataclass
class Results:
    """What the experiment found; sizes are the keys. ``shuffled``: dev error, and the loss of every dev image."""

    samples: int = 0
    judged: bool = True
    reading: list[Claim] = field(default_factory=list)
    noise: dict[int, Noise] = field(default_factory=dict)
    floors: dict[int, float] = field(default_factory=dict)
    costs: dict[int, list[float]] = field(default_factory=dict)
    race: dict[int, Lap] = field(default_factory=dict)
    per_sample: dict[int, float] = field(default_factory=dict)
    shuffled: dict[str, tuple[float, Tensor]] = field(default_factory=dict)
    last_batch: int = 0
    plane: tuple[Tensor, Tensor, Tensor, dict[int, Tensor]] | None = None


def sizes(samples: int, quick: bool) -> tuple[int, ...]:
    """One sample, the notes' 64 to 512 and what lies around them, and all samples."""
    return (1, 64, samples) if quick else (1, 16, 64, 128, 256, 512, samples)


def rates(size: int, samples: int) -> tuple[float, ...]:
    """Learning rates worth trying: larger batches bear larger ones, up to the limit of stability."""
    if size == 1:
        return (0.005, 0.01)
    return (0.1, 0.3) if size < 64 else (0.3, 1.0) if size < samples else (0.3, 1.0, 2.0)


def clock(device: torch.device) -> float:
    """Seconds: of this process's own CPU time, so that other programs do not count; on a GPU, of a real clock."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time()


def gradient(net: torch.nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The gradient of the mean loss over a batch, as one vector."""
    grads = torch.autograd.grad(cross_entropy(net(x), y), list(net.parameters()))
    return torch.cat([grad.reshape(-1) for grad in grads])


def measure_noise(digits: Digits, config: MiniBatchesConfig, results: Results, tick: Callable[[str], None]) -> None:
    """Draw batches at the random initial weights. Without replacement E‖g_B − g‖² = (tr S/B) (m − B)/(m − 1)."""
    x, y, m = digits.x_train, digits.y_train, results.samples
    net = new_net((x.shape[1], *HIDDEN, CLASSES), seed=config.seed, device=x.device)
    whole = gradient(net, x, y)
    # tr S: the mean squared distance of one sample's gradient, over all samples
    trace = torch.stack([(gradient(net, x[i : i + 1], y[i : i + 1]) - whole).square().sum() for i in range(m)]).mean()
    generator = torch.Generator().manual_seed(config.seed)
    for size in sizes(m, config.quick):
        draws = []
        for _ in range(30 if config.quick else 200):
            batch = torch.randperm(m, generator=generator)[:size].to(x.device)
            draws.append((gradient(net, x[batch], y[batch]) - whole).square().sum())
        squares = torch.stack(draws).double()
        scale = float(whole.norm())
        root = math.sqrt(float(squares.mean()))
        spread = float(squares.std()) / math.sqrt(len(draws)) / (2 * root) if root > 1e-6 * scale else 0.0
        known = math.sqrt(float(trace) / size * (m - size) / (m - 1))
        results.noise[size] = Noise(root / scale, known / scale, spread / scale)
        tick(f"noise of batches of {size}")


def descend(
    problem: Regression, net: Linear, size: int, rate: float, steps: int, seed: int
) -> Iterator[tuple[Linear, float]]:
    """Mini-batch gradient descent on the convex cost; yields the net and the batch's cost, before each step."""
    x, y = problem.digits.x_train, problem.digits.y_train
    optimizer = GradientDescent(problem.groups(net), lr=rate)
    batches = minibatches(x, y, batch_size=size, generator=torch.Generator().manual_seed(seed))
    done, penalty = 0, problem.penalty()
    while True:
        for xb, yb in batches:
            if done == steps:
                return
            optimizer.zero_grad()
            cost = cross_entropy(net(xb), yb)
            cost.backward()
            yield net, float((cost + penalty(net)).detach())
            optimizer.step()
            done += 1


def near_the_minimum(digits: Digits, config: MiniBatchesConfig, results: Results, tick: Callable[[str], None]) -> None:
    """Start each size at the minimum and see how far it is thrown off; then draw ways to it from afar."""
    problem = Regression(digits)
    least, optimum = problem.minimum()
    best = parameters_to_vector(optimum.parameters()).detach()
    tick("minimum found")
    steps = 60 if config.quick else 2000
    for size in sizes(results.samples, config.quick):
        if size in (128, 512):  # between these and the next the difference is not above chance
            continue
        net = problem.start()
        vector_to_parameters(best.float(), net.parameters())
        nets = enumerate(descend(problem, net, size, PATH_RATE, steps, config.seed))
        visits = [problem.value(net) for step, _ in nets if step >= steps // 2 and step % 10 == 0]
        results.floors[size] = sum(visits) / len(visits) - least
        tick(f"thrown off the minimum by batches of {size}")
    paths = {}
    for size in (1, 16, results.samples):
        walk = list(_walk(problem, size, 60 if config.quick else 600, config.seed))
        paths[size] = torch.stack([vector for vector, _ in walk])
        results.costs[size] = [cost for _, cost in walk]
        tick(f"way of batches of {size}")
    results.plane = project(problem, best, paths)


def _walk(problem: Regression, size: int, steps: int, seed: int) -> Iterator[tuple[Tensor, float]]:
    for net, cost in descend(problem, problem.start(), size, PICTURE_RATE, steps, seed):
        yield parameters_to_vector(net.parameters()).detach().double(), cost


def project(
    problem: Regression, best: Tensor, paths: dict[int, Tensor]
) -> tuple[Tensor, Tensor, Tensor, dict[int, Tensor]]:
    """The plane through the minimum, the start and the direction in which one-sample steps wander most; J on it."""
    first = paths[1][0] - best
    first = first / first.norm()
    wander = paths[1] - best
    wander = wander - (wander @ first)[:, None] * first
    second = torch.linalg.svd(wander, full_matrices=False).Vh[0]
    flat = {size: torch.stack([(path - best) @ first, (path - best) @ second], 1).cpu() for size, path in paths.items()}
    points = torch.cat(list(flat.values()))
    margin = 0.15 * float((points.amax(0) - points.amin(0)).max())
    across, up = (
        torch.linspace(float(points[:, k].min()) - margin, float(points[:, k].max()) + margin, 40) for k in (0, 1)
    )
    net, rows = problem.start(torch.float64), []
    for b in up.tolist():
        for a in across.tolist():
            vector_to_parameters(best + a * first + b * second, net.parameters())
            rows.append(problem.value(net))
    return across, up, torch.tensor(rows).view(len(up), len(across)), flat


def lap(digits: Digits, config: MiniBatchesConfig, size: int, rate: float) -> Lap:
    """Train a net until its cost over the whole training set is at the target, or patience ends."""
    x, y, m = digits.x_train, digits.y_train, len(digits.x_train)
    net = new_net((x.shape[1], *HIDDEN, CLASSES), seed=config.seed, device=x.device)
    optimizer = GradientDescent(net.parameters(), lr=rate)
    batches = minibatches(x, y, batch_size=size, generator=torch.Generator().manual_seed(config.seed))
    look = max(1, m // (8 * size))  # steps between looks at the cost: eight an epoch where there are as many
    most = (1 if config.quick else 10) * m // size if size < 64 else (2 if config.quick else 40) * m // size
    most = max(most, 20 if config.quick else 300)
    times: list[float] = []
    looks, seen, reached = [(0.0, 0, _cost(net, digits))], 0, False
    while len(times) < most and not reached:
        for xb, yb in batches:
            start = clock(x.device)
            optimizer.zero_grad()
            cross_entropy(net(xb), yb).backward()
            optimizer.step()
            times.append(clock(x.device) - start)
            seen += len(xb)
            if len(times) % look == 0:
                looks.append((seen / m, len(times), _cost(net, digits)))
                reached = looks[-1][2] <= config.target
            if reached or len(times) == most:
                break
        if not math.isfinite(looks[-1][2]):
            break
    step = median(times)  # what else the machine does makes single steps slow
    return Lap(rate, reached, len(times), tuple((epochs, count * step, cost) for epochs, count, cost in looks))


def _cost(net: torch.nn.Module, digits: Digits) -> float:
    return evaluate(net, digits.x_train, digits.y_train, loss=cross_entropy, batch_size=4096)["loss"]


def hold_race(digits: Digits, config: MiniBatchesConfig, results: Results, tick: Callable[[str], None]) -> None:
    """Each size at the rate that takes it to the target in the fewest steps."""
    for size in sizes(results.samples, config.quick):
        laps = [lap(digits, config, size, rate) for rate in rates(size, results.samples)[: 1 if config.quick else None]]
        results.race[size] = min(laps, key=lambda one: (not one.reached, one.steps))
        tick(f"race: batches of {size}")


def time_sizes(digits: Digits, config: MiniBatchesConfig, results: Results, tick: Callable[[str], None]) -> None:
    """Seconds a sample for a power of two and its neighbours, in turn; the least of many, which noise only raises."""
    x, y = digits.x_train, digits.y_train
    net = new_net((x.shape[1], *HIDDEN, CLASSES), seed=config.seed, device=x.device)
    optimizer = GradientDescent(net.parameters(), lr=1e-3)
    for _ in range(5 if config.quick else 60):
        for size in (s + d for s in (64, 128, 256) for d in (-1, 0, 1)):
            xb, yb = x[:size], y[:size]
            start = clock(x.device)
            for _ in range(4):
                optimizer.zero_grad()
                cross_entropy(net(xb), yb).backward()
                optimizer.step()
            each = (clock(x.device) - start) / (4 * size)
            results.per_sample[size] = min(each, results.per_sample.get(size, math.inf))
    tick("powers of two")


def shuffle(digits: Digits, config: MiniBatchesConfig, results: Results, tick: Callable[[str], None]) -> None:
    """Train on images sorted by class, with and without a new order each epoch; count what an epoch takes in."""
    order = digits.y_train.argsort(stable=True)
    x, y = digits.x_train[order], digits.y_train[order]
    for name, new_order in (("a new order each epoch", True), ("sorted by class", False)):
        net = new_net((x.shape[1], *HIDDEN, CLASSES), seed=config.seed, device=x.device)
        fit(
            net, (x, y), loss=cross_entropy, optimizer=GradientDescent(net.parameters(), lr=0.1),
            epochs=1 if config.quick else 10, batch_size=64, shuffle=new_order, progress=False, seed=config.seed,
        )  # fmt: skip
        scores = predict(net, digits.x_dev)
        losses = cross_entropy(scores, digits.y_dev, reduction="none").double()
        results.shuffled[name] = (float(error_rate(scores, digits.y_dev)), losses)
    counts = [len(yb) for _, yb in minibatches(x, y, batch_size=64)]
    assert sum(counts) == results.samples
    results.last_batch = counts[-1]
    tick("shuffling")


def images(config: MiniBatchesConfig) -> Digits:
    """The digits, or fewer of them for a quick run."""
    digits = load_digits(seed=config.seed, device=config.device)
    few = 500 if config.quick else None
    return replace(digits, x_train=digits.x_train[:few], y_train=digits.y_train[:few])


def measure(config: MiniBatchesConfig, tick: Callable[[str], None]) -> Results:
    """All parts."""
    digits = images(config)
    results = Results(samples=len(digits.x_train), judged=not config.quick)
    for part in (measure_noise, near_the_minimum, hold_race, time_sizes, shuffle):
        part(digits, config, results, tick)
    return results
