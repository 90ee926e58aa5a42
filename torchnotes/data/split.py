"""Training, dev and test sets."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from torchnotes._checks import check_generator, check_tensor, describe

LARGE = 100_000  # samples from which 1 % is enough to measure an error to a tenth of itself or better


@dataclass(frozen=True)
class Split:
    """The three sets, in the order train, dev, test, so that it unpacks; and the rows each was taken from.

    Attributes:
        train: the tensors' rows, in the order the tensors were given; a ``Subset`` where a dataset was given.
        dev: likewise.
        test: likewise.
        indices: the row numbers of the three sets, disjoint, together all rows.
    """

    train: Any
    dev: Any
    test: Any
    indices: tuple[Tensor, Tensor, Tensor]

    def __iter__(self) -> Iterator[Any]:
        """Iterate over train, dev, test."""
        return iter((self.train, self.dev, self.test))


def train_dev_test_split(
    *data: Tensor | Dataset[Any],
    fractions: Sequence[float] | None = None,
    stratify: Tensor | None = None,
    groups: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Split:
    """Split samples at random into a training, a dev and a test set of the same distribution.

    By default 60/20/20 below 100,000 samples and 98/1/1 from there on: the dev and the test set need enough samples to
    tell models apart, not a fixed share.

    Args:
        *data: tensors with the same number m of rows, or one map-style dataset.
        fractions: shares of train, dev and test, adding up to 1; a 0 leaves that set empty.
        stratify: the class of each row, (m,): every set then has each class in its share, to one sample.
        groups: the group of each row, (m,), such as a patient or a speaker: no group is then in two sets. Sizes are
            as near the fractions as whole groups allow.
        generator: where the randomness comes from; None for PyTorch's global one. The same seed gives the same split.

    Returns:
        A :class:`Split`: ``(x_train, y_train), (x_dev, y_dev), (x_test, y_test) = train_dev_test_split(x, y)``.

    Raises:
        TypeError: something that is neither a tensor nor a dataset with a length.
        ValueError: different numbers of rows, fractions that do not add up, a set that would be empty, a class with
            too few samples, or both ``stratify`` and ``groups``.

    Source: the notes, "train, dev and test sets"; SPEC E2.

    >>> x = torch.arange(10.0).unsqueeze(1)
    >>> train, dev, test = train_dev_test_split(x, generator=torch.Generator().manual_seed(0))
    >>> [len(part[0]) for part in (train, dev, test)]
    [6, 2, 2]
    """
    rows = _count_rows(data)
    shares = _check_fractions(fractions, rows)
    check_generator(generator, torch.device("cpu"))
    if stratify is not None and groups is not None:
        raise ValueError("either stratify or groups may be given, got both; split by group, then compare the classes.")
    if stratify is not None:
        sets = _split_by_class(_labels(stratify, "stratify", rows), shares, generator)
    elif groups is not None:
        sets = _split_by_group(_labels(groups, "groups", rows), shares, generator)
    else:
        sizes = _sizes(rows, shares)
        sets = list(torch.randperm(rows, generator=generator).split(sizes))
    for name, share, indices in zip(("train", "dev", "test"), shares, sets, strict=True):
        if share > 0 and len(indices) == 0:
            raise ValueError(
                f"every set with a fraction above 0 needs a sample, got none for {name} out of {rows} rows; "
                "give more data or groups, or set that fraction to 0."
            )
    if isinstance(data[0], Tensor):
        parts: list[Any] = [tuple(t[i.to(t.device)] for t in data if isinstance(t, Tensor)) for i in sets]
    else:
        parts = [Subset(data[0], indices.tolist()) for indices in sets]
    return Split(parts[0], parts[1], parts[2], (sets[0], sets[1], sets[2]))


def shared_samples(first: Tensor, second: Tensor) -> Tensor:
    """Rows of ``second`` that are also in ``first``, by index: samples that leak from one set into the other.

    >>> shared_samples(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[5.0, 6.0], [3.0, 4.0]]))
    tensor([1])
    """
    for name, value in (("first", first), ("second", second)):
        check_tensor(value, name)
    if first.dim() < 1 or first.shape[1:] != second.shape[1:]:
        raise ValueError(
            f"both sets must have rows of the same shape, got {tuple(first.shape)} and {tuple(second.shape)}; "
            "compare inputs with inputs."
        )
    both = torch.cat([first.flatten(1), second.flatten(1)]) if first.dim() > 1 else torch.cat([first, second])[:, None]
    _, row = torch.unique(both, dim=0, return_inverse=True)
    return torch.nonzero(torch.isin(row[len(first) :], row[: len(first)])).flatten()


def _count_rows(data: tuple[Any, ...]) -> int:
    if not data:
        raise ValueError("at least one tensor or dataset must be given, got none; pass what is to be split.")
    if isinstance(data[0], Tensor):
        for value in data:
            check_tensor(value, "data")
            if value.dim() == 0:
                raise ValueError("data must have rows, got a tensor of no axes; pass tensors of shape (m, ...).")
        counts = [len(value) for value in data]
        if len(set(counts)) != 1:
            raise ValueError(f"all tensors must have the same number of rows, got {counts}; check their first axis.")
        return counts[0]
    if len(data) > 1 or not (hasattr(data[0], "__len__") and hasattr(data[0], "__getitem__")):
        raise TypeError(
            f"data must be tensors or one dataset with a length, got {', '.join(describe(d) for d in data)}; "
            "convert arrays with torch.as_tensor."
        )
    return len(data[0])


def _check_fractions(fractions: Sequence[float] | None, rows: int) -> tuple[float, ...]:
    if fractions is None:
        return (0.6, 0.2, 0.2) if rows < LARGE else (0.98, 0.01, 0.01)
    try:
        shares = tuple(float(share) for share in fractions)
    except (TypeError, ValueError):
        shares = ()
    if len(shares) != 3 or any(not 0 <= share <= 1 for share in shares) or abs(sum(shares) - 1) > 1e-9:
        raise ValueError(
            f"fractions must be three shares in [0, 1] that add up to 1, got {describe(fractions)}; "
            "(0.6, 0.2, 0.2) is usual for small data, (0.98, 0.01, 0.01) for large."
        )
    return shares


def _labels(values: Tensor, name: str, rows: int) -> Tensor:
    check_tensor(values, name)
    if tuple(values.shape) != (rows,):
        raise ValueError(
            f"{name} must have shape ({rows},), one entry a row, got {tuple(values.shape)}; use {name}.flatten() if "
            "the order is right."
        )
    return values.detach().cpu()


def _sizes(rows: int, shares: Sequence[float]) -> list[int]:
    """Whole numbers in proportion to the shares, adding up to ``rows`` (largest remainder), and a row for each set."""
    exact = [rows * share for share in shares]
    sizes = [math.floor(value + 1e-9) for value in exact]
    order = sorted(range(len(shares)), key=lambda i: sizes[i] - exact[i])
    for i in order[: rows - sum(sizes)]:
        sizes[i] += 1
    for i, share in enumerate(shares):
        largest = max(range(len(sizes)), key=sizes.__getitem__)
        if share > 0 and sizes[i] == 0 and sizes[largest] > 1:
            sizes[i], sizes[largest] = 1, sizes[largest] - 1
    return sizes


def _split_by_class(labels: Tensor, shares: Sequence[float], generator: torch.Generator | None) -> list[Tensor]:
    needed = sum(share > 0 for share in shares)
    classes, counts = torch.unique(labels, return_counts=True)
    if len(counts) and int(counts.min()) < needed:
        rare = int(counts.argmin())
        raise ValueError(
            f"every class must have at least {needed} samples to be in {needed} sets, got {int(counts[rare])} of class "
            f"{classes[rare].item()}; leave the class out, or split without stratify."
        )
    sets: list[list[Tensor]] = [[] for _ in shares]
    owed = [0.0] * len(shares)  # what rounding has kept from each set so far
    for label in classes:
        members = torch.nonzero(labels == label).flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        exact = [len(members) * share for share in shares]
        sizes = [max(math.floor(value + 1e-9), int(share > 0)) for value, share in zip(exact, shares, strict=True)]
        sizes[0] -= max(0, sum(sizes) - len(members))
        for _ in range(len(members) - sum(sizes)):
            neediest = max(range(len(shares)), key=lambda i: (exact[i] - sizes[i] + owed[i]) if shares[i] > 0 else -1e9)
            sizes[neediest] += 1
        owed = [owed[i] + exact[i] - sizes[i] for i in range(len(shares))]
        for part, piece in zip(sets, members.split(sizes), strict=True):
            part.append(piece)
    whole = [torch.cat(part) if part else torch.zeros(0, dtype=torch.int64) for part in sets]
    return [part[torch.randperm(len(part), generator=generator)] for part in whole]  # not sorted by class


def _split_by_group(groups: Tensor, shares: Sequence[float], generator: torch.Generator | None) -> list[Tensor]:
    _, member_of, counts = torch.unique(groups, return_inverse=True, return_counts=True)
    # Largest groups first, equal ones in random order, each into the set that lacks most of its share.
    shuffled = torch.randperm(len(counts), generator=generator)
    order = shuffled[torch.argsort(counts[shuffled], descending=True, stable=True)]
    wanted = [len(groups) * share for share in shares]
    got = [0] * len(shares)
    chosen = torch.zeros(len(counts), dtype=torch.int64)
    for group in order.tolist():
        into = max(range(len(shares)), key=lambda i: (wanted[i] - got[i]) / max(wanted[i], 1e-9) if wanted[i] else -1e9)
        chosen[group] = into
        got[into] += int(counts[group])
    rows = torch.randperm(len(groups), generator=generator)
    set_of = chosen[member_of][rows]
    return [rows[set_of == i] for i in range(len(shares))]
