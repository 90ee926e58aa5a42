"""minibatches: sizes, order, the three kinds of data, errors."""

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from torchnotes.data import default_batch_size, minibatches


def _seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_notes_rule_of_sizes():
    assert default_batch_size(1) == 1
    assert default_batch_size(1999) == 1999
    for m in (2000, 3000, 5000, 20_000, 10**6, 10**9):
        size = default_batch_size(m)
        assert 64 <= size <= 512
        assert size & (size - 1) == 0  # a power of two
    assert len(minibatches(torch.zeros(1999))) == 1
    assert len(minibatches(torch.zeros(2000))) == 32


@pytest.mark.parametrize("wrap", [lambda x, y: (x, y), lambda x, y: (TensorDataset(x, y),)])
@pytest.mark.parametrize(("drop_last", "sizes"), [(False, [4, 4, 2]), (True, [4, 4])])
def test_last_batch_is_smaller_or_dropped(wrap, drop_last, sizes):
    x = torch.arange(10.0)
    batches = minibatches(*wrap(x, -x), batch_size=4, drop_last=drop_last, generator=_seeded())
    assert len(batches) == len(sizes)
    epoch = list(batches)
    assert [len(xb) for xb, _ in epoch] == sizes
    for xb, yb in epoch:
        assert torch.equal(xb, -yb)
    seen = torch.cat([xb for xb, _ in epoch]).sort().values
    assert len(seen.unique()) == sum(sizes)


@pytest.mark.parametrize("wrap", [lambda x: x, TensorDataset])
def test_shuffled_anew_each_epoch_from_the_generator(wrap):
    x = torch.arange(100)

    def epochs(seed):
        batches = minibatches(wrap(x), batch_size=32, generator=_seeded(seed))
        return [torch.cat([batch[0] for batch in batches]).tolist() for _ in range(2)]

    first = epochs(0)
    assert first[0] != first[1]
    assert sorted(first[1]) == list(range(100))
    assert epochs(0) == first
    assert epochs(1) != first


def test_in_order_without_shuffling_and_without_copies():
    x = torch.arange(10.0)
    batches = list(minibatches(x, batch_size=4, shuffle=False))
    assert torch.cat([b[0] for b in batches]).tolist() == list(range(10))
    assert batches[0][0].data_ptr() == x.data_ptr()
    dataset = minibatches(TensorDataset(x), batch_size=4, shuffle=False)
    assert torch.cat([b[0] for b in dataset]).tolist() == list(range(10))


def test_global_random_state_is_left_alone_with_a_generator():
    before = torch.get_rng_state()
    list(minibatches(torch.arange(50), batch_size=7, generator=_seeded()))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_loader_is_returned_as_it_is():
    loader = DataLoader(TensorDataset(torch.zeros(4)), batch_size=2)
    assert minibatches(loader) is loader


X = torch.zeros(4, 2)


@pytest.mark.parametrize(
    ("call", "error", "wording"),
    [
        (minibatches, TypeError, "got nothing; convert arrays"),
        (lambda: minibatches([1, 2]), TypeError, "data must be tensors, one dataset with a length or one DataLoader"),
        (lambda: minibatches(X, X[:3]), ValueError, r"the same number of rows, got \[4, 3\]"),
        (lambda: minibatches(X[:0]), ValueError, "data must hold at least one sample, got none"),
        (lambda: minibatches(X, batch_size=0), ValueError, "batch_size must be an integer of at least 1, got 0"),
        (lambda: minibatches(X, batch_size=8, drop_last=True), ValueError, "no batch would be left"),
        (lambda: minibatches(X, num_workers=2), TypeError, "tensors need no loader options, got num_workers"),
        (
            lambda: minibatches(DataLoader(TensorDataset(X)), batch_size=2),
            TypeError,
            "a DataLoader has its own options, got batch_size",
        ),
        (lambda: minibatches(X, generator="g"), TypeError, "generator must be a torch"),
    ],
)
def test_errors_say_what_must_hold_and_what_came(call, error, wording):
    with pytest.raises(error, match=wording):
        call()
