"""From a tensor to its moments: one reading of the values, no under- or overflow, no cancellation, no waiting.

On the CPU the numbers are taken at once. Sums are torch's dot products: NumPy's would start threads of their own, which
take turns with those of the training step (measured: three times the cost). Extremes and counts are NumPy's reductions,
whose dispatch costs less. On another device the numbers stay there as one small vector, and ``resolve`` brings the
vectors of a whole model back in one copy.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from torchnotes.diagnostics.records import Moments

Array = np.ndarray[Any, Any]
Ends = tuple[float, float]
"""Values at or below the first, or at or above the second, lie on a flat end of the activation."""

Pending = Moments | Tensor
"""Moments, or the vector on a device that will become moments."""

# Within these the square of a float32 has all its digits, and the sum of 10¹⁵ of them does not overflow.
SAFE_LOW, SAFE_HIGH = 1e-12, 1e11
CHUNK = 1 << 16
_threads = threading.local()
_minimum, _maximum = np.minimum.reduce, np.maximum.reduce
_NAN = math.nan
EMPTY = Moments(0, _NAN, _NAN, _NAN, _NAN, _NAN, _NAN, None, 0)
_FIELDS = ("count", "max_abs", "mean_square", "mean", "std", "zeros", "saturated", "nonfinite")


def moments(tensor: Tensor, ends: Ends | None = None) -> Moments:
    """The moments of one tensor, on the host.

    With s = max|x| over the finite values, rms = s √(Σ(x/s)²/n) and std = √(Σ(x − x̄)²/n), each taken so that no
    square leaves the range of its format: a float32 tensor of 1e-30s has rms 1e-30, though its squares are 0.

    Args:
        tensor: any real tensor, of any layout and device.
        ends: where the activation that made it is flat, such as (−0.98, 0.98) for tanh; None for nowhere.

    Returns:
        The moments.

    >>> round(moments(torch.full((3, 4), 1e-30)).log10_rms, 6)
    -30.0
    >>> round(moments(torch.tensor([1e8, 1e8 + 8])).std, 6)
    4.0
    """
    return resolve([measure(tensor, ends)])[0]


def measure(tensor: Tensor, ends: Ends | None = None) -> Pending:
    """Start the measurement: moments of a CPU tensor at once, of another a vector on its device, without waiting."""
    tensor = plain(tensor)
    if tensor.device.type != "cpu":
        return _on_device(tensor, ends)
    if tensor.dtype not in (torch.float32, torch.float64):
        tensor = tensor.to(torch.float32)
    return of_values(dense_view(tensor), ends)


def resolve(pending: Sequence[Pending | None]) -> list[Moments]:
    """Turn pending measurements into moments with one copy per device; None becomes the moments of nothing."""
    by_device: dict[torch.device, list[int]] = {}
    for index, item in enumerate(pending):
        if isinstance(item, Tensor):
            by_device.setdefault(item.device, []).append(index)
    done: list[Any] = [item if isinstance(item, Moments) else None for item in pending]
    for indices in by_device.values():
        rows = torch.stack([item for i in indices if isinstance(item := pending[i], Tensor)]).cpu().tolist()
        for index, row in zip(indices, rows, strict=True):
            done[index] = from_row(row)
    return [item if item is not None else EMPTY for item in done]


def plain(tensor: Tensor) -> Tensor:
    """The strided, detached, local values behind any kind of tensor."""
    tensor = tensor.detach()
    if hasattr(tensor, "to_local"):  # a DTensor: this rank's shard
        tensor = tensor.to_local()
    if tensor.is_sparse:
        tensor = tensor.coalesce().values()
    if tensor.is_nested:
        tensor = (
            tensor.values() if tensor.layout == torch.jagged else torch.cat([t.reshape(-1) for t in tensor.unbind()])
        )
    return tensor.abs() if tensor.is_complex() else tensor


_FLAT_ENDS: dict[str, Ends] = {
    "tanh": (-0.98, 0.98),
    "softsign": (-0.98, 0.98),
    "sigmoid": (0.02, 0.98),
    "hardsigmoid": (0.0, 1.0),
    "relu6": (-math.inf, 6.0),
}


def flat_ends(module: nn.Module) -> Ends | None:
    """Where a module's output is flat: within 2 % of an end of its range; None for no flat end, or an unknown module.

    ReLU's flat end is at exactly 0 and counted as zeros.
    """
    name = type(module).__name__
    if name == "Hardtanh":
        low, high = float(getattr(module, "min_val", -1.0)), float(getattr(module, "max_val", 1.0))
        return low, high
    return flat_ends_of_function(name.lower())


def flat_ends_of_function(name: str) -> Ends | None:
    """The same of a function by its name in `torch.nn.functional`."""
    return _FLAT_ENDS.get(name)


def from_row(row: Sequence[float]) -> Moments:
    """Moments from the vector measured on a device, in the order of ``_FIELDS``."""
    count, largest, mean_square, mean, std, zeros, saturated, nonfinite = row
    if count == nonfinite:
        return replace(EMPTY, count=int(count), nonfinite=int(nonfinite))
    root = math.sqrt(mean_square)
    return Moments(
        count=int(count),
        log10_rms=math.log10(largest) + math.log10(root) if root > 0 else -math.inf,
        rms=largest * root,
        mean=mean,
        std=std,
        max_abs=largest,
        share_zero=zeros / count,
        share_saturated=None if saturated < 0 else saturated / count,
        nonfinite=int(nonfinite),
    )


def dense_view(tensor: Tensor) -> Tensor:
    """One axis over the values in the order of memory; a copy only where they do not fill it (a slice, an expand).

    No moment depends on the order, so a transposed or channels-last tensor need not be copied into row order.
    """
    if tensor.is_contiguous():
        return tensor.reshape(-1)
    order = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
    return tensor.permute(order).reshape(-1)


def of_values(values: Tensor, ends: Ends | None, *, zeros: bool = True) -> Moments:
    """The moments of a float32 or float64 vector on the CPU.

    Args:
        values: the vector, contiguous.
        ends: as for ``moments``.
        zeros: whether to count exact zeros; their share is NaN otherwise.
    """
    x = values.numpy()
    count = x.size
    if count == 0:
        return EMPTY
    low, high = float(_minimum(x)), float(_maximum(x))
    largest = high if high >= -low else -low
    if not (-math.inf < low and high < math.inf):  # NumPy's minimum and maximum pass a NaN on
        return _with_nonfinite(values, ends)
    share_zero = _NAN
    if zeros:
        share_zero = 0.0 if low > 0 or high < 0 else 1 - count_where(np.not_equal, x, 0.0) / count
    saturated = (
        None if ends is None else count_where(np.less_equal, x, ends[0]) + count_where(np.greater_equal, x, ends[1])
    )
    scale = 1.0
    if not SAFE_LOW < largest < SAFE_HIGH:
        scale, values = largest, values.double() / (largest or 1.0)
    square, total = sums(values)
    mean_square, mean = square / count, total / count
    variance = mean_square - mean * mean
    if variance < 1e-2 * mean_square:  # x̄² is most of the mean square: the difference has lost its digits, so shift
        shifted = values.double() - mean
        rest_square, rest = (value / count for value in sums(shifted))
        mean += rest
        variance = rest_square - rest * rest
    root = math.sqrt(mean_square)
    return Moments(
        count,
        math.log10(scale) + math.log10(root) if root > 0 else -math.inf,
        scale * root,
        scale * mean,
        scale * math.sqrt(variance) if variance > 0 else 0.0,
        largest,
        share_zero,
        None if saturated is None else saturated / count,
        0,
    )


def _pieces(x: Array) -> Iterable[Array]:
    return (x,) if x.size <= CHUNK else np.split(x, range(CHUNK, x.size, CHUNK))


def sums(x: Tensor) -> tuple[float, float]:
    """(Σx², Σx) of a vector: dot products within a piece, float64 across; the one with ones costs less than a sum."""
    count = x.numel()
    if count <= CHUNK:
        return torch.dot(x, x).item(), torch.dot(x, ones(count, x.dtype)).item()
    whole = count - count % CHUNK
    rows = x[:whole].view(-1, CHUNK)
    square, total = sums(x[whole:])
    norms = torch.linalg.vector_norm(rows, dim=1).double()
    return square + torch.dot(norms, norms).item(), total + rows.sum(dim=1).double().sum().item()


@functools.lru_cache(maxsize=64)
def ones(count: int, dtype: torch.dtype) -> Tensor:
    return torch.ones(count, dtype=dtype, device="cpu")


def count_where(compare: np.ufunc, x: Array, bound: float) -> int:
    """How many values compare so, through a buffer that stays: allocating one takes as long as comparing."""
    room = buffer()
    if x.size <= CHUNK:
        return int(np.count_nonzero(compare(x, bound, out=room[: x.size])))
    return sum(int(np.count_nonzero(compare(piece, bound, out=room[: piece.size]))) for piece in _pieces(x))


def buffer() -> Array:
    """One for each thread: backward passes run in threads of their own."""
    found: Array | None = getattr(_threads, "buffer", None)
    if found is None:
        found = _threads.buffer = np.empty(CHUNK, dtype=bool)
    return found


def _with_nonfinite(values: Tensor, ends: Ends | None) -> Moments:
    count = values.numel()
    finite = values[values.isfinite()]
    left = finite.numel()
    if left == 0:
        return replace(EMPTY, count=count, nonfinite=count)
    rest = of_values(finite, ends)
    part = left / count
    share = None if rest.share_saturated is None else rest.share_saturated * part
    return replace(rest, count=count, share_zero=rest.share_zero * part, share_saturated=share, nonfinite=count - left)


def _on_device(x: Tensor, ends: Ends | None) -> Tensor:
    """The fields of ``_FIELDS`` as a float64 vector on x's device; nothing here makes the host wait."""
    x = x.reshape(-1)
    if x.numel() == 0:
        return torch.zeros(len(_FIELDS), dtype=torch.float64, device=x.device)
    wide = x if x.dtype == torch.float64 else x.to(torch.float32)
    finite = wide.isfinite()
    inside = torch.where(finite, wide, 0.0)
    count = finite.sum()
    largest, mean_square, _ = _scaled(inside, count)
    # Shifted in x's own units, where close numbers subtract exactly, and only then scaled. Non-finite places go back
    # to 0: they are no values.
    centre = (inside.sum(dtype=torch.float64) / count).to(wide.dtype)
    spread, spread_square, rest = _scaled(torch.where(finite, inside - centre, 0.0), count)
    mean = centre.to(torch.float64) + spread * rest
    std = spread * (spread_square - rest.square()).clamp_min(0).sqrt()
    zeros = (wide == 0).sum()
    saturated = torch.full_like(zeros, -1) if ends is None else (wide <= ends[0]).sum() + (wide >= ends[1]).sum()
    total = torch.full_like(zeros, x.numel())
    fields = (total, largest, mean_square, mean, std, zeros, saturated, total - count)
    return torch.stack([field.to(torch.float64) for field in fields])


def _scaled(x: Tensor, count: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(s, Σ(x/s)²/n, Σ(x/s)/n) with s = max|x|, in float64: nothing is squared before it is scaled."""
    largest = x.abs().amax()
    unit = x / torch.where(largest > 0, largest, 1.0)
    square = (unit * unit).sum(dtype=torch.float64)
    return largest.to(torch.float64), square / count, unit.sum(dtype=torch.float64) / count
