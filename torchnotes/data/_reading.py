"""Reading data for a normaliser: a tensor or a stream of batches, checked, into moments."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from torchnotes._checks import check_tensor, describe
from torchnotes.data._moments import Moments, moments_of

Batches = Iterable["Tensor | Sequence[Tensor]"]


@torch.no_grad()
def read_moments(x: Tensor | Batches, feature_dim: int, num_features: int | None, *, ignore_nonfinite: bool) -> Moments:
    """Moments of a tensor, or of all batches of an iterable, which all must have the same number of features."""
    if isinstance(x, Tensor):
        return _read(x, feature_dim, num_features, ignore_nonfinite)
    if not isinstance(x, Iterable):
        raise TypeError(
            f"x must be a tensor or an iterable of batches, got {describe(x)}; convert it with torch.as_tensor(x)."
        )
    total: Moments | None = None
    for item in x:
        batch = item if isinstance(item, Tensor) else _first_entry(item)
        fresh = _read(batch, feature_dim, total.mean.numel() if total else num_features, ignore_nonfinite)
        total = fresh if total is None else total.merge(fresh.to(total.mean.device))
    if total is None:
        raise ValueError("x must hold at least one batch, got an empty iterable; check the loader.")
    return total


def _read(x: Tensor, feature_dim: int, num_features: int | None, ignore_nonfinite: bool) -> Moments:
    _check_real(x)
    if x.dim() < 2:
        raise ValueError(
            f"x must have a sample axis and a feature axis, got shape {tuple(x.shape)}; "
            "one sample is x.unsqueeze(0), one feature x.unsqueeze(1)."
        )
    _check_axis(x, feature_dim)
    if x.numel() == 0:
        raise ValueError(f"x must hold at least one sample and one feature, got shape {tuple(x.shape)}; check it.")
    if num_features is not None and x.shape[feature_dim] != num_features:
        raise ValueError(wrong_size(x.shape[feature_dim], num_features, "x", feature_dim))
    moments = moments_of(x, feature_dim)
    if not ignore_nonfinite and bool(moments.nonfinite.any()):
        bad = torch.nonzero(moments.nonfinite).flatten().tolist()
        raise ValueError(
            f"x must be finite, got {int(moments.nonfinite.sum()):,} NaN or infinite values in "
            f"{name_features(bad)}; clean the data, or pass nonfinite_values='ignore' to leave them out."
        )
    return moments


def check_input(x: object, feature_dim: int) -> None:
    """Refuse anything but a tensor of real numbers that has the axis of the features."""
    _check_real(x)
    assert isinstance(x, Tensor)
    _check_axis(x, feature_dim)


def _check_axis(x: Tensor, feature_dim: int) -> None:
    if not -x.dim() <= feature_dim < x.dim():
        raise ValueError(
            f"x must have an axis {feature_dim} for the features, got shape {tuple(x.shape)}; "
            "check how it was batched, or set feature_dim."
        )


def _check_real(x: object) -> None:
    check_tensor(x, "x")
    assert isinstance(x, Tensor)
    if x.dtype == torch.bool or x.dtype.is_complex:
        raise TypeError(
            f"x must be a tensor of real numbers, got dtype {str(x.dtype).split('.')[-1]}; "
            "convert it with x.float(), or split a complex one with torch.view_as_real(x)."
        )


def _first_entry(batch: object) -> Tensor:
    if isinstance(batch, Sequence) and len(batch) and isinstance(batch[0], Tensor):
        return batch[0]
    raise TypeError(
        f"a batch must be a tensor or a sequence that starts with one, got {describe(batch)}; "
        "convert an array or a list of rows with torch.as_tensor."
    )


def wrong_size(got: int, wanted: int, name: str, feature_dim: int) -> str:
    """What is said of another number of features."""
    return (
        f"{name} must have {wanted} features on axis {feature_dim}, got {got}; "
        "check the order of its axes, or make a new InputNormalizer for other data."
    )


def name_features(indices: Iterable[int]) -> str:
    """The first few by index."""
    names = [str(index) for index in indices]
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    return f"feature{'s' if len(names) > 1 else ''} {shown}"
