"""A layer of the notes' network: linear map, activation and dropout."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from torchnotes.nn.linear import Linear
from torchnotes.ops.dense import check_activation, check_alpha, dense
from torchnotes.ops.dropout import check_keep_prob


class Dense(Linear):
    """y = dropout(g(x Wᵀ + b)), one hand-derived op with one backward: `torchnotes.ops.dense` has the mathematics.

    It does what ``nn.Sequential(nn.Linear, nn.ReLU, nn.Dropout)`` does, and keeps only x, W and y for backward. Its
    parameters are those of `torch.nn.Linear`, whose ``state_dict`` it loads and which loads its.

    Args:
        in_features: n_in.
        out_features: n_out.
        activation: "relu", "sigmoid", "tanh", "leaky_relu" or "identity".
        keep_prob: the share that dropout keeps in training mode, in (0, 1]; 1 means no dropout.
        bias: False leaves b out.
        negative_slope: α ≥ 0 of leaky ReLU; unused by the others.
        generator: where dropout's random numbers come from; the global generator if None.
        device: where the parameters live.
        dtype: their floating-point type.

    Raises:
        TypeError: a size is not a whole number.
        ValueError: the activation has no such name, or a number is out of its range.

    Source: the notes, "building blocks of a deep neural network"; SPEC A12.

    >>> Dense(20, 7, "tanh", keep_prob=0.8)
    Dense(in_features=20, out_features=7, bias=True, activation='tanh', keep_prob=0.8)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        activation: str = "relu",
        keep_prob: float = 1.0,
        *,
        bias: bool = True,
        negative_slope: float = 0.01,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_activation(activation)
        check_keep_prob(keep_prob)
        check_alpha(negative_slope)
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        self.activation = activation
        self.keep_prob = keep_prob
        self.negative_slope = negative_slope
        self.generator = generator

    def forward(self, input: Float[Tensor, "*batch n_in"]) -> Float[Tensor, "*batch n_out"]:
        """Return dropout(g(x Wᵀ + b)), (*, n_in) to (*, n_out)."""
        return dense(
            input,
            self.weight,
            self.bias,
            activation=self.activation,
            keep_prob=self.keep_prob,
            training=self.training,
            negative_slope=self.negative_slope,
            generator=self.generator,
        )

    def extra_repr(self) -> str:
        """Sizes, activation and the share kept."""
        slope = f", negative_slope={self.negative_slope}" if self.activation == "leaky_relu" else ""
        return f"{super().extra_repr()}, activation={self.activation!r}{slope}, keep_prob={self.keep_prob}"
