"""What is measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor, nn

from experiments.config import CommonConfig
from experiments.console import Claim
from experiments.digits import CLASSES, Digits, load_digits
from experiments.nets import error_rate
from torchnotes.data import minibatches
from torchnotes.init import initialize_
from torchnotes.nn import BatchNorm1d, Linear, ReLU
from torchnotes.ops import batch_norm, cross_entropy
from torchnotes.optim import GradientDescent
from torchnotes.training import evaluate, fit

NAME = "batch_norm"
WIDTH, BATCH = 32, 128
RATES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
DEPTHS = (2, 6, 12)  # hidden layers
GAINS = (0.1, 0.3, 1.0, 3.0, 10.0)  # times He's standard deviation
LEARNED = 0.5  # training cost; guessing costs ln 10 = 2.3
EPSILON = 1e-5


@dataclass(frozen=True)
class BatchNormConfig(CommonConfig):
    """Batch normalisation: identities, rates and depths, shift inside the net, noise by batch size, test time."""

    epochs: int = 8
    """Passes over the training set for each net of part 2."""


@dataclass
class Results:
    """What the experiment found.

    Attributes:
        identity: largest |z̃ − z| with γ = √(σ² + ε) and β = μ.
        bias: largest change of the output when the bias before it is moved by 3, and largest gradient there.
        running: largest difference of the two running means; ratio of the running variances, and what it must be.
        single: largest difference of a sample's output alone and in a batch, at test time; the refusal in training.
        costs: training cost by (with it, depth, rate).
        scales: training cost by (with it, gain of the initial weights).
        shifts: for each step, by with it: mean over units of |mean − first mean|/first std, and of |ln std/first std|.
        noise: by batch size, the standard deviation of a sample's normalised values over its company in the batch.
        gaps: by (with it, batch size), dev minus training cost of each seed.
        test: dev error by how the statistics were taken.
    """

    judged: bool = True
    identity: float = math.inf
    bias: tuple[float, float] = (math.inf, math.inf)
    running: tuple[float, float, float] = (math.inf, 0.0, 1.0)
    single: tuple[float, str] = (math.inf, "")
    costs: dict[tuple[bool, int, float], float] = field(default_factory=dict)
    scales: dict[tuple[bool, float], float] = field(default_factory=dict)
    shifts: dict[bool, list[tuple[float, float]]] = field(default_factory=dict)
    noise: dict[int, float] = field(default_factory=dict)
    gaps: dict[tuple[bool, int], list[float]] = field(default_factory=dict)
    test: dict[str, float] = field(default_factory=dict)
    reading: list[Claim] = field(default_factory=list)


def deep_net(
    depth: int, normed: bool, *, seed: int, device: torch.device, gain: float = 1.0, average: float | None = 0.9
) -> nn.Sequential:
    """ReLU net of ``depth`` hidden layers, He's init times ``gain``; with it z = W a is normalised, and has no bias."""
    layers: list[nn.Module] = []
    sizes = [64] + [WIDTH] * depth
    for n_in, n_out in pairwise(sizes):
        layers.append(Linear(n_in, n_out, bias=not normed))
        if normed:
            layers.append(BatchNorm1d(n_out, average=average))
        layers.append(ReLU())
    net = nn.Sequential(*layers, Linear(WIDTH, CLASSES))
    initialize_(net, gain=gain, generator=torch.Generator().manual_seed(seed))
    return net.to(device)


def train(net: nn.Module, x: Tensor, y: Tensor, rate: float, epochs: int, seed: int, batch: int = BATCH) -> float:
    """Gradient descent; returns the cost over the whole set in the last epoch, infinite where it diverged."""
    optimizer = GradientDescent(net.parameters(), lr=rate)
    try:
        run = fit(
            net, (x, y), loss=cross_entropy, optimizer=optimizer, epochs=epochs, batch_size=batch, progress=False,
            seed=seed,
        )  # fmt: skip
    except FloatingPointError:  # fit refuses to go on with a cost that is not finite
        return math.inf
    return run.history[-1]["train_loss"]


