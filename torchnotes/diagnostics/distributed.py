"""Several ranks, one record: moments pooled over the ranks of ``torch.distributed``, as over one large batch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import distributed
from torch.nn.modules.module import Module

from torchnotes.diagnostics.records import LayerSignal, Moments

_PARTS = ("activation", "gradient", "weight", "weight_gradient", "bias")
_ABSENT = (-1.0, *[0.0] * 7)


def world_size() -> int:
    """Number of ranks; 1 without ``torch.distributed``."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def is_writer() -> bool:
    """Whether this rank is the one that writes."""
    return world_size() == 1 or distributed.get_rank() == 0


def pool(parts: Sequence[Moments]) -> Moments:
    """The moments of all values together, from those of the parts.

    With n_i finite values each: E[x²] = Σ n_i E_i[x²]/n, and the variance within the parts adds to that between them,
    σ² = Σ n_i (σ_i² + (x̄_i − x̄)²)/n; all of it divided by the largest rms first.

    >>> from torchnotes.diagnostics import moments
    >>> whole = pool([moments(torch.tensor([1.0, 2.0])), moments(torch.tensor([6.0]))])
    >>> whole.count, whole.mean, round(whole.rms, 6) == round((41 / 3) ** 0.5, 6)
    (3, 3.0, True)
    """
    count, nonfinite = sum(p.count for p in parts), sum(p.nonfinite for p in parts)
    sizes = [(p.count - p.nonfinite, p) for p in parts if p.count > p.nonfinite]
    total = sum(n for n, _ in sizes)
    if total == 0:
        nan = math.nan
        return Moments(count, nan, nan, nan, nan, nan, nan, None, nonfinite)
    exponent = max(p.log10_rms for _, p in sizes)
    exponent = exponent if math.isfinite(exponent) else 0.0
    scale = 10.0**exponent
    square = sum(n * 10 ** (2 * (p.log10_rms - exponent)) for n, p in sizes) / total
    mean = sum(n * (p.mean / scale) for n, p in sizes) / total
    variance = sum(n * ((p.std / scale) ** 2 + (p.mean / scale - mean) ** 2) for n, p in sizes) / total
    saturated = [p.count * p.share_saturated for p in parts if p.share_saturated is not None]
    return Moments(
        count=count,
        log10_rms=exponent + math.log10(square) / 2 if square else -math.inf,
        rms=scale * math.sqrt(square),
        mean=scale * mean,
        std=scale * math.sqrt(variance),
        max_abs=max(p.max_abs for _, p in sizes),
        share_zero=sum(p.count * p.share_zero for p in parts if p.count > p.nonfinite) / count,
        share_saturated=sum(saturated) / count if saturated else None,
        nonfinite=nonfinite,
    )


def over_ranks(layers: Sequence[LayerSignal] | None) -> list[LayerSignal] | None:
    """Pool the records of all ranks; every rank must call this, and every rank gets the same answer.

    Args:
        layers: this rank's records; None if it has none to give.

    Returns:
        The pooled records; None where some rank had none, or the ranks did not run the same modules.
    """
    device = _device()
    size = -1 if layers is None else len(layers)
    bounds = torch.tensor([size, -size], device=device)
    distributed.all_reduce(bounds, distributed.ReduceOp.MIN)
    smallest, largest = int(bounds[0]), -int(bounds[1])
    if smallest < 0 or smallest != largest or layers is None:
        return None
    mine = torch.tensor([_row(getattr(layer, part)) for layer in layers for part in _PARTS], dtype=torch.float64)
    mine = mine.to(device)
    gathered = [torch.empty_like(mine) for _ in range(world_size())]
    distributed.all_gather(gathered, mine)
    ranks = torch.stack(gathered).transpose(0, 1).cpu().tolist()  # (record · part, rank, field)
    pooled = []
    for index, layer in enumerate(layers):
        parts = {
            part: _pool_rows(ranks[len(_PARTS) * index + offset], getattr(layer, part))
            for offset, part in enumerate(_PARTS)
        }
        pooled.append(dataclasses.replace(layer, **parts))  # type: ignore[arg-type]
    return pooled


def is_replicated(model: Module) -> bool:
    """Whether a model's passes are spread over ranks: it, or a part of it, is wrapped for data parallelism."""
    names = {base.__name__ for module in model.modules() for base in type(module).__mro__}
    return bool(names & {"DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule"})


def _pool_rows(rows: Sequence[Sequence[float]], mine: Moments | None) -> Moments | None:
    parts = [moments for row in rows if (moments := _moments(row)) is not None]
    return pool(parts) if parts else mine


def _row(moments: Moments | None) -> tuple[float, ...]:
    if moments is None:
        return _ABSENT
    m = moments
    saturated = -1.0 if m.share_saturated is None else m.share_saturated
    return (m.count, m.log10_rms, m.mean, m.std, m.max_abs, m.share_zero, saturated, m.nonfinite)


def _moments(row: Sequence[float]) -> Moments | None:
    count, log10_rms, mean, std, max_abs, zero, saturated, nonfinite = row
    if count < 0:
        return None
    share = None if saturated < 0 else saturated
    return Moments(int(count), log10_rms, 10**log10_rms, mean, std, max_abs, zero, share, int(nonfinite))


def _device() -> torch.device:
    nccl = "nccl" in distributed.get_backend()
    return torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")
