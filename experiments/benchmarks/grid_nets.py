"""The nets of the two grids, each with what theory says of it before anything is run."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Make = Callable[[int], nn.Module]


def linear(width: int, variance: float, generator: torch.Generator, bias: bool = False) -> nn.Linear:
    """A square layer with weights N(0, variance/width)."""
    layer: nn.Linear = nn.utils.skip_init(nn.Linear, width, width, bias=bias)
    with torch.no_grad():
        layer.weight.normal_(0.0, math.sqrt(variance / width), generator=generator)
    return layer


class Residual(nn.Module):
    """x + s · W₂ relu(W₁ norm(x)), branch variance equal to that of its input at s = 1."""

    def __init__(self, width: int, generator: torch.Generator, scale: float, normalize: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width) if normalize else nn.Identity()
        self.up = linear(width, 2.0, generator)
        self.down = linear(width, scale**2, generator)

    def forward(self, x: Tensor) -> Tensor:
        """(m, width) to (m, width)."""
        result: Tensor = x + self.down(F.relu(self.up(self.norm(x))))
        return result


class Conv(nn.Module):
    """3×3 convolutions over 8×8 positions with ReLU, circular so that no border is weaker."""

    def __init__(self, channels: int, depth: int, variance: float, generator: torch.Generator) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(depth):
            conv = nn.Conv2d(channels, channels, 3, padding=1, padding_mode="circular", bias=False)
            with torch.no_grad():
                conv.weight.normal_(0.0, math.sqrt(variance / (9 * channels)), generator=generator)
            layers += [conv, nn.ReLU()]
        self.body = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        """(m, channels), spread over a fixed map, to (m, channels, 8, 8)."""
        result: Tensor = self.body(x.reshape(x.shape[0], -1, 1, 1).expand(-1, -1, 8, 8) * _pattern(x))
        return result


def _pattern(x: Tensor) -> Tensor:
    """A fixed map of unit scale, so that positions differ."""
    return torch.randn(8, 8, generator=torch.Generator().manual_seed(0), dtype=x.dtype)


@dataclass(frozen=True)
class Family:
    """One architecture and initialisation at any width and depth.

    Attributes:
        name: what it is.
        variance: n · Var(w).
        between: makes the modules between two weight layers.
        forward: growth of the rms of activations per weight layer that theory gives at infinite width.
        backward: the same of gradients.
        kind: ``"chain"``, ``"residual"``, ``"pre-norm"`` or ``"conv"``.
    """

    name: str
    variance: float
    between: tuple[Make, ...]
    forward: float
    backward: float
    kind: str = "chain"

    def build(self, width: int, depth: int, seed: int) -> nn.Module:
        """The net, of ``depth`` weight layers."""
        generator = torch.Generator().manual_seed(seed)
        if self.kind == "conv":
            return Conv(width, depth, self.variance, generator)
        if self.kind in ("residual", "pre-norm"):
            normalize = self.kind == "pre-norm"
            return nn.Sequential(*[Residual(width, generator, 1.0, normalize) for _ in range(depth // 2)])
        modules: list[nn.Module] = []
        for index in range(depth):
            modules.append(linear(width, self.variance, generator))
            if index < depth - 1:
                modules += [make(width) for make in self.between]
        return nn.Sequential(*modules)


def _relu(width: int) -> nn.Module:
    return nn.ReLU()


def _dropout(width: int) -> nn.Module:
    return nn.Dropout(0.5)


# Closed forms, or fixed points of q = v E φ(√q z)² with χ = v E φ'(√q z)²: growth of gradients is √χ.
FAMILIES = (
    Family("ReLU, 2/n", 2.0, (_relu,), 1.0, 1.0),
    Family("ReLU, 1/n", 1.0, (_relu,), math.sqrt(0.5), math.sqrt(0.5)),
    Family("ReLU, 4/n", 4.0, (_relu,), math.sqrt(2), math.sqrt(2)),
    Family("leaky ReLU 0.1, 2/1.01n", 2 / 1.01, (lambda w: nn.LeakyReLU(0.1),), 1.0, 1.0),
    Family("linear, 1/n", 1.0, (), 1.0, 1.0),
    Family("linear, 1.21/n", 1.21, (), 1.1, 1.1),
    # A power of depth, not an exponential: sound at any depth here (SPEC C5; DESIGN: variance → 1/2l).
    Family("tanh, 1/n", 1.0, (lambda w: nn.Tanh(),), 1.0, 1.0),
    Family("tanh, 0.5/n", 0.5, (lambda w: nn.Tanh(),), math.sqrt(0.5), math.sqrt(0.5)),
    Family("tanh, 4/n", 4.0, (lambda w: nn.Tanh(),), 1.0, 1.1673),
    Family("sigmoid, 1/n", 1.0, (lambda w: nn.Sigmoid(),), 1.0, 0.236),
    Family("SELU, 1/n", 1.0, (lambda w: nn.SELU(),), 1.0, 1.0352),
    Family("ReLU + dropout 0.5, 2/n", 2.0, (_relu, _dropout), math.sqrt(2), math.sqrt(2)),
    Family("ReLU + dropout 0.5, 1/n", 1.0, (_relu, _dropout), 1.0, 1.0),
    Family("batch norm + ReLU", 1.0, (nn.BatchNorm1d, _relu), 1.0, math.sqrt(math.pi / (math.pi - 1))),
    Family("layer norm + ReLU", 1.0, (nn.LayerNorm, _relu), 1.0, 1.0),
    Family("residual, no norm", 1.0, (), 2**0.25, 2**0.25, "residual"),
    Family("residual, pre-norm", 1.0, (), 1.0, 1.0, "pre-norm"),
    Family("3×3 conv + ReLU, 2/n", 2.0, (), 1.0, 1.0, "conv"),
    Family("3×3 conv + ReLU, 1/n", 1.0, (), math.sqrt(0.5), math.sqrt(0.5), "conv"),
)
