"""Linear layer."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from torchnotes._checks import describe
from torchnotes.ops.linear import linear


class Linear(nn.Module):
    """Linear layer, y = x Wᵀ + b over the last axis; its backward is `torchnotes.ops.linear`'s.

    Parameters, their names, their initial values for a given seed and their ``state_dict`` are those of
    `torch.nn.Linear`: W and b uniform in ±1/√n_in. `torchnotes.init.initialize_` puts a scheme of the notes in their
    place.

    Args:
        in_features: n_in.
        out_features: n_out.
        bias: False leaves b out.
        device: where the parameters live.
        dtype: their floating-point type.

    Raises:
        TypeError: a size is not a whole number.
        ValueError: a size is negative.

    Source: the notes, "deep networks: getting the matrix dimensions right"; SPEC A1, A13.

    >>> Linear(20, 7)
    Linear(in_features=20, out_features=7, bias=True)
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features = check_size(in_features, "in_features")
        self.out_features = check_size(out_features, "out_features")
        self.weight = nn.Parameter(torch.empty(out_features, in_features, device=device, dtype=dtype))
        self.register_parameter(
            "bias", nn.Parameter(torch.empty(out_features, device=device, dtype=dtype)) if bias else None
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw W and b uniformly from ±1/√n_in, W first, as `torch.nn.Linear` does."""
        bound = 1 / math.sqrt(self.in_features) if self.in_features else 0.0
        with torch.no_grad():
            self.weight.uniform_(-bound, bound)
            if self.bias is not None:
                self.bias.uniform_(-bound, bound)

    def forward(self, input: Float[Tensor, "*batch n_in"]) -> Float[Tensor, "*batch n_out"]:
        """Return x Wᵀ + b, (*, n_in) to (*, n_out)."""
        return linear(input, self.weight, self.bias)

    def extra_repr(self) -> str:
        """Sizes, as `torch.nn.Linear` prints them."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


def check_size(size: int, name: str) -> int:
    """Refuse anything but a whole number of units, zero included."""
    if isinstance(size, bool) or not isinstance(size, int):
        raise TypeError(f"{name} must be a whole number, got {describe(size)}; give the number of units.")
    if size < 0:
        raise ValueError(f"{name} must be 0 or more, got {size}; give the number of units.")
    return size
