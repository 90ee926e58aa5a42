"""What an elementwise function does to a normal variable, by numerical quadrature of the very function.

A unit of a wide layer sees z ~ N(μ, q) (a sum of many independent terms). Everything the theory of signal propagation
asks of an activation φ is then an integral over that one variable: E φ(z)², E φ'(z)², their kurtoses, and for a pair of
samples E φ(u)φ(v). All are read off the function itself, so that any activation will do.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Elementwise = Callable[[Tensor], Tensor]

# Midpoints z_k = (k + ½) h between ±9: no node at 0, where ReLU has its kink, and a symmetric grid, so that ReLU,
# leaky ReLU and the linear function are exact. A smooth integrand converges faster than any power of h; a jump of φ'
# elsewhere costs at most h/2 · pdf(0) ≈ 8e-4 of it (a Gauss–Hermite rule of 200 nodes, 0.16 apart, errs by 3e-2).
_HALF_WIDTH = 9.0  # beyond, the density is below 1e-18: less than the round-off of the sum
_NODES = 2**12
_STEP = 2 * _HALF_WIDTH / _NODES
_HERMITE_TERMS = 64


@functools.cache
def _rule() -> tuple[Tensor, Tensor]:
    """Nodes z and weights of the density of N(0, 1)."""
    z = (torch.arange(_NODES, dtype=torch.float64, device="cpu") + 0.5) * _STEP - _HALF_WIDTH
    weight = torch.exp(-z * z / 2)
    return z, weight / weight.sum()


@functools.cache
def _hermite_rows() -> Tensor:
    """Row k: h_k(z) times the weight, so that a_k = E φ h_k is one product; 64 × 4096 numbers, made once."""
    z, weight = _rule()
    rows = [torch.ones_like(z), z]
    for k in range(1, _HERMITE_TERMS - 1):
        # √(k+1) h_{k+1} = z h_k − √k h_{k−1}
        rows.append((z * rows[k] - math.sqrt(k) * rows[k - 1]) / math.sqrt(k + 1))
    return torch.stack(rows) * weight


@dataclass(frozen=True, slots=True)
class ActivationMoments:
    """Gaussian integrals of φ(z) and its slope, z ~ N(mean, variance).

    Attributes:
        mean: E φ.
        second: E φ².
        slope_second: E φ'², the factor on the squared gradient.
        kurtosis: E φ⁴ / (E φ²)² − 1, the relative variance of one unit's square going forward.
        slope_kurtosis: 3 E φ'⁴ / (E φ'²)² − 1, the same going backward, where a unit's square is φ'² h² with h normal.
        response: d ln E φ² / d ln q at fixed μ/√q: 1 for a homogeneous function, below 1 where the scale is restored.
        slope_response: d ln E φ'² / d ln q, likewise.
    """

    mean: float
    second: float
    slope_second: float
    kurtosis: float
    slope_kurtosis: float
    response: float
    slope_response: float


def activation_moments(function: Elementwise, mean: float = 0.0, variance: float = 1.0) -> ActivationMoments:
    """The Gaussian integrals of an elementwise function; see :class:`ActivationMoments`.

    Args:
        function: φ, any differentiable elementwise function or module; called on a float64 vector.
        mean: μ of its input.
        variance: q of its input about that mean.

    Raises:
        ValueError: the variance is negative or not finite, or φ is not elementwise.

    Source: Poole et al. 2016, Schoenholz et al. 2017 (the integrals); Hanin and Nica 2020 (the kurtosis).

    >>> relu = activation_moments(torch.relu)
    >>> round(relu.second, 6), round(relu.slope_second, 6), round(relu.kurtosis, 4)
    (0.5, 0.5, 5.0)
    """
    if not (math.isfinite(mean) and math.isfinite(variance) and variance >= 0):
        raise ValueError(
            f"variance must be finite and at least 0 and mean finite, got variance={variance!r}, mean={mean!r}; "
            "measure them on a layer whose values are all finite."
        )
    z, weight = _rule()
    value, slope = _value_and_slope(function, mean + math.sqrt(variance) * z)

    def expect(integrand: Tensor) -> float:
        return float(weight @ integrand)

    second, slope_second = expect(value**2), expect(slope**2)
    # d/d ln q of E f(√q y), by a central difference of the same integral at scales q·(1 ± 2h).
    h = 1e-3
    wide_value, wide_slope = _value_and_slope(function, (mean + math.sqrt(variance) * z) * (1 + h))
    near_value, near_slope = _value_and_slope(function, (mean + math.sqrt(variance) * z) * (1 - h))
    return ActivationMoments(
        mean=expect(value),
        second=second,
        slope_second=slope_second,
        kurtosis=_ratio(expect(value**4), second**2) - 1,
        slope_kurtosis=3 * _ratio(expect(slope**4), slope_second**2) - 1,
        response=_log_ratio(expect(wide_value**2), expect(near_value**2)) / (4 * h),
        slope_response=_log_ratio(expect(wide_slope**2), expect(near_slope**2)) / (4 * h),
    )


def shared_second_moment(function: Elementwise, variance: float, correlation: float, mean: float = 0.0) -> float:
    """E φ(u)φ(v) for two samples' pre-activations: both N(mean, variance), correlated by ``correlation``.

    In normalised Hermite polynomials φ(μ + √q z) = Σ a_k h_k(z), and E h_j(u) h_k(v) = δ_jk cᵏ, so the answer is
    Σ a_k² cᵏ. The tail beyond the last term kept has the weight E φ² − Σ a_k² (Parseval) and is put on its power.

    >>> relu_of_unrelated = shared_second_moment(torch.relu, 1.0, 0.0)
    >>> round(relu_of_unrelated * 2 * math.pi, 4)  # (E relu)² = 1/2π
    1.0
    """
    z, weight = _rule()
    value, _ = _value_and_slope(function, mean + math.sqrt(variance) * z, want_slope=False)
    c = min(max(correlation, -1.0), 1.0)
    squares = (_hermite_rows() @ value).square()
    powers = torch.full((_HERMITE_TERMS,), c, dtype=torch.float64, device="cpu") ** torch.arange(
        _HERMITE_TERMS, device="cpu"
    )
    tail = max(float(weight @ value**2 - squares.sum()), 0.0)
    return float(squares @ powers) + tail * c**_HERMITE_TERMS


def is_elementwise(function: Callable[..., object]) -> bool:
    """Whether a function maps each entry by itself: same shape, and an entry's image depends on no other entry.

    Tried on numbers, not on types, so that a hand-written activation counts. Anything that fails to run is not.
    """
    sample = torch.linspace(-3.0, 3.0, 30, dtype=torch.float64, device="cpu").reshape(5, 6)
    try:
        with torch.no_grad():
            # Clones: an in-place function writes on what it is given.
            whole = function(sample.clone())
            flipped = function(sample.flip(0, 1))
            part = function(sample[1:3, 2:4].clone())
            again = function(sample.clone())
    except (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError):
        return False
    if not (isinstance(whole, Tensor) and isinstance(flipped, Tensor)):
        return False
    if not (isinstance(part, Tensor) and isinstance(again, Tensor)):
        return False
    if whole.shape != sample.shape or part.shape != sample[1:3, 2:4].shape or not whole.dtype.is_floating_point:
        return False
    return (
        torch.equal(whole, again)
        and torch.allclose(whole.flip(0, 1), flipped, equal_nan=True)
        and torch.allclose(whole[1:3, 2:4], part, equal_nan=True)
    )


def slope_of(function: Elementwise) -> Elementwise:
    """φ' as a function of its own."""
    return lambda z: _value_and_slope(function, z)[1]


