"""The ops of one file each, with their PyTorch twins and inputs: one table, which every general test runs over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.ops._losses import cases
from torchnotes import ops


@dataclass(frozen=True)
class Case:
    name: str
    ours: Callable[..., Tensor]
    twin: Callable[..., Tensor]
    shapes: tuple[tuple[int, ...], ...]
    random: bool = False

    def inputs(self, dtype: torch.dtype = torch.float64, requires_grad: bool = True) -> tuple[Tensor, ...]:
        """Normal numbers, pushed 0.1 away from the kink at zero, across which no difference quotient means anything."""
        generator = torch.Generator().manual_seed(len(self.name))
        drawn = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in self.shapes]
        return tuple((x + 0.1 * x.sign()).to(dtype).requires_grad_(requires_grad) for x in drawn)


def seeded(seed: int = 7) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _mask(x: Tensor, keep_prob: float) -> Tensor:
    return ops.dropout(torch.ones(x.shape, dtype=x.dtype), keep_prob=keep_prob, generator=seeded())


def _dropout(keep_prob: float) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    def ours(x: Tensor) -> Tensor:
        return ops.dropout(x, keep_prob=keep_prob, generator=seeded())

    return ours, lambda x: x * _mask(x, keep_prob)


ELEMENTWISE = [
    Case("relu", ops.relu, F.relu, ((3, 4),)),
    Case("sigmoid", ops.sigmoid, torch.sigmoid, ((3, 4),)),
    Case("tanh", ops.tanh, torch.tanh, ((3, 4),)),
    Case("leaky_relu", ops.leaky_relu, F.leaky_relu, ((3, 4),)),
    *(
        Case(
            f"leaky_relu {slope}",
            lambda x, a=slope: ops.leaky_relu(x, a),
            lambda x, a=slope: F.leaky_relu(x, a),
            ((3, 4),),
        )
        for slope in (0.2, -0.5, 1.5, 0.0)
    ),
    Case("dropout", *_dropout(0.7), ((3, 4),), random=True),
]
LINEAR = [
    Case("linear", ops.linear, F.linear, ((5, 3), (4, 3), (4,))),
    Case("linear without bias", ops.linear, F.linear, ((5, 3), (4, 3))),
    Case("linear, vector", ops.linear, F.linear, ((3,), (4, 3), (4,))),
    Case("linear, three axes", ops.linear, F.linear, ((2, 5, 3), (4, 3), (4,))),
    Case("linear, vector weight", ops.linear, F.linear, ((5, 3), (3,))),
    Case(
        "linear, vector weight and bias",
        ops.linear,
        lambda x, w, b: F.linear(x, w.unsqueeze(0), b.view(1)).squeeze(-1),
        ((2, 5, 3), (3,), ()),
    ),
]


def _dense(activation: str, keep_prob: float) -> Case:
    g = {
        "relu": F.relu,
        "sigmoid": torch.sigmoid,
        "tanh": torch.tanh,
        "leaky_relu": lambda z: F.leaky_relu(z, 0.3),
        "identity": lambda z: z,
    }[activation]

    def ours(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return ops.dense(
            x,
            weight,
            bias,
            activation=activation,
            keep_prob=keep_prob,
            negative_slope=0.3,
            generator=seeded() if keep_prob < 1 else None,
        )

    def twin(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y = g(F.linear(x, weight, bias))
        return y if keep_prob == 1 else y * _mask(y, keep_prob)

    shapes = ((5, 3), (4, 3), (4,)) if activation != "sigmoid" else ((2, 5, 3), (4, 3), (4,))
    return Case(f"dense {activation} {keep_prob}", ours, twin, shapes, random=keep_prob < 1)


DENSE = [
    _dense(activation, keep_prob)
    for activation in ("relu", "sigmoid", "tanh", "leaky_relu", "identity")
    for keep_prob in (1.0, 0.7)
]
CASES = ELEMENTWISE + LINEAR + DENSE + cases(Case)


def each(cases: list[Case] = CASES) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.name)
