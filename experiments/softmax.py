"""See what softmax makes of four scores, and where it draws the lines between classes.

Real data: handwritten digits by their two main components, so that the plane can be drawn, and all 64 pixels for the
error; tumours of the breast for two classes. Four parts, each a heading in TensorBoard:

1. The notes' scores [5, 2, −1, 3], and scores too large for e^z.
2. Two classes: softmax and logistic regression, trained side by side.
3. The boundaries between three and four classes, without a hidden layer and with one.
4. The gradient at the scores, ŷ − y, against numerical differences.

Source: the notes, "softmax regression"; SPEC A7, A9.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from experiments.config import CommonConfig
from experiments.console import Claim, Table, amount, command_line
from experiments.datasets import breast_cancer, split
from experiments.digits import CLASSES, Digits, load_digits
from experiments.figures import blank_figure, draw_regions
from experiments.logs import VariantLogs, save_figure
from experiments.nets import error_rate, new_net
from experiments.report import run_experiment
from torchnotes.gradcheck import gradient_ratio, numerical_gradient
from torchnotes.nn import MLP, Linear
from torchnotes.ops import binary_cross_entropy_with_logits, cross_entropy, sigmoid, softmax
from torchnotes.optim import Adam, GradientDescent
from torchnotes.training import evaluate, fit

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console

NAME = "softmax"
SCORES = (5.0, 2.0, -1.0, 3.0)
POWERS, SHARES = (148.4, 7.4, 0.4, 20.1), (0.842, 0.042, 0.002, 0.114)  # as the notes print them
HIDDEN = 24
COSTS = "1 Training cost by epoch"
TWINS = "2 Two classes: softmax and logistic regression (horizontal: step)"
FIGURES = "3 The same in pictures"


@dataclass(frozen=True)
class SoftmaxConfig(CommonConfig):
    """Softmax: the notes' numbers, two classes as logistic regression, straight and bent boundaries."""

    epochs: int = 150
    """Passes over the training set for each net."""


@dataclass(frozen=True)
class Plane:
    """A net on points of the plane.

    Attributes:
        net: what was trained.
        x: the points, (m, 2).
        y: their classes.
        error: the share it gets wrong of the points it was trained on.
        bend: largest second difference of log ŷ_i/ŷ_j along straight lines, relative to the largest ratio.
        convex: share of midpoints of two points of one region that lie in that region.
        costs: after each epoch.
    """

    net: MLP
    x: Tensor
    y: Tensor
    error: float
    bend: float
    convex: float
    costs: tuple[float, ...]


@dataclass
class Results:
    """What the experiment found; the keys of ``planes`` are (classes, hidden units), of ``errors`` hidden units."""

    judged: bool = True
    powers: list[float] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)
    large: list[float] = field(default_factory=list)
    twins: list[tuple[float, float, float]] = field(default_factory=list)
    planes: dict[tuple[int, int], Plane] = field(default_factory=dict)
    errors: dict[int, float] = field(default_factory=dict)
    gradient: float = math.inf
    one_hot: tuple[float, float] = (0.0, 1.0)
    reading: list[Claim] = field(default_factory=list)


def numbers(config: SoftmaxConfig, results: Results) -> None:
    """The notes' four scores; three whose exponentials overflow; the gradient ŷ − y; the loss of a one-hot target."""
    scores = torch.tensor(SCORES, dtype=torch.float64, device=config.device)
    results.powers, results.shares = scores.exp().tolist(), softmax(scores, dim=0).tolist()
    results.large = softmax(torch.tensor([1000.0, 1001.0, 1002.0], device=config.device), dim=0).tolist()
    generator = torch.Generator().manual_seed(config.seed)
    z = torch.randn(6, 5, generator=generator, dtype=torch.float64).to(config.device)
    y = torch.arange(6, device=config.device) % 5
    known = softmax(z, dim=1) - torch.nn.functional.one_hot(y, 5)  # of the sum over the samples
    differences = numerical_gradient(lambda t: cross_entropy(t, y, reduction="sum"), z, eps=1e-5)
    results.gradient = gradient_ratio(differences, known)
    target = torch.tensor([0.0, 1.0, 0.0, 0.0], dtype=torch.float64, device=config.device)
    loss = cross_entropy(scores.unsqueeze(0), target.unsqueeze(0))
    results.one_hot = (float(loss), -math.log(results.shares[1]))


