"""fit over DataLoaders: the same steps as over tensors, exact resume whatever draws the order, errors by batch."""

import os
import random
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from tests.training._runs import Stop, StopAt, samples, train
from torchnotes.training import EarlyStopping, evaluate

ROOT = Path(__file__).parents[2]


def _data(m=50, seed=0):
    return samples(m, seed, torch.float32)


def _model():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 1))


def _fit(data, model=None, **kwargs):
    model = _model() if model is None else model
    return train(model, data, **kwargs), model.state_dict()


def _assert_identical(first, second):
    assert first[0].history == second[0].history
    assert first[0].step == second[0].step
    assert all(torch.equal(value, second[1][name]) for name, value in first[1].items())


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_loader_trains_like_its_tensors(accumulate):
    # A generator of its own: each epoch a loader draws a seed for its workers, needed or not, which moves dropout on.
    loader = DataLoader(TensorDataset(*_data()), batch_size=16, generator=_generator())
    tensors = _fit(_data(), batch_size=16, shuffle=False, accumulate=accumulate)
    _assert_identical(_fit(loader, accumulate=accumulate), tensors)


def test_a_loader_without_a_generator_draws_its_order_from_the_seed():
    loader = DataLoader(TensorDataset(*_data()), batch_size=16, shuffle=True)
    before = torch.get_rng_state()
    first, again, other = (_fit(loader, seed=seed) for seed in (1, 1, 2))
    _assert_identical(first, again)
    assert first[0].history != other[0].history
    torch.manual_seed(1)  # _model sets it
    assert torch.equal(_fit(loader)[1]["0.weight"], _fit(loader)[1]["0.weight"])
    torch.set_rng_state(before)


class Augmented(Dataset):
    """Draws from every random state that a transformation may use."""

    def __len__(self):
        return 50

    def __getitem__(self, i):
        x, y = _data()
        noise = torch.rand(1).item() + random.random() + np.random.rand()  # noqa: NPY002
        return x[i] + noise, y[i]


class Endless(IterableDataset):
    """A stream without a length, in a random order."""

    def __iter__(self):
        x, y = _data()
        for i in torch.randperm(50).tolist():
            yield x[i] + torch.rand(1), y[i]


def _generator():
    return torch.Generator().manual_seed(5)


LOADERS = {
    "global generator": lambda: DataLoader(TensorDataset(*_data()), 16, shuffle=True),
    "own generator": lambda: DataLoader(TensorDataset(*_data()), 16, shuffle=True, generator=_generator()),
    "sampler's generator, drawn as it goes": lambda: DataLoader(
        TensorDataset(*_data()),
        16,
        sampler=RandomSampler(range(50), replacement=True, num_samples=60, generator=_generator()),
    ),
    "weighted": lambda: DataLoader(
        TensorDataset(*_data()), 16, sampler=WeightedRandomSampler(torch.arange(1.0, 51), 50, generator=_generator())
    ),
    "batch sampler": lambda: DataLoader(
        TensorDataset(*_data()),
        batch_sampler=BatchSampler(RandomSampler(range(50), generator=_generator()), 16, drop_last=True),
    ),
    "augmented": lambda: DataLoader(Augmented(), 16, shuffle=True),
    "augmented in workers": lambda: DataLoader(Augmented(), 16, shuffle=True, num_workers=2),
    "no length": lambda: DataLoader(Endless(), 16),
}


@pytest.mark.parametrize("name", LOADERS)
def test_interrupted_and_resumed_it_ends_with_the_same_bits(tmp_path, name):
    def run(path, stop_at=None):
        return _fit(
            LOADERS[name](),
            dev=DataLoader(TensorDataset(*_data(20, seed=2)), 8, shuffle=True, generator=_generator()),
            callbacks=[StopAt(stop_at), EarlyStopping(patience=50)],
            checkpoint=tmp_path / path,
            checkpoint_every=2,
        )

    whole = run("whole.pt")
    # within the first epoch, after a checkpoint at its end, and within the second
    for at in (3, 4, 7) if name != "augmented in workers" else (7,):
        with pytest.raises(Stop):
            run(f"{at}.pt", at)
        torch.randn(7), random.random()
        _assert_identical(run(f"{at}.pt"), whole)