def is_homogeneous(function: Elementwise) -> bool:
    """Whether φ(a z) = a φ(z) for a > 0, so that its constants do not depend on the scale of its input."""
    z = torch.linspace(-3.0, 3.0, 60, dtype=torch.float64, device="cpu")
    with torch.no_grad():
        return all(torch.allclose(function(a * z), a * function(z.clone()), rtol=1e-9) for a in (1e-3, 1e3))


def as_elementwise(module: nn.Module) -> Elementwise | None:
    """A module as a float64 function on the CPU, without touching the module; None where it is not elementwise."""
    if any(True for _ in module.children()) or any(parameter.numel() > 1 for parameter in module.parameters()):
        return None
    # A shallow copy with tensors of its own: a deep one would copy what the module's hooks hold on to.
    twin = copy.copy(module)
    for held in ("_parameters", "_buffers"):
        tensors = {name: _on_host(tensor) for name, tensor in vars(module)[held].items()}
        vars(twin)[held] = tensors
    for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
        vars(twin)[hooks] = {}
    twin.training = False

    def function(x: Tensor) -> Tensor:
        result = twin(x)
        assert isinstance(result, Tensor)
        return result

    return function if is_elementwise(twin) else None


def _on_host(tensor: Tensor | None) -> Tensor | None:
    if tensor is None:
        return None
    host = tensor.detach().cpu()
    return host.double() if host.dtype.is_floating_point else host.clone()


def _value_and_slope(function: Elementwise, x: Tensor, *, want_slope: bool = True) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        # A clone goes in: an activation with inplace=True may not write on a leaf.
        leaf = x.detach().clone().requires_grad_(want_slope)
        value = function(leaf.clone())
        if value.shape != x.shape:
            raise ValueError(
                f"function must be elementwise, got an output of shape {tuple(value.shape)} for an input of shape "
                f"{tuple(x.shape)}; pass the activation alone."
            )
        if not want_slope:
            return value.detach().double(), torch.empty(0)
        slope = torch.zeros_like(x)
        if value.requires_grad:
            (slope,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach().double(), slope.detach().double()


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator > 0 else math.nan


def _log_ratio(numerator: float, denominator: float) -> float:
    return math.log(numerator / denominator) if numerator > 0 and denominator > 0 else 0.0