def identities(digits: Digits, config: BatchNormConfig, results: Results, tick: Callable[[str], None]) -> None:
    """Part 1, in float64."""
    x = digits.x_train[:64].double()
    layer = Linear(64, WIDTH, device=x.device, dtype=x.dtype)
    initialize_(layer, generator=torch.Generator().manual_seed(config.seed))
    z = (layer(x) * 3 + 1).detach()
    mean, variance = z.mean(0), z.var(0, unbiased=False)
    undone = batch_norm(z, None, None, (variance + EPSILON).sqrt(), mean, training=True, eps=EPSILON)
    results.identity = float((undone - z).abs().max())

    norm = BatchNorm1d(WIDTH, device=x.device, dtype=x.dtype)
    head = Linear(WIDTH, CLASSES, device=x.device, dtype=x.dtype)
    before = head(norm(layer(x)))
    cross_entropy(before, digits.y_train[:64]).backward()
    assert layer.bias is not None
    assert layer.bias.grad is not None
    gradient = float(layer.bias.grad.abs().max())
    with torch.no_grad():
        layer.bias.add_(3.0)
        results.bias = (float((head(norm(layer(x))) - before).abs().max()), gradient)

    size, batches = 8, 25
    ours = BatchNorm1d(WIDTH, average=0.9, device=x.device, dtype=x.dtype)
    torchs = BatchNorm1d(WIDTH, momentum=0.1, device=x.device, dtype=x.dtype)
    with torch.no_grad():
        for part in layer(digits.x_train[: size * batches].double()).split(size):
            ours(part)
            torchs(part)
        left = 0.9**batches  # of the 1 that both variances start from
        ratio = float(((torchs.get_buffer("running_var") - left) / (ours.get_buffer("running_var") - left)).mean())
        apart = float((torchs.get_buffer("running_mean") - ours.get_buffer("running_mean")).abs().max())
        results.running = (apart, ratio, size / (size - 1))

        ours.eval()
        z = layer(x)
        results.single = (float((ours(z[:1]) - ours(z)[:1]).abs().max()), _refusal(ours.train(), z[:1]))
    tick("identities")


def _refusal(norm: BatchNorm1d, one: Tensor) -> str:
    try:
        norm(one)
    except ValueError as error:
        return str(error)
    return ""


def rates_and_depths(digits: Digits, config: BatchNormConfig, results: Results, tick: Callable[[str], None]) -> None:
    """Part 2."""
    x, y = digits.x_train, digits.y_train
    epochs = 1 if config.quick else config.epochs
    rates, depths = (RATES[3:5], DEPTHS[:1]) if config.quick else (RATES, DEPTHS)
    for normed in (False, True):
        for depth in depths:
            for rate in rates:
                net = deep_net(depth, normed, seed=config.seed, device=x.device)
                results.costs[normed, depth, rate] = train(net, x, y, rate, epochs, config.seed)
            tick(f"{'with' if normed else 'without'} batch norm, {depth} hidden layers")
        for gain in GAINS[2:4] if config.quick else GAINS:
            net = deep_net(DEPTHS[1], normed, seed=config.seed, device=x.device, gain=gain)
            results.scales[normed, gain] = train(net, x, y, 0.1, epochs, config.seed)
        tick("scales of the initial weights")


def shift(digits: Digits, config: BatchNormConfig, results: Results, tick: Callable[[str], None]) -> None:
    """Part 3: the third of four hidden layers, before its ReLU, over the same 512 images after every step."""
    x, y = digits.x_train, digits.y_train
    for normed in (False, True):
        net = deep_net(4, normed, seed=config.seed, device=x.device)
        upto = net[: (8 if normed else 7)]  # Linear (and norm), ReLU, twice; then Linear (and norm) of the third
        optimizer = GradientDescent(net.parameters(), lr=0.1)
        results.shifts[normed] = list(_shifts(net, upto, optimizer, x, y, config))
        tick(f"shift {'with' if normed else 'without'} batch norm")


