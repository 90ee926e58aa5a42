"""Fill one weight tensor: zeros, small, 1/n, 2/n and 2/(n_in + n_out).

A weight has PyTorch's layout, (n_out, n_in) or (n_out, n_in, *kernel); the notes write W^{[l]} as (n_l, n_{l-1}), the
same. Each output is a sum of fan_in = n_in · ∏kernel terms, so for independent weights of variance s² and inputs of
second moment q the output has variance fan_in · s² · q: s² = 1/fan_in keeps it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from torchnotes._checks import check_floating, check_generator, check_in_range


def zeros_(tensor: Tensor, *, gain: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
    """Fill with zeros, which a network cannot learn from.

    With W = 0 every hidden unit computes the same function and receives the same gradient, so all remain equal for
    ever: the layer is one unit, copied. ``gain`` and ``generator`` are accepted, so that every scheme is called alike,
    and change nothing.

    Args:
        tensor: weight to fill in place, of any shape.
        gain: ignored after it is checked.
        generator: ignored after it is checked.

    Returns:
        ``tensor``.

    Source: the notes, "random initialisation"; SPEC B1.

    >>> zeros_(torch.ones(2, 2))
    tensor([[0., 0.],
            [0., 0.]])
    """
    _check(tensor, gain, generator)
    with torch.no_grad():
        return tensor.zero_()


def small_normal_(
    tensor: Tensor, *, scale: float = 0.01, gain: float = 1.0, generator: torch.Generator | None = None
) -> Tensor:
    """Fill with small random numbers: N(0, (gain · scale)²), whatever the layer's width.

    Enough to break the symmetry of a shallow network; in a deep one the signal shrinks by √fan_in · scale per layer.

    Args:
        tensor: weight to fill in place, of any shape.
        scale: standard deviation.
        gain: multiplies the standard deviation.
        generator: source of random numbers; PyTorch's global one when None.

    Returns:
        ``tensor``.

    Source: the notes, "random initialisation": ``randn * 0.01``; SPEC B2.

    >>> w = small_normal_(torch.empty(400, 400), generator=torch.Generator().manual_seed(0))
    >>> round(w.std().item(), 4)
    0.01
    """
    _check(tensor, gain, generator)
    check_in_range(scale, "scale", 0.0, math.inf, high_open=True, remedy="the notes use 0.01, a standard deviation")
    return _normal(tensor, gain * scale, generator)


def lecun_normal_(tensor: Tensor, *, gain: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
    """Fill with N(0, gain²/fan_in), the notes' choice before tanh.

    Var(z) = fan_in · Var(w) · E[a²] = gain² · E[a²]: a linear layer keeps the second moment. The notes call it Xavier
    initialisation; the field calls it LeCun's, and gives the name Xavier to 2/(n_in + n_out), see ``xavier_normal_``.

    Args:
        tensor: weight to fill in place, (n_out, n_in, *kernel).
        gain: multiplies the standard deviation.
        generator: source of random numbers; PyTorch's global one when None.

    Returns:
        ``tensor``.

    Source: the notes, "weight initialisation of deep networks": ``randn * √(1/n)``; SPEC B3, B6 and, for the printed
    form √√(1/n), G2.

    >>> w = lecun_normal_(torch.empty(100, 2500), generator=torch.Generator().manual_seed(0))
    >>> round(w.std().item(), 4)
    0.02
    """
    fan_in, _ = _check(tensor, gain, generator, fans=True)
    return _normal(tensor, gain * math.sqrt(1 / fan_in), generator)


def he_normal_(tensor: Tensor, *, gain: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
    """Fill with N(0, 2 gain²/fan_in), the choice before ReLU.

    ReLU passes half of a symmetric input's second moment, E[max(0, z)²] = Var(z)/2, so the variance doubles. Gain 1
    is the formula as it stands: √(2/n), not 2/√n.

    Args:
        tensor: weight to fill in place, (n_out, n_in, *kernel).
        gain: multiplies the standard deviation: the tunable multiplier of the notes.
        generator: source of random numbers; PyTorch's global one when None.

    Returns:
        ``tensor``.

    Source: the notes, "weight initialisation of deep networks"; He et al., arXiv:1502.01852; SPEC B4, B6, G4, G5.

    >>> w = he_normal_(torch.empty(100, 5000), generator=torch.Generator().manual_seed(0))
    >>> round(w.std().item(), 4)
    0.02
    """
    fan_in, _ = _check(tensor, gain, generator, fans=True)
    return _normal(tensor, gain * math.sqrt(2 / fan_in), generator)


def xavier_normal_(tensor: Tensor, *, gain: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
    """Fill with N(0, 2 gain²/(fan_in + fan_out)): a compromise between the two directions.

    Activations keep their scale at 1/fan_in, gradients at 1/fan_out; where the widths differ both cannot hold, and
    the harmonic mean of the two variances treats them alike.

    Args:
        tensor: weight to fill in place, (n_out, n_in, *kernel).
        gain: multiplies the standard deviation.
        generator: source of random numbers; PyTorch's global one when None.

    Returns:
        ``tensor``.

    Source: the notes, "weight initialisation of deep networks", the formula of Bengio and colleagues; Glorot and
    Bengio (2010); SPEC B5, B6.

    >>> w = xavier_normal_(torch.empty(1000, 4000), generator=torch.Generator().manual_seed(0))
    >>> round(w.std().item(), 4)
    0.02
    """
    fan_in, fan_out = _check(tensor, gain, generator, fans=True)
    return _normal(tensor, gain * math.sqrt(2 / (fan_in + fan_out)), generator)


def _normal(tensor: Tensor, std: float, generator: torch.Generator | None) -> Tensor:
    with torch.no_grad():
        return tensor.normal_(0.0, std, generator=generator)


def _check(tensor: Tensor, gain: float, generator: torch.Generator | None, *, fans: bool = False) -> tuple[int, int]:
    check_floating(tensor, "tensor")
    if is_lazy(tensor):
        raise ValueError(
            "tensor must have a shape, got an uninitialised parameter of a lazy module; "
            "run one batch through the model first, so that it learns its shapes."
        )
    check_in_range(
        gain,
        "gain",
        0.0,
        math.inf,
        high_open=True,
        remedy="it multiplies the standard deviation; 1.0 is the plain formula",
    )
    check_generator(generator, tensor.device)
    if not fans:
        return 0, 0
    if tensor.dim() < 2:
        raise ValueError(
            "tensor must have at least 2 dimensions (n_out, n_in, *kernel) to have a fan, "
            f"got shape {tuple(tensor.shape)}; a bias starts at zero: use zeros_."
        )
    kernel = math.prod(tensor.shape[2:])
    return max(1, tensor.shape[1] * kernel), max(1, tensor.shape[0] * kernel)