def test_the_orders_differ_from_epoch_to_epoch_and_every_sample_comes_once():
    seen = []

    class Recorder(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(1))

        def forward(self, x):
            seen.append(x.flatten().tolist())
            return x * self.w

    x = torch.arange(10.0).unsqueeze(1)
    model = Recorder()
    loader = DataLoader(TensorDataset(x, x), 4, shuffle=True)
    run, _ = _fit(loader, model, optimizer=torch.optim.SGD(model.parameters(), 0.0), epochs=2)
    first, second = sum(seen[:3], []), sum(seen[3:], [])  # noqa: RUF017
    assert sorted(first) == sorted(second) == x.flatten().tolist()
    assert first != second
    assert run.history[0]["train_loss"] == pytest.approx(x.square().mean().item())  # the smaller batch weighs less


def test_a_dev_loader_is_evaluated_whole_and_does_not_touch_the_training():
    dev = _data(30, seed=3)
    shuffled = DataLoader(TensorDataset(*dev), 7, shuffle=True)
    plain, by_loader, by_tensors = (_fit(_data(), batch_size=16, dev=given) for given in (None, shuffled, dev))
    assert all(torch.equal(value, plain[1][name]) for name, value in by_loader[1].items())
    for record, same in zip(by_loader[0].history, by_tensors[0].history, strict=True):
        assert record["dev_loss"] == pytest.approx(same["dev_loss"], rel=1e-6)
    model = _model()
    model.load_state_dict(by_loader[1])
    assert by_loader[0].history[-1]["dev_loss"] == pytest.approx(evaluate(model, *dev, loss=F.mse_loss)["loss"])


def _loader(x, y, size=16, **kwargs):
    return DataLoader(TensorDataset(x, y), size, **kwargs)


NAN_LATE = torch.zeros(50, 1)
NAN_LATE[40] = float("nan")


@pytest.mark.parametrize(
    ("data", "kwargs", "error", "wording"),
    [
        (_loader(*_data()), {"batch_size": 8}, TypeError, "a DataLoader has its own batch_size, got another beside it"),
        (
            _loader(*_data()),
            {"batch_size": 8, "shuffle": True},
            TypeError,
            "a DataLoader has its own batch_size and shuffle",
        ),
        (_loader(*_data(5), drop_last=True), {}, ValueError, "train must hold at least one batch, got a DataLoader th"),
        (_loader(_data()[0], NAN_LATE), {}, ValueError, r"targets of a batch of train must be finite, .* first at 8;"),
        (TensorDataset(_data()[0], NAN_LATE), {"shuffle": False}, ValueError, "targets of a batch of train must be fi"),
        (DataLoader(_data()[0], 16), {}, TypeError, r"a batch of train must be a pair \(x, y\) of tensors with the s"),
        (
            DataLoader(TensorDataset(*_data()), batch_size=None),
            {},
            ValueError,
            "a batch of train must hold as many targets as inputs, got x",
        ),
        (_data(), {"dev": _loader(*_data(5), drop_last=True)}, ValueError, "dev must hold at least one batch"),
        (_data(), {"dev": _loader(_data()[0], NAN_LATE)}, ValueError, "targets of a batch of dev must be finite"),
    ],
)
def test_errors_say_what_must_hold_and_what_came(data, kwargs, error, wording):
    with pytest.raises(error, match=wording):
        _fit(data, **kwargs)


@pytest.mark.parametrize("kind", ["loader", "dataset"])
def test_a_label_beyond_the_classes_is_named_in_whatever_batch_it_comes(kind):
    x, y = torch.zeros(6, 4), torch.tensor([0, 1, 2, 0, 1, 3])
    data = _loader(x, y, 2) if kind == "loader" else TensorDataset(x, y)
    options = {} if kind == "loader" else {"batch_size": 2, "shuffle": False}
    with pytest.raises(ValueError, match="labels must be below the number of classes, got 3 for a model with 3 output"):
        _fit(data, nn.Linear(4, 3), loss=F.cross_entropy, **options)


