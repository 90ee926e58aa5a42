"""Kinks seen structurally: which side, which winner, which order an evaluation took at every piecewise operation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from torchnotes.gradcheck._recorder import Recorder, uncompiled

#: Operations with a kink or a jump where their first argument is zero (or crosses the bounds that follow it).
_AT_ZERO = {
    "relu", "relu_", "abs", "abs_", "sign", "sgn", "leaky_relu", "leaky_relu_", "prelu", "_prelu_kernel", "rrelu",
    "rrelu_with_noise", "celu", "elu", "selu", "heaviside", "frac", "log_sigmoid_forward", "copysign", "hypot", "rsub",
    "norm", "linalg_vector_norm", "_cdist_forward", "_euclidean_dist", "_pdist_forward", "dist", "l1_loss", "angle",
}  # fmt: skip
_STEPS = {"floor", "ceil", "round", "trunc", "fix", "floor_divide", "frac"}
_BOUNDS = {
    "clamp", "clamp_", "clamp_min", "clamp_min_", "clamp_max", "clamp_max_", "hardtanh", "hardtanh_", "threshold",
    "threshold_", "hardshrink", "softshrink", "hardsigmoid", "hardswish", "relu6", "clip",
}  # fmt: skip
_FIXED_BOUNDS = {"hardsigmoid": (-3.0, 3.0), "hardswish": (-3.0, 3.0), "relu6": (0.0, 6.0), "hardtanh": (-1.0, 1.0)}
_PAIRS = {
    "maximum", "minimum", "fmax", "fmin", "remainder", "fmod", "smooth_l1_loss", "huber_loss", "l1_loss", "dist",
    "_cdist_forward", "cdist",
}  # fmt: skip
_WINNERS = {"amax": torch.amax, "amin": torch.amin, "aminmax": torch.amax, "max": torch.amax, "min": torch.amin}
_LOSS_WITH_DELTA = {"smooth_l1_loss", "huber_loss"}


class _Decisions(Recorder):
    """Records every discrete decision of the operations run under it, below autograd.

    Recorded are: the integer and boolean outputs of every operation (comparisons, positions of maxima, sorted orders,
    pooled positions), and for the piecewise operations that keep their decision to themselves, on which side of each
    corner every element lies. Two runs that took the same decisions lie in one smooth piece.
    """

    def __init__(self) -> None:
        super().__init__()
        self.decisions: list[Tensor] = []

    def operation(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the operation, and record what it decided."""
        name = func.overloadpacket.__name__
        self._before(name, args)
        out = func(*args, **kwargs)
        for value in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(value, Tensor) and not value.is_floating_point() and not value.is_complex():
                self.decisions.append(value.clone())
        if name in _STEPS and isinstance(out, Tensor):
            self.decisions.append(out.clone())
        return out

    def _before(self, name: str, args: tuple[Any, ...]) -> None:
        tensors = [a for a in args if isinstance(a, Tensor) and a.is_floating_point()]
        if not tensors:
            return
        x = tensors[0]
        if name in _AT_ZERO:
            self.decisions.append(_side(x))
        if name in _BOUNDS:
            bounds = [a for a in args[1:] if isinstance(a, (int, float))] or list(_FIXED_BOUNDS.get(name, (0.5, -0.5)))
            for bound in [*bounds, *(-b for b in bounds)]:
                self.decisions.append(_side(x - bound))
            self.decisions.extend(_side(x - b) for b in tensors[1:])
        if name in _PAIRS and len(tensors) > 1:
            difference = x - tensors[1] if _broadcastable(x, tensors[1]) else x
            self.decisions.append(_side(difference))
            if name in _LOSS_WITH_DELTA:
                delta = next((a for a in args[3:] if isinstance(a, (int, float))), 1.0)
                self.decisions.append(_side(difference.abs() - delta))
        if name in _WINNERS and x.numel():
            dim = args[1] if len(args) > 1 and isinstance(args[1], (int, list, tuple)) else None
            axes = list(range(x.dim())) if dim is None or dim == [] else dim
            if x.dim():
                self.decisions.append(x == _WINNERS[name](x, dim=axes, keepdim=True))


class BranchRecorder(_Decisions, TorchDispatchMode):
    """The recorder as a mode, made of two classes for the reason given at `Recorder`."""


def _side(x: Tensor) -> Tensor:
    return torch.sign(x).to(torch.int8)


def _broadcastable(a: Tensor, b: Tensor) -> bool:
    try:
        torch.broadcast_shapes(a.shape, b.shape)
    except RuntimeError:
        return False
    return True


def branches(evaluate: Callable[[], object]) -> list[Tensor]:
    """The decisions one evaluation took."""
    with BranchRecorder() as recorder, torch.no_grad(), uncompiled():
        evaluate()
    decisions: list[Tensor] = recorder.decisions
    return decisions


def same_branches(a: list[Tensor], b: list[Tensor]) -> bool:
    """Whether two evaluations took the same decisions throughout."""
    return len(a) == len(b) and all(x.shape == y.shape and torch.equal(x, y) for x, y in zip(a, b, strict=True))
