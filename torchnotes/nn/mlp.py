"""The notes' L-layer network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from torchnotes._checks import describe
from torchnotes.nn._whole import whole_network
from torchnotes.nn.dropout import Dropout
from torchnotes.nn.leaky_relu import LeakyReLU
from torchnotes.nn.linear import Linear, check_size
from torchnotes.nn.relu import ReLU
from torchnotes.nn.sigmoid import Sigmoid
from torchnotes.nn.tanh import Tanh
from torchnotes.ops.dropout import check_keep_prob

Activation = str | Callable[[], nn.Module] | None

_BY_NAME: dict[str, Callable[[], nn.Module] | None] = {
    "relu": ReLU,
    "sigmoid": Sigmoid,
    "tanh": Tanh,
    "leaky_relu": LeakyReLU,
    "identity": None,
}


class MLP(nn.Sequential):
    """Fully connected network: a⁽ˡ⁾ = g(a⁽ˡ⁻¹⁾ W⁽ˡ⁾ᵀ + b⁽ˡ⁾) for l = 1 … L, with a⁽⁰⁾ = x.

    Hidden layers have the activation; the last layer is linear, so that its output goes to a loss that takes logits
    or to a regression loss as it is. Dropout follows the activation.

    It is an `nn.Sequential` of `Linear`, activation and `Dropout` layers, in that order and without the ones that would
    do nothing, so ``state_dict`` is that of the same `torch.nn.Sequential` and loads both ways.

    Args:
        sizes: n_0, n_1, …, n_L: the inputs, the hidden units of each layer, the outputs.
        activation: g of the hidden layers: "relu", "sigmoid", "tanh", "leaky_relu", "identity" (or None), or a callable
            that makes a module, such as ``torch.nn.GELU``. A sequence gives one for each hidden layer, or, with one
            more entry, for each layer including the last.
        keep_prob: the share dropout keeps after each hidden layer. A sequence gives one for each hidden layer, or, with
            one more entry at the front, for the input and each hidden layer. 1 means no dropout.
        bias: False leaves every b out.
        generator: where dropout's random numbers come from; the global generator if None.
        device: where the parameters live.
        dtype: their floating-point type.

    Raises:
        TypeError: a size is not a whole number, an activation neither a name nor a callable.
        ValueError: fewer than two sizes, an unknown name, a sequence of another length, ``keep_prob`` outside (0, 1].

    Source: the notes, "deep neural networks" and "dropout regularisation"; SPEC A13, A10.

    >>> MLP([20, 7, 5, 1], keep_prob=[0.8, 1.0])
    MLP(
      (0): Linear(in_features=20, out_features=7, bias=True)
      (1): ReLU()
      (2): Dropout(keep_prob=0.8)
      (3): Linear(in_features=7, out_features=5, bias=True)
      (4): ReLU()
      (5): Linear(in_features=5, out_features=1, bias=True)
    )
    """

    def __init__(
        self,
        sizes: Sequence[int],
        activation: Activation | Sequence[Activation] = "relu",
        keep_prob: float | Sequence[float] = 1.0,
        *,
        bias: bool = True,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        sizes = _check_sizes(sizes)
        activations = _per_layer_activations(activation, hidden=len(sizes) - 2)
        keep_probs = _per_layer_keep_probs(keep_prob, hidden=len(sizes) - 2)
        layers: list[nn.Module] = []
        if keep_probs[0] < 1:
            layers.append(Dropout(keep_probs[0], generator=generator))
        for n_in, n_out, make, keep in zip(sizes[:-1], sizes[1:], activations, [*keep_probs[1:], 1.0], strict=True):
            layers.append(Linear(n_in, n_out, bias, device=device, dtype=dtype))
            if make is not None:
                layers.append(make())
            if keep < 1:
                layers.append(Dropout(keep, generator=generator))
        super().__init__(*layers)

    def forward(self, input: Float[Tensor, "*batch n_0"]) -> Float[Tensor, "*batch n_L"]:
        """Return a⁽ᴸ⁾, (*, n_0) to (*, n_L).

        Where nothing looks between the layers the whole net is one op with one backward, the notes' two loops: the
        same numbers, for a fraction of the calls. A hook on a layer, a layer of another kind, a transform, forward mode
        or the compiler take the layers one by one.
        """
        modules = list(self)
        if modules and type(modules[0]) is Dropout:  # of the input
            input = modules.pop(0)(input)
        output = whole_network(modules, input)
        if output is not None:
            return output
        for module in modules:
            input = module(input)
        return input

    def __getitem__(self, index: Any) -> Any:
        """One layer, or the `nn.Sequential` of a slice of them."""
        if isinstance(index, slice):
            return nn.Sequential(*list(self)[index])
        return super().__getitem__(index)


def _check_sizes(sizes: object) -> list[int]:
    if isinstance(sizes, str) or not isinstance(sizes, Sequence):
        raise TypeError(f"sizes must be a sequence of whole numbers, got {describe(sizes)}; write [20, 7, 5, 1].")
    if len(sizes) < 2:
        raise ValueError(
            f"sizes must have at least the number of inputs and of outputs, got {list(sizes)}; "
            "[20, 1] is one layer, each number between them a hidden layer."
        )
    return [check_size(size, f"sizes[{i}]") for i, size in enumerate(sizes)]


def _per_layer_activations(
    activation: Activation | Sequence[Activation], hidden: int
) -> list[Callable[[], nn.Module] | None]:
    """One factory for each layer, the last included; None where nothing follows."""
    if isinstance(activation, str) or not isinstance(activation, Sequence):
        return [_factory(activation)] * hidden + [None]
    if len(activation) not in (hidden, hidden + 1):
        raise ValueError(
            f"activation must have one entry for each of the {hidden} hidden layers, or {hidden + 1} with the last "
            f"layer's, got {len(activation)}; a single name serves all hidden layers."
        )
    given = [_factory(entry) for entry in activation]
    return given + [None] * (hidden + 1 - len(given))


def _factory(activation: Any) -> Callable[[], nn.Module] | None:
    if activation is None:
        return None
    if isinstance(activation, str):
        if activation not in _BY_NAME:
            raise ValueError(
                f"activation must be one of {', '.join(_BY_NAME)}, got {activation!r}; "
                "for another one pass a callable that makes the module, such as torch.nn.GELU."
            )
        return _BY_NAME[activation]
    if isinstance(activation, nn.Module) or not callable(activation):
        raise TypeError(
            f"activation must be a name or a callable that makes a module, got {describe(activation)}; "
            "pass the class rather than an instance, so that every layer has its own."
        )
    make: Callable[[], nn.Module] = activation
    return make


def _per_layer_keep_probs(keep_prob: float | Sequence[float], hidden: int) -> list[float]:
    """One probability for the input and for each hidden layer."""
    if not isinstance(keep_prob, Sequence):
        check_keep_prob(keep_prob)
        return [1.0] + [keep_prob] * hidden
    given = list(keep_prob)
    if len(given) not in (hidden, hidden + 1):
        raise ValueError(
            f"keep_prob must have one entry for each of the {hidden} hidden layers, or {hidden + 1} with the input's "
            f"in front, got {len(given)}; a single number serves all hidden layers."
        )
    for i, entry in enumerate(given):
        check_keep_prob(entry, f"keep_prob[{i}]")
    return [1.0] * (hidden + 1 - len(given)) + given