def test_a_loader_that_lost_its_batches_or_its_size_is_refused_on_resume(tmp_path):
    class Shrinking(IterableDataset):
        rows = 50

        def __iter__(self):
            return zip(*(value[: self.rows] for value in _data()), strict=True)

    with pytest.raises(Stop):
        _fit(DataLoader(Shrinking(), 16), checkpoint=tmp_path / "run.pt", checkpoint_every=1, callbacks=[StopAt(4)])
    Shrinking.rows = 20
    with pytest.raises(ValueError, match="train must give the batches again that it gave before, got 2 of 3; start"):
        _fit(DataLoader(Shrinking(), 16), checkpoint=tmp_path / "run.pt", callbacks=[StopAt(None)])
    with pytest.raises(ValueError, match="same options, got batch_size 16 there and 8 here"):
        _fit(DataLoader(Shrinking(), 8), checkpoint=tmp_path / "run.pt", callbacks=[StopAt(None)])


TORCHRUN = """
    import sys
    import torch, torch.distributed as dist, torch.nn.functional as F
    from torch import nn
    from torch.utils.data import DataLoader, DistributedSampler, TensorDataset
    from torchnotes import optim
    from torchnotes.training import fit

    def train(data, **kwargs):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).double()
        run = fit(model, data, loss=F.mse_loss, optimizer=optim.Adam(model.parameters(), 0.01), epochs=3,
                  dev=(x[:10], y[:10]), clip_norm=0.5, accumulate=2, progress=False, **kwargs)
        return run.history, model.state_dict()

    def refused(loader):
        try:
            train(loader)
        except ValueError as error:
            return str(error)

    x = torch.randn(44, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = x[:, :1].sin()
    if __name__ == "__main__":
        torch.set_num_threads(1)
        dist.init_process_group("gloo")
        rank, world = dist.get_rank(), dist.get_world_size()
        tensors = train((x, y), batch_size=22)
        sampler = DistributedSampler(range(44), shuffle=False)
        loader = train(DataLoader(TensorDataset(x, y), 11, sampler=sampler))
        wordings = [refused(DataLoader(TensorDataset(x, y), 11)),
                    refused(DataLoader(TensorDataset(x, y), 11, sampler=DistributedSampler(range(44), 2, 1 - rank)))]
        torch.save([world, tensors, loader, wordings], f"{sys.argv[1]}/{rank}.pt")
        dist.destroy_process_group()
"""


def test_torchrun_with_two_processes_trains_like_one(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(TORCHRUN), encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(tmp_path)], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    one = {}
    exec(compile(textwrap.dedent(TORCHRUN), "one process", "exec"), one)
    x, y = one["x"], one["y"]
    alone = [one["train"]((x, y), batch_size=22), one["train"](_loader(x, y, 22))]
    for rank in range(2):
        world, *found, wordings = torch.load(tmp_path / f"{rank}.pt")
        assert world == 2
        for (history, state), (one_history, one_state) in zip(found, alone, strict=True):
            for name, value in one_state.items():
                # sums in another order, over 6 steps of Adam
                torch.testing.assert_close(state[name], value, rtol=1e-9, atol=1e-11)
            for ours, theirs in zip(history, one_history, strict=True):
                assert ours == pytest.approx(theirs, abs=1e-9)
        assert "with 2 processes a DataLoader must give each its own share, got one with Sequential" in wordings[0]
        assert f"must know 2 processes and be that of rank {rank}, got 2 and rank {1 - rank}" in wordings[1]


def test_a_distributed_dev_loader_is_refused():
    from torchnotes.training._feed import dev_feed

    loader = _loader(*_data(), sampler=DistributedSampler(range(50), 2, 0))
    with pytest.raises(ValueError, match="dev must hold all of the dev set in the first process, got a DataLoader wit"):
        dev_feed(loader, 16, world=2)
