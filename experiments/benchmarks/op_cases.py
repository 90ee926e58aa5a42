"""What the ops and layers are timed on, against what, and what is to be reached."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torchnotes.nn as tn
from torchnotes import ops

Function = Callable[..., Tensor]


@dataclass(frozen=True)
class Case:
    """One row: the same work done by us and by PyTorch.

    Attributes:
        work: what is done, as the table prints it; also the row's key.
        group: the part of the table it is in.
        ours: our function of the tensors.
        theirs: PyTorch's.
        tensors: makes the inputs on a device; those that require a gradient get one.
        backward: whether the gradient is part of the work.
        reach: the ratio to PyTorch's eager time that is to be reached, if one was set.
        reach_compiled: the same against ``torch.compile``.
        reach_bytes: the same for the bytes kept for backward.
    """

    work: str
    group: str
    ours: Function
    theirs: Function
    tensors: Callable[[str], Sequence[Tensor]]
    backward: bool = True
    reach: float | None = None
    reach_compiled: float | None = None
    reach_bytes: float | None = None


def _normal(*shapes: tuple[int, ...]) -> Callable[[str], Sequence[Tensor]]:
    def make(device: str) -> Sequence[Tensor]:
        generator = torch.Generator().manual_seed(0)
        return [torch.randn(shape, generator=generator).to(device).requires_grad_() for shape in shapes]

    return make


_ELEMENTWISE: dict[str, tuple[Function, Function]] = {
    "relu": (ops.relu, F.relu),
    "sigmoid": (ops.sigmoid, torch.sigmoid),
    "tanh": (ops.tanh, torch.tanh),
    "leaky_relu": (ops.leaky_relu, F.leaky_relu),
}


def _elementwise(size: int, name: str) -> Iterator[Case]:
    for op, (ours, theirs) in _ELEMENTWISE.items():
        reach = 1.05 if size > 1 else 1.8
        yield Case(f"{op}, {name}", "elementwise", ours, theirs, _normal((size,)), reach=reach)
    drop = partial(ops.dropout, keep_prob=0.8), partial(F.dropout, p=0.2)
    reach = 0.2 if size > 1 else 1.8
    yield Case(f"dropout keep 0.8, {name}", "elementwise", *drop, _normal((size,)), reach=reach)


def _without_gradient() -> Iterator[Case]:
    for op, (ours, theirs) in _ELEMENTWISE.items():
        yield Case(
            f"{op}, 1 element, no gradient", "no gradient", ours, theirs, _normal((1,)), backward=False, reach=1.6
        )


def _dense(
    n: int, batch: int, reach: float, reach_compiled: float | None = None, reach_bytes: float | None = None
) -> Case:
    def theirs(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.dropout(F.relu(F.linear(x, weight, bias)), 0.2)

    return Case(
        f"dense {n}→{n}, batch {batch}, ReLU, keep 0.8",
        "layers",
        partial(ops.dense, activation="relu", keep_prob=0.8),
        theirs,
        _normal((batch, n), (n, n), (n,)),
        reach=reach,
        reach_compiled=reach_compiled,
        reach_bytes=reach_bytes,
    )


def _linear(n: int, batch: int) -> Case:
    return Case(f"linear {n}→{n}, batch {batch}", "layers", ops.linear, F.linear, _normal((batch, n), (n, n), (n,)))


def _mlp(sizes: list[int], batch: int, reach: float | None = None) -> Case:
    """The whole step of a network: forward, loss, gradients of the parameters."""
    torch.manual_seed(0)
    ours = tn.MLP(sizes)
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(sizes):
        layers += [nn.Linear(n_in, n_out), nn.ReLU()]
    theirs = nn.Sequential(*layers[:-1])
    theirs.load_state_dict(ours.state_dict())
    loss = nn.BCEWithLogitsLoss()

    def make(device: str) -> Sequence[Tensor]:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(batch, sizes[0], generator=generator).to(device)
        return [x, (x[:, :1] > 0).float()]

    name = ", ".join(map(str, sizes))
    return Case(f"MLP({name}), batch {batch}, BCE", "layers", _Net(ours, loss), _Net(theirs, loss), make, reach=reach)


class _Net(nn.Module):
    """A network and its loss as one function of a batch."""

    def __init__(self, net: nn.Module, loss: nn.Module) -> None:
        super().__init__()
        self.net, self.loss = net, loss

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        cost: Tensor = self.loss(self.net(x), y)
        return cost


def _cross_entropy(batch: int, classes: int, reach: float) -> Case:
    target = torch.arange(batch) % classes

    def against(function: Function) -> Function:
        return lambda z: function(z, target.to(z.device))

    return Case(
        f"cross_entropy {batch}×{classes}",
        "losses",
        against(ops.cross_entropy),
        against(F.cross_entropy),
        _normal((batch, classes)),
        reach=reach,
        reach_bytes=1.0,
    )


def _softmax(batch: int, classes: int) -> Iterator[Case]:
    for name in ("softmax", "log_softmax"):
        ours, theirs = partial(getattr(ops, name), dim=-1), partial(getattr(F, name), dim=-1)
        yield Case(f"{name} {batch}×{classes}", "losses", ours, theirs, _normal((batch, classes)))


def _binary(size: int) -> Iterator[Case]:
    target = (torch.arange(size) % 2).float()

    def logits(function: Function) -> Function:
        return lambda z: function(z, target.to(z.device))

    def probabilities(function: Function, squash: Function) -> Function:
        return lambda z: function(squash(z), target.to(z.device))

    pair = logits(ops.binary_cross_entropy_with_logits), logits(F.binary_cross_entropy_with_logits)
    yield Case(f"binary_cross_entropy_with_logits, {size}", "losses", *pair, _normal((size,)))
    pair = probabilities(ops.binary_cross_entropy, ops.sigmoid), probabilities(F.binary_cross_entropy, torch.sigmoid)
    yield Case(f"sigmoid and binary_cross_entropy, {size}", "losses", *pair, _normal((size,)))


def _batch_norm(*shape: int) -> Case:
    def normalise(function: Function) -> Function:
        return lambda x, gamma, beta: function(x, None, None, gamma, beta, training=True)

    size = "×".join(map(str, shape))
    return Case(
        f"batch_norm {size}, training",
        "losses",
        normalise(ops.batch_norm),
        normalise(F.batch_norm),
        _normal(shape, (shape[1],), (shape[1],)),
        reach=1.4,
        reach_bytes=1.0,
    )


def all_cases(*, quick: bool = False) -> list[Case]:
    """Every row, or with ``quick`` the same kinds of work at sizes that take no time."""
    large, wide, deep = (100_000, 64, (4, 8, 6, 6)) if quick else (10_000_000, 1024, (32, 64, 56, 56))
    return [
        *_elementwise(large, "100 k" if quick else "10 M"),
        *_elementwise(1, "1 element"),
        *_without_gradient(),
        _dense(wide, 4 * wide, reach=1 / 1.5, reach_compiled=1 / 2, reach_bytes=1 / 3),
        _dense(wide // 4, 128, reach=1 / 1.2),
        _linear(wide, 4 * wide),
        _linear(wide // 4, 128),
        _mlp([20, 7, 5, 1], 209, reach=1.0),
        _mlp([wide // 4] * 5 + [1], 512),
        _cross_entropy(256, 320 if quick else 32_000, reach=1.0),
        _cross_entropy(128, 10, reach=1.4),
        *_softmax(256, wide),
        *_binary(wide * wide),
        _batch_norm(256, wide),
        _batch_norm(*deep),
    ]
