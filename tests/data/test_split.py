"""train_dev_test_split: sizes, classes, groups, leakage, reproducibility, errors."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import TensorDataset

from torchnotes.data import shared_samples, train_dev_test_split


def _seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("rows", "sizes"), [(1000, [600, 200, 200]), (200_000, [196_000, 2000, 2000]), (7, [4, 2, 1])])
def test_the_notes_shares(rows, sizes):
    split = train_dev_test_split(torch.arange(rows), generator=_seeded())
    assert [len(indices) for indices in split.indices] == sizes


@pytest.mark.parametrize(("rows", "sizes"), [(3, [1, 1, 1]), (4, [2, 1, 1]), (5, [3, 1, 1])])
def test_every_set_has_a_sample_where_there_are_enough(rows, sizes):
    assert [len(indices) for indices in train_dev_test_split(torch.arange(rows)).indices] == sizes


@given(rows=st.integers(10, 300), seed=st.integers(0, 3), how=st.sampled_from(["plain", "stratify", "groups"]))
@settings(max_examples=60, deadline=None)
def test_no_row_is_lost_or_in_two_sets(rows, seed, how):
    extra = {} if how == "plain" else {how: torch.arange(rows) % (3 if how == "stratify" else 10)}
    x = torch.arange(rows).unsqueeze(1)
    y = torch.arange(rows) * 2
    split = train_dev_test_split(x, y, generator=_seeded(seed), **extra)
    assert torch.cat(split.indices).sort().values.tolist() == list(range(rows))
    for (x_part, y_part), indices in zip(split, split.indices, strict=True):
        assert torch.equal(x_part.flatten(), indices)
        assert torch.equal(y_part, indices * 2)


def test_every_class_has_its_share_to_one_sample():
    labels = torch.cat([torch.full((n,), c) for c, n in enumerate([1000, 503, 97, 11, 3])])
    split = train_dev_test_split(labels, stratify=labels, generator=_seeded())
    for indices, share in zip(split.indices, (0.6, 0.2, 0.2), strict=True):
        counts = torch.bincount(labels[indices], minlength=5)
        assert (counts > 0).all()
        assert ((counts - torch.tensor([1000, 503, 97, 11, 3]) * share).abs() <= 1.0 + 1e-6).all()
        assert len(indices) == pytest.approx(1614 * share, abs=2)
        # not one class after the other
        assert (labels[indices].diff() != 0).sum() > len(indices) / 4


def test_no_group_is_in_two_sets_and_sizes_are_near():
    groups = torch.randint(0, 80, (2000,), generator=_seeded(5))
    split = train_dev_test_split(torch.arange(2000), groups=groups, generator=_seeded())
    members = [set(groups[indices].tolist()) for indices in split.indices]
    assert sum(map(len, members)) == len(set.union(*members)) == len(groups.unique())
    for indices, share in zip(split.indices, (0.6, 0.2, 0.2), strict=True):
        # the greedy choice is off by at most about one group, of some 25 rows
        assert len(indices) == pytest.approx(2000 * share, abs=40)


@pytest.mark.parametrize("how", [None, "stratify", "groups"])
def test_reproducible_and_dependent_on_the_seed(how):
    extra = {} if how is None else {how: torch.arange(300) % 12}
    first, again, other = (
        train_dev_test_split(torch.arange(300), generator=_seeded(s), **extra).indices for s in (1, 1, 2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0].sort().values, other[0].sort().values)


def test_global_random_state_is_left_alone_with_a_generator():
    before = torch.get_rng_state()
    train_dev_test_split(torch.arange(50), generator=_seeded())
    assert torch.equal(torch.get_rng_state(), before)


def test_a_dataset_becomes_subsets():
    dataset = TensorDataset(torch.arange(20.0), torch.arange(20))
    train, dev, test = train_dev_test_split(dataset, generator=_seeded())
    assert [len(part) for part in (train, dev, test)] == [12, 4, 4]
    seen = [int(label) for part in (train, dev, test) for _, label in part]
    assert sorted(seen) == list(range(20))


def test_a_fraction_of_zero_leaves_a_set_empty():
    split = train_dev_test_split(torch.arange(10), fractions=(0.8, 0.2, 0.0), generator=_seeded())
    assert [len(indices) for indices in split.indices] == [8, 2, 0]


def test_duplicates_that_leak_are_found():
    x = torch.randn(50, 3, generator=_seeded())
    other = torch.cat([torch.randn(5, 3, generator=_seeded(1)), x[7:9], torch.zeros(1, 3)])
    assert shared_samples(x, other).tolist() == [5, 6]
    assert shared_samples(torch.tensor([1, 2]), torch.tensor([3, 2])).tolist() == [1]
    with pytest.raises(ValueError, match="both sets must have rows of the same shape"):
        shared_samples(x, other[:, :2])


X = torch.arange(10)


@pytest.mark.parametrize(
    ("call", "error", "wording"),
    [
        (train_dev_test_split, ValueError, "at least one tensor or dataset must be given, got none"),
        (lambda: train_dev_test_split([1, 2]), ValueError, "every set with a fraction above 0 needs a sample"),
        (lambda: train_dev_test_split(3), TypeError, "data must be tensors or one dataset with a length, got int 3"),
        (lambda: train_dev_test_split(X, X[:5]), ValueError, r"same number of rows, got \[10, 5\]"),
        (lambda: train_dev_test_split(torch.tensor(1.0)), ValueError, "got a tensor of no axes"),
        (lambda: train_dev_test_split(X, fractions=(0.5, 0.5)), ValueError, "three shares .* that add up to 1"),
        (lambda: train_dev_test_split(X, fractions=(0.5, 0.4, 0.2)), ValueError, "that add up to 1, got"),
        (lambda: train_dev_test_split(X, fractions=(1.2, -0.1, -0.1)), ValueError, r"three shares in \[0, 1\]"),
        (
            lambda: train_dev_test_split(X, fractions="60/20/20"),
            ValueError,
            "fractions must be three shares .*, got str",
        ),
        (
            lambda: train_dev_test_split(X, fractions=0.6),
            ValueError,
            "fractions must be three shares .*, got float 0.6",
        ),
        (lambda: train_dev_test_split(X[:2]), ValueError, "needs a sample, got none for test out of 2 rows"),
        (
            lambda: train_dev_test_split(X, stratify=X),
            ValueError,
            "every class must have at least 3 samples .* class 0",
        ),
        (lambda: train_dev_test_split(X, stratify=X[:3]), ValueError, r"stratify must have shape \(10,\)"),
        (lambda: train_dev_test_split(X, stratify=X, groups=X), ValueError, "either stratify or groups"),
        (lambda: train_dev_test_split(X, groups=X * 0), ValueError, "needs a sample, got none for dev"),
        (lambda: train_dev_test_split(X, generator=3), TypeError, r"generator must be a torch\.Generator"),
    ],
)
def test_errors_say_what_must_hold_and_what_came(call, error, wording):
    with pytest.raises(error, match=wording):
        call()
