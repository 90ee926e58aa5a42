"""Training data by index: tensors or a map-style dataset behind one face, checked at the door."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from torchnotes._checks import describe


class Source(Protocol):
    """Samples by index."""

    def __len__(self) -> int:
        """Number of samples."""

    def take(self, indices: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Inputs and targets of these samples, on the device."""

    def largest_label(self) -> int | None:
        """The largest label of all where that is known, None elsewhere."""

    classes: int | None
    """The model's classes once they are known: labels that are only seen batch by batch must be below."""


class Tensors:
    """Inputs and targets as tensors, wherever they live."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y
        self.classes: int | None = None

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.x)

    def take(self, indices: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Rows of both tensors."""
        x, y = (value.index_select(0, indices.to(value.device)).to(device) for value in (self.x, self.y))
        return x, y

    def largest_label(self) -> int | None:
        """The largest integer target."""
        return int(self.y.max()) if not self.y.dtype.is_floating_point else None


class Samples:
    """A map-style dataset of pairs."""

    def __init__(self, dataset: Any, name: str) -> None:
        self.dataset, self.name = dataset, name
        self.classes: int | None = None

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.dataset)

    def take(self, indices: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Samples fetched one by one and collated as a DataLoader would."""
        x, y = checked_batch(default_collate([self.dataset[i] for i in indices.tolist()]), self.name, self.classes)
        return x.to(device), y.to(device)

    def largest_label(self) -> int | None:
        """Not known without reading everything."""
        return None


def source_of(data: Any, name: str) -> Source:
    """Check the data and put the right face on it."""
    if isinstance(data, (tuple, list)) and len(data) == 2 and all(isinstance(part, Tensor) for part in data):
        x, y = data
        _check_pair(x, y, name)
        return Tensors(x, y)
    if not isinstance(data, Dataset) or not hasattr(data, "__len__"):
        raise TypeError(
            f"{name} must be a pair of tensors (x, y), a dataset with a length or a DataLoader, got {describe(data)}; "
            "convert arrays with torch.as_tensor."
        )
    if len(data) == 0:
        raise ValueError(f"{name} must hold at least one sample, got an empty dataset; check the split.")
    first = data[0]
    if not isinstance(first, (tuple, list)) or len(first) != 2:
        raise TypeError(f"a sample of {name} must be a pair (x, y), got {describe(first)}; return both from it.")
    return Samples(data, name)


def checked_batch(batch: Any, name: str, classes: int | None) -> tuple[Tensor, Tensor]:
    """A batch of a dataset or a DataLoader, checked as tensors are at the door: before it is moved to a device."""
    if (
        not isinstance(batch, (tuple, list))
        or len(batch) != 2
        or not all(isinstance(part, Tensor) for part in batch)
        or any(part.dim() == 0 for part in batch)
    ):
        raise TypeError(
            f"a batch of {name} must be a pair (x, y) of tensors with the samples as rows, got {describe(batch)}; "
            "return a pair from the dataset, or write a collate_fn."
        )
    x, y = batch
    _check_pair(x, y, f"a batch of {name}")
    if classes is not None and int(y.max()) >= classes:
        raise label_error(int(y.max()), classes)
    return x, y


def label_error(largest: int, classes: int) -> ValueError:
    """What is said of a label that no output of the model stands for."""
    return ValueError(
        f"labels must be below the number of classes, got {largest} for a model with {classes} outputs; "
        "renumber the labels from 0, or widen the last layer."
    )


def _check_pair(x: Tensor, y: Tensor, name: str) -> None:
    if x.dim() == 0 or y.dim() == 0 or len(x) != len(y):
        raise ValueError(
            f"{name} must hold as many targets as inputs, got x {tuple(x.shape)} and y {tuple(y.shape)}; "
            "both have the samples as rows."
        )
    if len(x) == 0:
        raise ValueError(f"{name} must hold at least one sample, got x of shape {tuple(x.shape)}; check the split.")
    for value, what in ((x, "inputs"), (y, "targets")):
        if value.dtype.is_floating_point and not bool(value.isfinite().all()):
            rows = (~value.isfinite()).reshape(len(value), -1).any(1).nonzero().flatten()
            raise ValueError(
                f"{what} of {name} must be finite, got NaN or inf in {len(rows):,} of {len(value):,} rows, the first "
                f"at {int(rows[0])}; clean the data."
            )
    if not y.dtype.is_floating_point and y.dtype != torch.bool and int(y.min()) < 0:
        raise ValueError(
            f"labels of {name} must count from 0, got {int(y.min())} among them; renumber them, or leave the rows out."
        )
