"""Mini-batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from torchnotes._checks import check_generator, check_tensor, describe

SMALL = 2000  # samples below which one batch takes them all
SMALLEST, LARGEST = 64, 512


def default_batch_size(samples: int) -> int:
    """The notes' rule: all samples below 2,000, else a power of two from 64 to 512.

    Within that range the size that makes at least about 32 batches of an epoch.

    >>> [default_batch_size(m) for m in (1999, 2000, 10_000, 1_000_000)]
    [1999, 64, 256, 512]
    """
    if samples < SMALL:
        return max(samples, 1)
    size = SMALLEST
    while size < LARGEST and samples // (size * 2) >= 32:
        size *= 2
    return size


class Minibatches:
    """What :func:`minibatches` returns for tensors: iterate over it once per epoch, each time in a new order.

    Attributes:
        batch_size: samples in a batch, the last one perhaps smaller.
    """

    def __init__(
        self,
        tensors: tuple[Tensor, ...],
        batch_size: int,
        shuffle: bool,
        drop_last: bool,
        generator: torch.Generator | None,
    ) -> None:
        self.tensors = tensors
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.generator = generator

    def __len__(self) -> int:
        """Batches in an epoch."""
        samples = len(self.tensors[0])
        return samples // self.batch_size if self.drop_last else -(-samples // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        """One epoch; the order is drawn when it starts."""
        samples = len(self.tensors[0])
        if not self.shuffle:
            for start in range(0, len(self) * self.batch_size, self.batch_size):
                yield tuple(tensor[start : start + self.batch_size] for tensor in self.tensors)
            return
        order = torch.randperm(samples, generator=self.generator)
        orders = {tensor.device: order.to(tensor.device) for tensor in self.tensors}
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            yield tuple(
                tensor.index_select(0, orders[tensor.device][start : start + self.batch_size])
                for tensor in self.tensors
            )


def minibatches(
    *data: Tensor | Dataset[Any] | DataLoader[Any],
    batch_size: int | None = None,
    shuffle: bool | None = None,
    drop_last: bool | None = None,
    generator: torch.Generator | None = None,
    **loader: Any,
) -> Minibatches | DataLoader[Any]:
    """Cut a training set into mini-batches, shuffled anew each epoch.

    Tensors are indexed where they live, with no worker and no collation in between; a dataset is given to
    ``torch.utils.data.DataLoader``; a DataLoader is returned as it is, so that code can take any of the three.

    Args:
        *data: tensors with the same number of rows, or one dataset, or one DataLoader.
        batch_size: None for the notes' rule: all samples below 2,000, else 64 to 512, a power of two.
        shuffle: a new order each epoch (default) or the order given.
        drop_last: leave out a last batch that is smaller; by default it is kept.
        generator: where the order comes from, a CPU generator; None for PyTorch's global one.
        **loader: further arguments of ``DataLoader``, for a dataset only, such as ``num_workers``.

    Returns:
        Something to iterate over once per epoch, with a length; each batch is a tuple of tensors (for a dataset,
        whatever its collation makes).

    Memory: beside the data, one order of m int64 numbers and one batch.

    Raises:
        TypeError: neither tensors nor a dataset nor a loader, or options that a loader has already fixed.
        ValueError: no samples, different numbers of rows, or a batch size that is not at least 1.

    Source: the notes, "mini-batch gradient descent"; SPEC E3.

    >>> x, y = torch.arange(5.0), torch.arange(5)
    >>> for xb, yb in minibatches(x, y, batch_size=2, shuffle=False):
    ...     print(xb.tolist(), yb.tolist())
    [0.0, 1.0] [0, 1]
    [2.0, 3.0] [2, 3]
    [4.0] [4]
    """
    if len(data) == 1 and isinstance(data[0], DataLoader):
        given = {"batch_size": batch_size, "shuffle": shuffle, "drop_last": drop_last, "generator": generator, **loader}
        fixed = [name for name, value in given.items() if value is not None]
        if fixed:
            raise TypeError(
                f"a DataLoader has its own options, got {', '.join(fixed)} beside one; pass its dataset instead."
            )
        return data[0]
    samples = _count(data)
    size = default_batch_size(samples) if batch_size is None else batch_size
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"batch_size must be an integer of at least 1, got {size!r}; leave it out for the usual rule.")
    if samples == 0:
        raise ValueError("data must hold at least one sample, got none; check the split.")
    if drop_last and samples < size:
        raise ValueError(
            f"batch_size must be at most the number of samples with drop_last, got {size} for {samples}; "
            "no batch would be left."
        )
    check_generator(generator, torch.device("cpu"))
    order = shuffle is None or shuffle
    if isinstance(data[0], Tensor):
        if loader:
            raise TypeError(f"tensors need no loader options, got {', '.join(loader)}; wrap them in a TensorDataset.")
        tensors = tuple(value for value in data if isinstance(value, Tensor))
        return Minibatches(tensors, size, order, bool(drop_last), generator)
    assert isinstance(data[0], Dataset)
    return DataLoader(data[0], size, shuffle=order, drop_last=bool(drop_last), generator=generator, **loader)


def _count(data: tuple[Any, ...]) -> int:
    if data and isinstance(data[0], Tensor):
        for value in data:
            check_tensor(value, "data")
        counts = [len(value) if value.dim() else 0 for value in data]
        if len(set(counts)) != 1:
            raise ValueError(f"all tensors must have the same number of rows, got {counts}; check their first axis.")
        return counts[0]
    if len(data) == 1 and isinstance(data[0], Dataset) and hasattr(data[0], "__len__"):
        return len(data[0])
    came = ", ".join(map(describe, data)) or "nothing"
    raise TypeError(
        f"data must be tensors, one dataset with a length or one DataLoader, got {came}; "
        "convert arrays with torch.as_tensor."
    )
