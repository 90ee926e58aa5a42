"""The table of a run, and what it says in plain words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from experiments.console import Claim, Table
from experiments.vanishing_exploding.settings import ACTIVATIONS, INITS, Growth, Size
from experiments.vanishing_exploding.training import Training

HE = "2/n"
LEARNED, STUCK = 0.9, 0.2  # accuracies; guessing gives 0.1


def table(size: Size, linear: Sequence[Growth], nets: Sequence[Growth], trainings: Sequence[Training]) -> Table:
    """One row a net: growth per layer in both directions, measured beside known, then what training made of it."""
    result = Table(
        "By what factor each layer changes the signal's rms, and what training makes of it",
        ("net", "weights", "forward", "known", "backward", "known", "trained"),
        f"Linear nets: {size.linear_depth} layers, every W as given. The others: {size.signal_depth} layers of "
        f"{size.signal_width}, weights drawn with the given variance. Trained: dev accuracy of a ReLU net of "
        f"{size.trained_depth} layers of {size.trained_width} after {size.epochs} epochs, at the best rate of "
        f"{', '.join(f'{rate:g}' for rate in size.rates)}.",
    )
    for growth in linear:
        result.rows.append((growth.net, growth.weights, *(f"{value:.6f}" for value in _four(growth)), ""))
    for label in ACTIVATIONS.values():
        result.rows.append(None)
        for growth in (net for net in nets if net.net == label):
            accuracy = f"{best(trainings, growth.weights).last.dev_accuracy:.1%}" if label == "ReLU" else ""
            result.rows.append((label, growth.weights, *(f"{value:.3f}" for value in _four(growth)), accuracy))
    return result


def best(trainings: Sequence[Training], weights: str) -> Training:
    """The rate at which an init ended with the highest accuracy on dev images."""
    return max((run for run in trainings if run.weights == weights), key=lambda run: run.last.dev_accuracy)


def claims(size: Size, linear: Sequence[Growth], nets: Sequence[Growth], trainings: Sequence[Training]) -> list[Claim]:
    """The notes' statements, each judged by what this run measured."""
    return [_linear(size, linear), *_random(size, nets), *_trained(size, trainings)]


def heat_map(nets: Sequence[Growth], direction: str) -> npt.NDArray[np.float64]:
    """Measured growth per layer as (inits, activations)."""
    rows = [[_net(nets, label, init.variance) for label in ACTIVATIONS.values()] for init in INITS]
    return np.array([[getattr(growth, direction) for growth in row] for row in rows])


def _linear(size: Size, linear: Sequence[Growth]) -> Claim:
    measured = ", ".join(f"{growth.forward:.6f}" for growth in linear)
    low, high = (growth.known_forward ** (size.linear_depth - 1) for growth in (linear[0], linear[-1]))
    return Claim(
        "A linear net with every W = c·I multiplies the signal by c at every layer, forward and backward.",
        all(growth.agrees for growth in linear),
        f"Measured {measured}, the same both ways to six digits. Over {size.linear_depth} layers that "
        f"is {low:.0e} at the low end and {high:.0e} at the high one.",
    )


def _random(size: Size, nets: Sequence[Growth]) -> list[Claim]:
    he, lecun, xavier = (_net(nets, "ReLU", variance) for variance in (HE, "1/n", "2/(n_in+n_out)"))
    tanh = _net(nets, "tanh", "1/n")
    small = [net for net in nets if net.weights == "0.01²"]
    sigmoid = [net for net in nets if net.net == "sigmoid"]
    worst = max(nets, key=lambda net: net.deviation / net.tolerance)
    layers = size.signal_depth - 1
    return [
        Claim(
            "Small weights (variance 0.01²) make the gradient vanish under every activation.",
            all(net.agrees and net.backward < 0.5 for net in small),
            f"Each layer leaves {_span(net.backward for net in small)} of it: over {layers} layers at most "
            f"{max(net.backward for net in small) ** layers:.0e}.",
        ),
        Claim(
            "Variance 1/n halves the second moment at every ReLU layer, which is ×0.707 in rms.",
            lecun.agrees,
            f"Measured ×{lecun.forward:.3f} forward and ×{lecun.backward:.3f} backward: ×{lecun.forward**layers:.0e} "
            f"over {layers} layers.",
        ),
        Claim(
            "Variance 2/(n_in+n_out) is 1/n between layers of equal width, so it does not cure ReLU either.",
            xavier.agrees and abs(math.log(xavier.forward / lecun.forward)) < 0.01,
            f"Measured ×{xavier.forward:.3f} forward and ×{xavier.backward:.3f} backward.",
        ),
        Claim(
            "Variance 2/n keeps the signal of a ReLU net in both directions.",
            he.agrees,
            f"Measured ×{he.forward:.3f} forward and ×{he.backward:.3f} backward.",
        ),
        Claim(
            "With variance 1/n the signal of a tanh net falls slowly (like 1/√(2·layer)) and does not vanish.",
            tanh.agrees,
            f"Measured ×{tanh.forward:.3f} forward and ×{tanh.backward:.3f} backward, known ×{tanh.known_forward:.3f} "
            f"and ×{tanh.known_backward:.3f}.",
        ),
        Claim(
            "Sigmoid layers lose the gradient under all four inits, though their activations look sound.",
            all(net.agrees and net.backward < 0.5 for net in sigmoid),
            f"Activations change by {_span(net.forward for net in sigmoid)} a layer, gradients by "
            f"{_span(net.backward for net in sigmoid)}.",
        ),
        Claim(
            f"All {len(nets)} nets change their signal as theory says, within what chance does at this width.",
            all(net.agrees for net in nets),
            f"Allowed {_percent(worst.tolerance)}; the furthest, {worst.net} with {worst.weights}, is "
            f"{_percent(worst.deviation)} off.",
        ),
    ]


def _trained(size: Size, trainings: Sequence[Training]) -> list[Claim]:
    top = best(trainings, HE)
    others = [run for run in trainings if run.weights != HE]
    luckiest = max(others, key=lambda run: run.last.dev_accuracy)
    rates = f"{min(size.rates):g}" if len(size.rates) == 1 else f"{min(size.rates):g}…{max(size.rates):g}"
    learned, stuck = top.last.dev_accuracy >= LEARNED, luckiest.last.dev_accuracy < STUCK
    return [
        Claim(
            f"A ReLU net {size.trained_depth} deep learns the digits when it starts from variance 2/n.",
            learned if size.judged else None,
            f"{top.last.dev_accuracy:.1%} of the dev images right after {size.epochs} epochs at rate {top.rate:g}."
            + ("" if size.judged else " A quick run is too short to tell."),
        ),
        Claim(
            "From the other three inits the same net stays at chance at every rate.",
            stuck if size.judged else None,
            f"Best of {len(others)} runs (rates {rates}): {luckiest.last.dev_accuracy:.1%}, with variance "
            f"{luckiest.weights}; guessing gives 10 %, and below {STUCK:.0%} counts as that.",
        ),
    ]


def _net(nets: Sequence[Growth], label: str, weights: str) -> Growth:
    return next(net for net in nets if (net.net, net.weights) == (label, weights))


def _four(growth: Growth) -> tuple[float, float, float, float]:
    return growth.forward, growth.known_forward, growth.backward, growth.known_backward


def _span(factors: Iterable[float]) -> str:
    values = sorted(factors)
    return f"×{values[0]:.3f} to ×{values[-1]:.3f}"


def _percent(log_deviation: float) -> str:
    return f"{math.expm1(log_deviation):.1%}"