def train_twins(config: SoftmaxConfig, results: Results) -> None:
    """Softmax with two rows and logistic regression from zero, on the same table, in float64.

    Both rows of the softmax move, in opposite directions, so the score z₂ − z₁ moves twice as fast: the logistic
    regression gets twice the rate.
    """
    x, y, _ = breast_cancer(torch.float64)
    sets = split(x, y, seed=config.seed).normalized().to(config.device)
    x, y, labels = sets.x_train, sets.y_train, sets.y_train.flatten().long()
    two = Linear(x.shape[1], 2, device=x.device, dtype=x.dtype)
    one = Linear(x.shape[1], 1, device=x.device, dtype=x.dtype)
    with torch.no_grad():
        for parameter in (*two.parameters(), *one.parameters()):
            parameter.zero_()
    descents = GradientDescent(two.parameters(), lr=0.5), GradientDescent(one.parameters(), lr=1.0)
    for _ in range(20 if config.quick else 300):
        costs = cross_entropy(two(x), labels), binary_cross_entropy_with_logits(one(x), y)
        for optimizer, cost in zip(descents, costs, strict=True):
            optimizer.zero_grad()
            cost.backward()
            optimizer.step()
        with torch.no_grad():
            apart = (softmax(two(x), dim=1)[:, 1:] - sigmoid(one(x))).abs().max()
        results.twins.append((float(costs[0].detach()), float(costs[1].detach()), float(apart)))


def in_the_plane(digits: Digits, classes: int, seed: int) -> tuple[Tensor, Tensor]:
    """The first digits by their two main components, each with variance 1."""
    kept = digits.y_train < classes
    x, y = digits.x_train[kept], digits.y_train[kept]
    x = x - x.mean(0)
    axes = torch.linalg.svd(x, full_matrices=False).Vh[:2]
    axes = axes * axes.sum(1, keepdim=True).sign()  # the sign of a component is arbitrary: fix it
    points = x @ axes.T
    return points / points.std(0), y


