"""How batches come to the training loop: by index from tensors and datasets, or from a DataLoader as it gives them.

Either can be taken up in the middle of an epoch so that what follows is what would have followed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from torchnotes.training import _random
from torchnotes.training._data import Source, checked_batch, source_of

EVALUATED = 256  # samples at a time, at least, where there is no gradient to keep


@dataclass(frozen=True)
class Piece:
    """A part of one step's batch: what one forward and backward pass is made of.

    Attributes:
        take: its inputs and targets, on the device.
        weight: of its mean loss in the step.
        rows: how many samples it counts for in the epoch's mean.
    """

    take: Callable[[], tuple[Tensor, Tensor]]
    weight: float
    rows: int


class Feed(Protocol):
    """The training or the dev set, cut into batches."""

    batches: int | None
    """In an epoch; None where nobody knows."""

    def options(self) -> dict[str, Any]:
        """What a run must share with a checkpoint to go on from it."""

    def epoch(self, number: int, done: int, pieces: int, device: torch.device) -> Iterator[list[Piece]]:
        """The batches of an epoch after the first ``done``, each in at most so many pieces."""

    def every(self, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """All samples once, in batches, to evaluate on."""

    def largest_label(self) -> int | None:
        """The largest label of all where that is known, None elsewhere."""

    def expect_below(self, classes: int) -> None:
        """Refuse labels from here on that no class stands for."""

    def state(self) -> Any:
        """What :meth:`load` needs to take up this epoch again, in tensors and plain values."""

    def load(self, state: Any, done: int) -> None:
        """Take up an epoch of which ``done`` batches are done."""


class ByIndex:
    """Batches of tensors or of a dataset; the order is a function of seed and epoch, so nothing need be kept of it."""

    def __init__(
        self, source: Source, batch_size: int, *, shuffle: bool = False, seed: int = 0, rank: int = 0, world: int = 1
    ) -> None:
        self.source, self.batch_size, self.shuffle, self.seed = source, batch_size, shuffle, seed
        self.rank, self.world = rank, world
        self.batches: int | None = -(-len(source) // batch_size)

    def options(self) -> dict[str, Any]:
        """Size and order."""
        return {"samples": len(self.source), "batch_size": self.batch_size, "shuffle": self.shuffle}

    def epoch(self, number: int, done: int, pieces: int, device: torch.device) -> Iterator[list[Piece]]:
        """This process's share of each batch."""
        order = torch.arange(len(self.source))
        if self.shuffle:
            order = _random.epoch_order(len(self.source), self.seed, number)
        for indices in order.split(self.batch_size)[done:]:
            yield list(self._pieces(indices, pieces, device))

    def _pieces(self, indices: Tensor, pieces: int, device: torch.device) -> Iterator[Piece]:
        share = indices[self.rank :: self.world]
        counted = True
        if len(share) == 0:  # fewer samples than processes: take part with a weight of nothing
            share, counted = indices[:1], False
        for part in share.chunk(pieces):
            # DistributedDataParallel divides the sum over processes by their number.
            weight = self.world * len(part) / len(indices) if counted else 0.0
            yield Piece(lambda part=part: self.source.take(part, device), weight, len(part) if counted else 0)  # type: ignore[misc]

    def every(self, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """In the order of the rows."""
        for indices in torch.arange(len(self.source)).split(max(self.batch_size, EVALUATED)):
            yield self.source.take(indices, device)

    def largest_label(self) -> int | None:
        """Of tensors."""
        return self.source.largest_label()

    def expect_below(self, classes: int) -> None:
        """For datasets, whose labels are seen batch by batch."""
        self.source.classes = classes

    def state(self) -> None:
        """Nothing: seed and epoch say it all."""

    def load(self, state: Any, done: int) -> None:
        """Nothing to do."""


class ByLoader:
    """Batches as a DataLoader gives them.

    An epoch is taken up again by setting the random states to what they were when it began, drawing the batches that
    are done once more and throwing them away. That gives back the order of any sampler that draws from PyTorch's
    global generator, from the loader's or from its own; and random transformations, in workers too unless they are
    persistent (those keep random states of their own from epoch to epoch, out of reach).
    """

    def __init__(self, loader: DataLoader[Any], name: str) -> None:
        self.loader, self.name = loader, name
        self.classes: int | None = None
        self.batches: int | None = _length(loader)
        self._parts: list[Any] = [
            part
            for part in (loader, loader.sampler, loader.batch_sampler, getattr(loader.batch_sampler, "sampler", None))
            if part is not None
        ]
        generators = (getattr(part, "generator", None) for part in self._parts)
        self._generators = list({id(g): g for g in generators if isinstance(g, torch.Generator)}.values())
        self._start: Any = None
        if self.batches == 0:
            raise self._empty()

    def _empty(self) -> ValueError:
        return ValueError(
            f"{self.name} must hold at least one batch, got a DataLoader that gives none; check the split, or "
            "drop_last."
        )

    def options(self) -> dict[str, Any]:
        """Size, batch size and the kind of order."""
        order = type(self.loader.batch_sampler if self.loader.batch_size is None else self.loader.sampler).__name__
        size = len(self.loader.dataset) if hasattr(self.loader.dataset, "__len__") else None
        return {"samples": size, "batch_size": self.loader.batch_size, "shuffle": order}

    def epoch(self, number: int, done: int, pieces: int, device: torch.device) -> Iterator[list[Piece]]:
        """The loader's own batches, all of them for this process."""
        now = self._states()
        if done:
            self._restore(self._start)
        else:
            self._start = now
        for part in self._parts:
            if hasattr(part, "set_epoch"):  # DistributedSampler shuffles by it
                part.set_epoch(number)
        batches = iter(self.loader)
        count = 0
        for _ in range(done):
            count += next(batches, None) is not None
        if count < done:
            raise ValueError(
                f"{self.name} must give the batches again that it gave before, got {count} of {done}; "
                "start anew with resume=False."
            )
        if done:
            _random.restore(now[0])
        for batch in batches:
            count += 1
            yield list(self._pieces(*checked_batch(batch, self.name, self.classes), pieces, device))
        if count == 0:
            raise self._empty()

    @staticmethod
    def _pieces(x: Tensor, y: Tensor, pieces: int, device: torch.device) -> Iterator[Piece]:
        for x_part, y_part in zip(x.chunk(pieces), y.chunk(pieces), strict=True):
            take = lambda x=x_part, y=y_part: (x.to(device, non_blocking=True), y.to(device, non_blocking=True))  # noqa: E731
            yield Piece(take, len(y_part) / len(y), len(y_part))

    def every(self, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """One pass; random states are left as found, so that it changes nothing in the training that follows."""
        before = self._states()
        empty = True
        for batch in self.loader:
            x, y = checked_batch(batch, self.name, self.classes)
            empty = False
            yield x.to(device), y.to(device)
        self._restore(before)
        if empty:
            raise self._empty()

    def largest_label(self) -> int | None:
        """Not known without reading everything."""
        return None

    def expect_below(self, classes: int) -> None:
        """From the next batch on."""
        self.classes = classes

    def state(self) -> Any:
        """The random states when the epoch began, and the generators' now."""
        return {"start": self._start, "generators": self._states()[1]}

    def load(self, state: Any, done: int) -> None:
        """Between epochs only the loader's generators need be set; within one, :meth:`epoch` starts it again."""
        self._start = state["start"]
        if not done:
            for generator, saved in zip(self._generators, state["generators"], strict=True):
                generator.set_state(saved)

    def _states(self) -> tuple[Any, list[Tensor]]:
        return _random.capture(), [generator.get_state() for generator in self._generators]

    def _restore(self, states: tuple[Any, list[Tensor]]) -> None:
        _random.restore(states[0])
        for generator, saved in zip(self._generators, states[1], strict=True):
            generator.set_state(saved)


def training_feed(
    data: Any, batch_size: int | None, shuffle: bool | None, *, seed: int, rank: int, world: int, default: Any
) -> Feed:
    """The training set as it was given; options that a loader has already fixed are refused."""
    if not isinstance(data, DataLoader):
        source = source_of(data, "train")
        size = batch_size or default(len(source))
        return ByIndex(source, size, shuffle=shuffle is not False, seed=seed, rank=rank, world=world)
    fixed = [name for name, value in (("batch_size", batch_size), ("shuffle", shuffle)) if value is not None]
    if fixed:
        raise TypeError(
            f"a DataLoader has its own {' and '.join(fixed)}, got another beside it; leave it out, or pass the "
            "loader's dataset instead."
        )
    if world > 1:
        _check_shared_out(data, rank, world)
    return ByLoader(data, "train")


def dev_feed(data: Any, batch_size: int, world: int) -> Feed:
    """The dev set as it was given."""
    if not isinstance(data, DataLoader):
        return ByIndex(source_of(data, "dev"), batch_size)
    if world > 1 and isinstance(data.sampler, DistributedSampler):
        raise ValueError(
            "dev must hold all of the dev set in the first process, got a DataLoader with a DistributedSampler; "
            "leave the sampler out: only the first process evaluates."
        )
    return ByLoader(data, "dev")


def _length(loader: DataLoader[Any]) -> int | None:
    try:
        return len(loader)
    except TypeError:  # an iterable dataset without a length
        return None


def _check_shared_out(loader: DataLoader[Any], rank: int, world: int) -> None:
    sampler: Any = loader.sampler
    if not isinstance(sampler, DistributedSampler):
        raise ValueError(
            f"with {world} processes a DataLoader must give each its own share, got one with "
            f"{type(sampler).__name__}; give it torch.utils.data.DistributedSampler, or pass the loader's dataset: "
            "fit shares that out itself."
        )
    if (sampler.num_replicas, sampler.rank) != (world, rank):
        raise ValueError(
            f"the DistributedSampler must know {world} processes and be that of rank {rank}, got "
            f"{sampler.num_replicas} and rank {sampler.rank}; make it after init_process_group."
        )
