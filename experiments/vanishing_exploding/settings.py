"""What is run: the command line, the sizes, the inits compared."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from experiments.config import CommonConfig
from torchnotes.diagnostics import SignalReport

Scheme = Literal["small", "lecun", "xavier", "he"]

NAME = "vanishing_exploding"
ACTIVATIONS = {"relu": "ReLU", "leaky_relu": "leaky ReLU", "tanh": "tanh", "sigmoid": "sigmoid"}


@dataclass(frozen=True)
class Init:
    """One way to draw the weights.

    Attributes:
        scheme: its name in ``torchnotes.init.initialize_``.
        variance: the variance of a weight, as the notes write it.
        formula: the same as a function of (n_in, n_out).
    """

    scheme: Scheme
    variance: str
    formula: Callable[[int, int], float]

    @property
    def variant(self) -> str:
        """Folder of its logs, and so its name in TensorBoard."""
        return f"init_{self.scheme}"


INITS = (
    Init("small", "0.01²", lambda n_in, n_out: 0.01**2),
    Init("lecun", "1/n", lambda n_in, n_out: 1 / n_in),
    Init("xavier", "2/(n_in+n_out)", lambda n_in, n_out: 2 / (n_in + n_out)),
    Init("he", "2/n", lambda n_in, n_out: 2 / n_in),
)


@dataclass(frozen=True)
class Config(CommonConfig):
    """See a deep net's signal vanish, explode and be cured by its initial weights."""

    depth: int | None = None
    """Layers of every net; by default 150 in part 1, 50 in part 2 and 30 in part 3."""

    def __post_init__(self) -> None:
        """Refuse a depth over which there is no slope."""
        super().__post_init__()
        if self.depth is not None and self.depth < 3:
            raise ValueError(
                f"depth must be at least 3, got {self.depth}; growth per layer is a slope over several layers."
            )


@dataclass(frozen=True)
class Size:
    """How much is run: what ``--depth`` and ``--quick`` change."""

    linear_depth: int = 150
    signal_depth: int = 50
    signal_width: int = 256
    trained_depth: int = 30
    trained_width: int = 128
    rates: tuple[float, ...] = (0.001, 0.003, 0.01, 0.03)
    shown_rate: float = 0.003
    epochs: int = 20
    batch: int = 64
    judged: bool = True

    @classmethod
    def of(cls, config: Config) -> Size:
        """What the command line asks for."""
        size = cls()
        if config.quick:
            size = replace(
                size,
                signal_depth=20,
                signal_width=64,
                trained_width=64,
                rates=(size.shown_rate,),
                epochs=2,
                judged=False,
            )
        if config.depth is not None:
            size = replace(size, linear_depth=config.depth, signal_depth=config.depth, trained_depth=config.depth)
        return size


@dataclass(frozen=True)
class Growth:
    """By what factor one layer of a net changes the rms of its signal, measured and known.

    Attributes:
        net: ``"linear"``, or the activation.
        weights: ``"W = 1.5·I"``, or the variance of the weights.
        forward: of activations, from the first layer to the last.
        backward: of gradients, from the last layer to the first.
        known_forward: what it must be.
        known_backward: what it must be.
        tolerance: largest |ln(measured/known)| that still counts as agreement.
    """

    net: str
    weights: str
    forward: float
    backward: float
    known_forward: float
    known_backward: float
    tolerance: float

    @property
    def deviation(self) -> float:
        """The larger |ln(measured/known)| of the two directions."""
        return max(abs(math.log(self.forward / self.known_forward)), abs(math.log(self.backward / self.known_backward)))

    @property
    def agrees(self) -> bool:
        """Whether both directions are as known."""
        return self.deviation <= self.tolerance


def measured(report: SignalReport, *, net: str, weights: str, known: tuple[float, float], tolerance: float) -> Growth:
    """Join what a probe measured with what is known; a net whose signal could not be measured is an error."""
    forward, backward = report.forward_growth, report.backward_growth
    if forward is None or backward is None:
        raise RuntimeError(f"{net} net, {weights}: the signal left the range of float64; use fewer layers (--depth).")
    return Growth(net, weights, forward, backward, *known, tolerance)
