"""Sharing coordinates, or evaluations along a direction, out over the processes of a ``torch.distributed`` group."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from torchnotes.gradcheck._evaluate import Evaluator
from torchnotes.gradcheck._objective import Objective

FEW = 16  # below this many, sending costs more than evaluating


class SharedEvaluator:
    """Every process evaluates its share of the entries, and all of them receive the whole.

    All processes must hold the same parameters, inputs and seed; they then take every decision alike.
    """

    def __init__(self, inner: Evaluator) -> None:
        self._inner = inner
        self.name = f"{inner.name}, {dist.get_world_size()} processes"
        self.objective: Objective = inner.objective

    def delta(self, t: int, index: Tensor, step: Tensor) -> Tensor:
        """See `Evaluator.delta`."""
        rank, world = place_in_group()
        whole = torch.zeros(len(self.objective.rows), len(index), dtype=torch.float64, device=index.device)
        if len(index) < FEW:
            if rank == 0:
                whole = self._inner.delta(t, index, step)
            dist.broadcast(whole, src=0)
            return whole
        # Whole runs, not every second entry: neighbours share a unit, which the chain evaluator profits from.
        share = torch.arange(len(index), device=index.device).tensor_split(world)[rank]
        whole[:, share] = self._inner.delta(t, index[share], step[share])
        dist.all_reduce(whole)
        return whole


def place_in_group() -> tuple[int, int]:
    """This process's rank, and how many there are: (0, 1) outside a group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def summed(values: Tensor, device: torch.device) -> Tensor:
    """The sum over all processes, of a tensor on the CPU; sent by way of ``device``, as the group's backend asks."""
    if place_in_group()[1] == 1:
        return values
    values = values.to(device)
    dist.all_reduce(values)
    return values.cpu()


def shared(evaluator: Evaluator) -> Evaluator:
    """The evaluator itself, or shared out where a process group of several is running."""
    if place_in_group()[1] > 1:
        return SharedEvaluator(evaluator)
    return evaluator


def refuse_unlike(parameters: list[Tensor]) -> None:
    """Refuse to share out a check whose processes hold different parameters."""
    if place_in_group()[1] == 1:
        return
    mine = torch.stack([p.detach().double().sum() for p in parameters])
    first = mine.clone()
    dist.broadcast(first, src=0)
    differ = (mine != first).sum().reshape(1)
    dist.all_reduce(differ)
    if int(differ):
        raise ValueError(
            "every process must hold the same parameters, got different sums in at least one; "
            "seed all of them alike, or broadcast rank 0's state_dict before the check."
        )