def bend(net: MLP, x: Tensor) -> float:
    """Second differences of the scores' differences along lines through the plane: 0 where boundaries are straight.

    log ŷ_i/ŷ_j = z_i − z_j, whose zero is the boundary between i and j.
    """
    net = net.double()
    ends = x.double()[torch.arange(40, device=x.device) * (len(x) // 40)].view(2, 20, 1, 2)
    along = torch.linspace(0, 1, 41, dtype=torch.float64, device=x.device).view(1, 41, 1)
    with torch.no_grad():
        scores = net((1 - along) * ends[0] + along * ends[1])  # (lines, points, classes)
    ratios = scores.unsqueeze(-1) - scores.unsqueeze(-2)
    second = ratios[:, 2:] - 2 * ratios[:, 1:-1] + ratios[:, :-2]
    net.float()
    return float(second.abs().max() / ratios.abs().max())


def convexity(net: MLP, x: Tensor, seed: int) -> float:
    """Whether regions are convex, as those between straight lines are: midpoints of pairs of one class."""
    generator = torch.Generator().manual_seed(seed)
    low, high = x.amin(0), x.amax(0)
    points = low + (high - low) * torch.rand(2, 20_000, 2, generator=generator).to(x)
    with torch.no_grad():
        first, second, middle = (net(p).argmax(1) for p in (*points, points.mean(0)))
    same = first == second
    return float((middle == first)[same].double().mean())


def train_planes(digits: Digits, config: SoftmaxConfig, results: Results, tick: Callable[[str], None]) -> None:
    """Three and four classes, without and with a hidden layer."""
    for classes in (3, 4):
        x, y = in_the_plane(digits, classes, config.seed)
        for hidden in (0, HIDDEN):
            sizes = [2, hidden, hidden, classes] if hidden else [2, classes]
            net = new_net(sizes, "tanh", seed=config.seed, device=x.device)
            run = fit(
                net, (x, y), loss=cross_entropy, optimizer=Adam(net.parameters(), lr=0.02),
                epochs=10 if config.quick else 2 * config.epochs, batch_size=128, progress=False, seed=config.seed,
            )  # fmt: skip
            error = evaluate(net, x, y, loss=cross_entropy, metrics={"error": error_rate})["error"]
            costs = tuple(record["train_loss"] for record in run.history)
            results.planes[classes, hidden] = Plane(
                net, x, y, error, bend(net, x), convexity(net, x, config.seed), costs
            )
            tick(f"{classes} classes, {hidden} hidden units")
    for hidden in (0, HIDDEN):
        sizes = [64, hidden, CLASSES] if hidden else [64, CLASSES]
        net = new_net(sizes, seed=config.seed, device=digits.x_train.device)
        fit(
            net, (digits.x_train, digits.y_train), loss=cross_entropy, optimizer=Adam(net.parameters(), lr=0.01),
            epochs=2 if config.quick else 30, batch_size=64, progress=False, seed=config.seed,
        )  # fmt: skip
        found = evaluate(net, digits.x_dev, digits.y_dev, loss=cross_entropy, metrics={"error": error_rate})
        results.errors[hidden] = found["error"]
        tick(f"all pixels, {hidden} hidden units")


def measure(config: SoftmaxConfig, tick: Callable[[str], None]) -> Results:
    """All parts."""
    digits = load_digits(seed=config.seed, device=config.device)
    results = Results(judged=not config.quick)
    numbers(config, results)
    tick("the notes' numbers")
    train_twins(config, results)
    tick("two classes")
    train_planes(digits, config, results, tick)
    return results


def tables(results: Results) -> list[Table]:
    """The notes' numbers, and the boundaries."""
    scores = Table("The notes' four scores", ("score z", "e^z printed", "e^z", "softmax printed", "softmax"))
    for row in zip(SCORES, POWERS, results.powers, SHARES, results.shares, strict=True):
        z, power, measured, share, found = row
        scores.rows.append((f"{z:g}", f"{power:g}", f"{measured:.4f}", f"{share:.3f}", f"{found:.6f}"))
    lines = Table(
        "Boundaries between classes",
        ("classes", "hidden layers", "wrong", "bend", "convex"),
        "Wrong: of the points trained on. Bend: largest second difference of log ŷ_i/ŷ_j along straight lines, "
        "relative to its size; 0 is straight. Convex: midpoints of two points of one region that lie in it.",
    )
    for (classes, hidden), plane in results.planes.items():
        layers = f"2 of {hidden}" if hidden else "none"
        lines.rows.append((f"{classes}", layers, f"{plane.error:.1%}", f"{plane.bend:.0e}", f"{plane.convex:.2%}"))
    return [scores, lines]


def claims(results: Results) -> list[Claim]:
    """The notes' statements, each judged by what was measured."""
    close = all(abs(found - printed) <= 0.0005 for found, printed in zip(results.shares, SHARES, strict=True)) and all(
        abs(found - printed) <= 0.05 for found, printed in zip(results.powers, POWERS, strict=True)
    )
    apart = max(row[2] for row in results.twins)
    straight = [plane for (_, hidden), plane in results.planes.items() if not hidden]
    bent = [plane for (_, hidden), plane in results.planes.items() if hidden]
    gains = [(a.error, b.error) for a, b in zip(straight, bent, strict=True)]
    loss, formula = results.one_hot
    judged = results.judged
    return [
        Claim(
            "Softmax of [5, 2, −1, 3] is [0.842, 0.042, 0.002, 0.114], from e^z = [148.4, 7.4, 0.4, 20.1].",
            close,
            f"Measured {', '.join(f'{share:.4f}' for share in results.shares)}, which add up to "
            f"{sum(results.shares):.6f}.",
        ),
        Claim(
            "It is computed without overflow for scores of any size.",
            all(math.isclose(a, b, abs_tol=1e-4) for a, b in zip(results.large, (0.0900, 0.2447, 0.6652), strict=True)),
            f"Of [1000, 1001, 1002] it makes {', '.join(f'{share:.4f}' for share in results.large)}; e^1000 overflows.",
        ),
        Claim(
            "For two classes softmax is logistic regression.",
            apart < 1e-9,
            f"Trained side by side on {len(results.twins)} steps (logistic regression at twice the rate) the "
            f"probabilities differ by {amount(apart)} at most.",
        ),
        Claim(
            "Without a hidden layer the boundaries between classes are straight lines.",
            all(plane.bend < 1e-10 and plane.convex == 1.0 for plane in straight),
            f"Largest bend {amount(max(plane.bend for plane in straight))}; all regions convex: "
            f"{min(plane.convex for plane in straight):.2%} of midpoints.",
        ),
        Claim(
            "With hidden layers they are not, and more points are right.",
            all(plane.bend > 0.01 for plane in bent) and all(b < a for a, b in gains) if judged else None,
            f"Bends from {min(plane.bend for plane in bent):.2f}; wrong "
            + " and ".join(f"{b:.1%} instead of {a:.1%}" for a, b in gains)
            + f" of the points. With all 64 pixels {results.errors[HIDDEN]:.1%} of the dev images instead of "
            f"{results.errors[0]:.1%}.",
        ),
        Claim(
            "The gradient at the scores is ŷ − y.",
            results.gradient < 1e-8,
            f"Its ratio to two-sided differences is {results.gradient:.0e}.",
        ),
        Claim(
            "With y = [0, 1, 0, 0] all that is left of the loss is −log ŷ₂.",
            math.isclose(loss, formula, rel_tol=1e-12),
            f"Loss {loss:.6f}, −log ŷ₂ {formula:.6f}.",
        ),
    ]


def boundaries_figure(results: Results) -> Figure:
    """Regions of the classes: rows without and with hidden layers, columns of three and four classes."""
    figure = blank_figure(
        2, 2, panel=(4.8, 4.0), title="Class that softmax gives each point: 0 blue, 1 red, 2 green, 3 orange"
    )
    for axes, (classes, hidden) in zip(figure.axes, ((3, 0), (4, 0), (3, HIDDEN), (4, HIDDEN)), strict=True):
        plane = results.planes[classes, hidden]
        draw_regions(axes, lambda p, net=plane.net: net(p).argmax(1), plane.x, plane.y, classes=classes)  # type: ignore[misc]
        layers = f"2 hidden layers of {hidden}" if hidden else "no hidden layer"
        axes.set_title(f"digits 0 to {classes - 1}, {layers}: {plane.error:.1%} wrong", fontsize=10)
        axes.set(xlabel="first main component", ylabel="second main component")
    return figure


def scores_figure(results: Results) -> Figure:
    """From scores to powers to shares."""
    figure = blank_figure(1, 3, panel=(3.6, 3.2))
    for axes, values, title in zip(
        figure.axes, (SCORES, results.powers, results.shares), ("scores z", "e^z", "softmax: e^z / Σ e^z"), strict=True
    ):
        bars = axes.bar([f"z{index}" for index in "₁₂₃₄"], values, color="tab:blue")
        axes.bar_label(bars, [f"{value:.3g}" for value in values], padding=2)
        axes.set_title(title)
        axes.margins(y=0.15)
        axes.axhline(0, color="black", lw=0.8)
    return figure


def write_logs(results: Results, logs: VariantLogs) -> None:
    """One run a net, and the pictures."""
    for (classes, hidden), plane in results.planes.items():
        for epoch, cost in enumerate(plane.costs, start=1):
            logs[f"{classes}_classes_{'hidden' if hidden else 'linear'}"].add_scalar(f"{COSTS}/cost", cost, epoch)
    for step, (two, one, apart) in enumerate(results.twins):
        logs["softmax_of_two"].add_scalar(f"{TWINS}/cost", two, step)
        logs["logistic"].add_scalar(f"{TWINS}/cost", one, step)
        logs["softmax_of_two"].add_scalar(f"{TWINS}/largest difference of probability", apart, step)
    save_figure(
        logs["overview"], f"{FIGURES}/Boundaries between three and four classes", boundaries_figure(results),
        logs.folder / "boundaries.png",
        "Digits by their two main components; the colour of the plane is the class that softmax gives, that of a point "
        "its true class. Without a hidden layer the lines are straight, with hidden layers they bend.",
    )  # fmt: skip
    save_figure(
        logs["overview"], f"{FIGURES}/From scores to probabilities", scores_figure(results), logs.folder / "scores.png",
        "The notes' four scores, their exponentials, and the shares of the sum, which are the probabilities.",
    )  # fmt: skip


def main(config: SoftmaxConfig, console: Console | None = None) -> Results:
    """Run the experiment, write its logs, print its tables and their reading."""
    return run_experiment(NAME, config, console, 8, measure, claims, tables, write_logs)


if __name__ == "__main__":
    command_line(SoftmaxConfig, main, NAME)
