"""What the losses share: how one number is made of many."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from torchnotes._checks import check_floating, describe
from torchnotes.ops._function import plain_eager

REDUCTIONS = ("none", "mean", "sum")
HALF = (torch.float16, torch.bfloat16)


def check_reduction(reduction: str, size_average: bool | None = None, reduce: bool | None = None) -> str:
    """The reduction asked for, the two deprecated booleans included, as PyTorch reads them."""
    if size_average is not None or reduce is not None:
        average = True if size_average is None else size_average
        reduction = "none" if reduce is False else "mean" if average else "sum"
        warnings.warn(
            f"size_average and reduce args will be deprecated, please use reduction='{reduction}' instead.",
            stacklevel=3,
        )
    if reduction not in REDUCTIONS:
        raise ValueError(f"{reduction!r} is not a valid value for reduction; use 'none', 'mean' or 'sum'.")
    return reduction


def reduce_losses(losses: Tensor, reduction: str) -> Tensor:
    """The losses themselves, their mean or their sum."""
    if reduction == "none":
        return losses
    return losses.mean() if reduction == "mean" else losses.sum()


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32 for half precision: 1/m and a sum of m losses leave its range or its digits for a large m."""
    return torch.float32 if dtype in HALF else dtype


def expand_weight(weight: Tensor, input: Tensor, dtype: torch.dtype, name: str = "weight") -> Tensor:
    """A rescaling weight in the shape of the losses, refused where it would make them larger."""
    check_floating(weight, name)
    try:
        return weight.to(dtype).expand(input.shape)
    except RuntimeError:
        raise ValueError(
            f"{name} must broadcast to the shape of input {tuple(input.shape)}, got {describe(weight)}; "
            f"give it the shape of input, or of its last axes."
        ) from None


def refuse_outside_unit_interval(value: Tensor, name: str, remedy: str) -> None:
    """Refuse numbers outside [0, 1] where looking costs no wait: in plain eager code on the CPU. NaN passes."""
    if not plain_eager() or value.device.type != "cpu" or not value.numel():
        return
    with torch.no_grad():
        low, high = (x.item() for x in torch.aminmax(value))
    if low < 0 or high > 1:
        raise ValueError(f"{name} must lie in [0, 1], got values from {low:g} to {high:g}; {remedy}.")
