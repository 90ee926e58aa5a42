"""Running a stack of layers as one op where nothing looks between them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from torchnotes.nn.dropout import Dropout
from torchnotes.nn.leaky_relu import LeakyReLU
from torchnotes.nn.linear import Linear
from torchnotes.nn.relu import ReLU
from torchnotes.nn.sigmoid import Sigmoid
from torchnotes.nn.tanh import Tanh
from torchnotes.ops._function import plain_eager
from torchnotes.ops._network import Layer, NetworkFunction
from torchnotes.ops.dropout import draw_mask
from torchnotes.ops.linear import check_linear, rows

_NAMES = {ReLU: "relu", Sigmoid: "sigmoid", Tanh: "tanh", LeakyReLU: "leaky_relu"}

_Step = tuple[Linear, str, float, Dropout | None]  # the activation, its slope below zero, and the dropout that follow


def whole_network(modules: Iterable[nn.Module], input: Tensor) -> Tensor | None:
    """What the modules one after the other would return, by one op with one backward; None where that cannot be.

    It can be where they are linear layers, each with at most one activation and one dropout after it, no hook is on
    any of them, and no transform, forward mode or compiler is at work.
    """
    if not plain_eager() or _has_any_global_hook():
        return None
    steps = _steps(modules)
    if not steps:
        return None
    first = steps[0][0]._parameters
    check_linear(input, cast(Tensor, first["weight"]), first["bias"])
    x = input if input.dim() == 2 else rows(input)
    layers: list[Layer] = []
    tensors: list[Tensor | None] = []
    for linear, activation, alpha, dropout in steps:
        parameters = linear._parameters
        mask, scale = None, 1.0
        if dropout is not None and dropout.training:
            shape = x.shape[0], linear.weight.shape[0]
            mask, scale = draw_mask(shape, x.device, dropout.keep_prob, dropout.generator)
        layers.append((activation, alpha, scale))
        tensors += (parameters["weight"], parameters["bias"], mask)
    outputs: tuple[Tensor, ...] = NetworkFunction.call(x, tuple(layers), *tensors)
    y = outputs[-1]
    return y if x is input else y.view(*input.shape[:-1], y.shape[-1])


def _steps(modules: Iterable[nn.Module]) -> list[_Step] | None:
    """The linear layers and what follows each, or None where a module is to be called on its own."""
    steps: list[_Step] = []
    for module in modules:
        own = module.__dict__
        if (
            own["_forward_hooks"]
            or own["_forward_pre_hooks"]
            or own["_backward_hooks"]
            or own["_backward_pre_hooks"]
            or "forward" in own
        ):
            return None  # a call of it does more than its class's forward
        kind = type(module)
        if kind is Linear:
            steps.append((cast(Linear, module), "identity", 0.0, None))
            continue
        if not steps:
            return None
        linear, activation, alpha, dropout = steps[-1]
        if kind in _NAMES and activation == "identity" and dropout is None:
            alpha = own.get("negative_slope", 0.0)
            if alpha < 0:  # y would not tell the sign of z
                return None
            steps[-1] = (linear, _NAMES[kind], alpha, None)
        elif kind is Dropout and dropout is None:
            steps[-1] = (linear, activation, alpha, cast(Dropout, module))
        else:
            return None
    return steps
