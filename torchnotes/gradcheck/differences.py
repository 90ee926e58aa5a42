"""Numerical derivatives: one-sided, two-sided and five-point differences, one coordinate at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from torchnotes._checks import check_floating, check_in_range, describe

Scheme = Literal["central", "forward", "five-point"]


@dataclass(frozen=True)
class Stencil:
    """A finite-difference formula, f'(θ) ≈ Σ_k w_k f(θ + k ε) / ε.

    Attributes:
        offsets: the multiples k of ε at which f is evaluated.
        weights: the weight w_k of each.
        order: the truncation error is O(ε^order).
    """

    offsets: tuple[int, ...]
    weights: tuple[float, ...]
    order: int

    @property
    def gain(self) -> float:
        """√(Σ w_k²): independent round-off of size σ in f becomes gain · σ/ε in the derivative."""
        return math.sqrt(sum(w * w for w in self.weights))


STENCILS: dict[str, Stencil] = {
    "forward": Stencil((0, 1), (-1.0, 1.0), 1),
    "central": Stencil((-1, 1), (-1 / 2, 1 / 2), 2),
    # Richardson: (4 D(ε) − D(2ε)) / 3 of two central differences, which removes the ε² term.
    "five-point": Stencil((-2, -1, 1, 2), (1 / 12, -2 / 3, 2 / 3, -1 / 12), 4),
}


def numerical_gradient(
    f: Callable[[Tensor], Tensor | float], theta: Tensor, *, eps: float = 1e-7, scheme: Scheme = "central"
) -> Tensor:
    """Gradient of a scalar function by finite differences, one coordinate of θ at a time.

    central (two-sided):  (f(θ + ε) − f(θ − ε)) / 2ε, error O(ε²)
    forward (one-sided):  (f(θ + ε) − f(θ)) / ε, error O(ε)
    five-point:           (f(θ − 2ε) − 8 f(θ − ε) + 8 f(θ + ε) − f(θ + 2ε)) / 12ε, error O(ε⁴)

    Each error term follows from Taylor's formula: f(θ ± ε) = f ± ε f' + ε²/2 f'' ± ε³/6 f''' + …; the difference of
    the two sides loses every even term, so what is left after f' is ε²/6 f'''. Round-off of f, of size σ, adds about
    σ/ε to all three, so ε must not be taken too small. Where θ + ε is not representable, the step that was really
    taken, (θ + ε) − (θ − ε), stands in the denominator of the one- and two-sided forms.

    Args:
        f: function of a tensor of θ's shape, returning one number. It must not keep or change its argument.
        theta: floating-point tensor of any shape; the arithmetic is done in its dtype.
        eps: the step ε, in the units of θ.
        scheme: ``"central"``, ``"forward"`` or ``"five-point"``.

    Returns:
        The approximate gradient, with the shape, dtype and device of ``theta``.

    Raises:
        TypeError: ``theta`` is not a floating-point tensor.
        ValueError: ``eps`` is not positive, the scheme is unknown, or f does not return one number.

    Source: the notes, "numerical approximation of gradients"; SPEC D1, D2.

    >>> theta = torch.tensor(1.0, dtype=torch.float64)
    >>> round(numerical_gradient(lambda t: t**3, theta, eps=0.01).item(), 6)
    3.0001
    >>> round(numerical_gradient(lambda t: t**3, theta, eps=0.01, scheme="forward").item(), 6)
    3.0301
    """
    check_floating(theta, "theta")
    check_in_range(eps, "eps", 0.0, float("inf"), low_open=True, remedy="1e-7 is usual in float64")
    if scheme not in STENCILS:
        raise ValueError(
            f"scheme must be one of {', '.join(map(repr, STENCILS))}, got {scheme!r}; "
            "'central' is the notes' two-sided difference."
        )
    stencil = STENCILS[scheme]
    with torch.no_grad():
        work = theta.detach().clone(memory_format=torch.contiguous_format)
        flat = work.view(-1)
        gradient = torch.empty_like(flat)
        for i in range(flat.numel()):
            gradient[i] = _coordinate(lambda: scalar(f(work), flat), flat, i, eps, stencil)
    return gradient.view(theta.shape)


def _coordinate(f: Callable[[], Tensor], flat: Tensor, i: int, eps: float, stencil: Stencil) -> Tensor:
    here = flat[i].clone()
    total = torch.zeros((), dtype=flat.dtype, device=flat.device)
    taken = torch.zeros_like(total)
    for k, weight in zip(stencil.offsets, stencil.weights, strict=True):
        flat[i] = here + k * eps
        taken = taken + weight * (flat[i] - here)  # Σ w_k · step_k = ε exactly where every step is representable
        total = total + weight * f()
    flat[i] = here
    return total / taken if float(taken) != 0.0 else total / eps


def scalar(value: Tensor | float, like: Tensor) -> Tensor:
    """One number as a 0-d tensor that shares no memory with what f was given."""
    if isinstance(value, torch.Tensor):
        if value.numel() != 1:
            raise ValueError(
                f"f must return one number, got {describe(value)}; reduce it to a scalar cost with .sum() or .mean()."
            )
        return value.detach().reshape(()).to(device=like.device, dtype=like.dtype, copy=True)
    return torch.as_tensor(value, dtype=like.dtype, device=like.device)