def _shifts(
    net: nn.Module, upto: nn.Module, optimizer: GradientDescent, x: Tensor, y: Tensor, config: BatchNormConfig
) -> Iterator[tuple[float, float]]:
    batches = minibatches(x, y, batch_size=BATCH, generator=torch.Generator().manual_seed(config.seed))
    first: tuple[Tensor, Tensor] | None = None
    for _ in range(2 if config.quick else 20):
        for xb, yb in batches:
            with torch.no_grad():
                seen = upto(x[:512])  # in training mode: normalised by these images' own μ and σ
            mean, std = seen.mean(0), seen.std(0)
            first = first or (mean, std)
            yield (
                float(((mean - first[0]) / first[1]).abs().mean()),
                float((std / first[1]).log().abs().mean()),
            )
            optimizer.zero_grad()
            cross_entropy(net(xb), yb).backward()
            optimizer.step()


def noise(digits: Digits, config: BatchNormConfig, results: Results, tick: Callable[[str], None]) -> None:
    """Part 4: one sample among random others, then training on few images with small and large batches."""
    x = digits.x_train
    layer = Linear(64, WIDTH, bias=False, device=x.device)
    initialize_(layer, generator=torch.Generator().manual_seed(config.seed))
    generator = torch.Generator().manual_seed(config.seed)
    with torch.no_grad():
        z = layer(x)
        for size in (4, 16, 64, 256):
            draws = []
            for _ in range(50 if config.quick else 400):
                others = 1 + torch.randperm(len(z) - 1, generator=generator)[: size - 1].to(z.device)
                batch = torch.cat([z[:1], z[others]])
                draws.append(batch_norm(batch, None, None, training=True)[0])
            results.noise[size] = float(torch.stack(draws).var(0).mean().sqrt())
    tick("noise by batch size")
    few_x, few_y = x[:300], digits.y_train[:300]
    for normed in (False, True):
        for size in (8, 300):
            results.gaps[normed, size] = []
            for seed in range(config.seed, config.seed + (1 if config.quick else 6)):
                net = deep_net(2, normed, seed=seed, device=x.device)
                train(net, few_x, few_y, 0.05 if size == 8 else 0.5, 1 if config.quick else _epochs(size), seed, size)
                training, dev = (
                    evaluate(net, *data, loss=cross_entropy)["loss"]
                    for data in ((few_x, few_y), (digits.x_dev, digits.y_dev))
                )
                results.gaps[normed, size].append(dev - training)
            tick(f"{'with' if normed else 'without'} batch norm, batches of {size}")


def _epochs(size: int) -> int:
    return 15 if size == 8 else 150  # 570 small steps, or 150 large ones at ten times the rate


def at_test_time(digits: Digits, config: BatchNormConfig, results: Results, tick: Callable[[str], None]) -> None:
    """Part 5: the same net with the statistics taken in different ways."""
    x, y = digits.x_dev, digits.y_dev
    for average, name in ((0.9, "the notes' running averages"), (None, "PyTorch's running averages")):
        net = deep_net(2, True, seed=config.seed, device=x.device, average=average)
        train(net, digits.x_train, digits.y_train, 0.3, 1 if config.quick else config.epochs, config.seed)
        results.test[name] = evaluate(net, x, y, loss=cross_entropy, metrics={"error": error_rate})["error"]
    alone = evaluate(net, x, y, loss=cross_entropy, metrics={"error": error_rate}, batch_size=1)["error"]
    results.test["PyTorch's, one image at a time"] = alone
    with torch.no_grad():
        net.train()
        results.test["the dev set's own statistics"] = float(error_rate(net(x), y))
        pairs = torch.cat([net(pair) for pair in x.split(2)])
        results.test["statistics of two images at a time"] = float(error_rate(pairs, y))
    tick("test time")


def measure(config: BatchNormConfig, tick: Callable[[str], None]) -> Results:
    """All parts."""
    digits = load_digits(seed=config.seed, device=config.device)
    results = Results(judged=not config.quick)
    for part in (identities, rates_and_depths, shift, noise, at_test_time):
        part(digits, config, results, tick)
    return results
