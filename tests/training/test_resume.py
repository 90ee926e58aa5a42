"""Exact resume: killed anywhere and started again, a run ends with the same bits; damaged and full disks."""

import errno
import os
import subprocess
import sys
import textwrap
from collections import defaultdict

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.training._runs import Stop, StopAt, samples, train
from torchnotes import optim
from torchnotes.training import CheckpointError, EarlyStopping, fit, load_checkpoint, save_checkpoint


def _train(path, stop_at=None, **kwargs):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(100, 4, generator=generator)
    y = x[:, :1].sin()
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 1))
    optimizer = optim.Adam(model.parameters(), 0.01)
    kwargs = {"epochs": 4, "batch_size": 16, "dev": (x[:20], y[:20]), "progress": False, "seed": 3, **kwargs}
    scheduler = optim.lr_scheduler.InverseTimeDecay(optimizer, 0.3)
    # the rate is highest in the first epoch, so its weights must survive every restart
    callbacks = [StopAt(stop_at), EarlyStopping(patience=50, monitor="lr", mode="max")]
    run = fit(
        model,
        (x, y),
        loss=F.mse_loss,
        optimizer=optimizer,
        scheduler=scheduler,
        callbacks=callbacks,
        checkpoint=path,
        **kwargs,
    )
    return run, model.state_dict(), optimizer.state_dict()


def _assert_identical(first, second):
    assert first[0].history == second[0].history
    assert (first[0].epoch, first[0].step) == (second[0].epoch, second[0].step)
    for name, value in first[1].items():
        assert torch.equal(value, second[1][name]), name
    for index, state in first[2]["state"].items():
        for name, value in state.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(second[2]["state"][index][name]))


@pytest.mark.parametrize("every", [None, 1, 3])
@pytest.mark.parametrize("at", [1, 6, 7, 8, 20, 28])
def test_interrupted_at_any_step(tmp_path, at, every):
    whole = _train(tmp_path / "whole.pt", checkpoint_every=every)
    with pytest.raises(Stop):
        _train(tmp_path / "cut.pt", stop_at=at, checkpoint_every=every)
    torch.randn(7)  # whatever else the program drew in between
    _assert_identical(_train(tmp_path / "cut.pt", checkpoint_every=every), whole)


def test_a_finished_run_only_loads_and_goes_on_when_epochs_are_raised(tmp_path):
    whole = _train(tmp_path / "whole.pt", epochs=6)
    first = _train(tmp_path / "run.pt", epochs=4)
    _assert_identical(_train(tmp_path / "run.pt", epochs=4, stop_at=1), first)
    _assert_identical(_train(tmp_path / "run.pt", epochs=6), whole)


def test_without_resume_it_starts_anew(tmp_path):
    first = _train(tmp_path / "run.pt", epochs=2)
    _assert_identical(_train(tmp_path / "run.pt", epochs=2, resume=False), first)


KILLED = """
    import os, random, signal, sys
    import torch, torch.nn.functional as F
    from torch import nn
    from torchnotes import optim
    from torchnotes.training import Callback, EarlyStopping, fit

    path, seed, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    torch.set_num_threads(1)  # so that a process forked from this one may compute

    def train(path, die):
        # The process counts what it does: steps, writes, syncs, renames; and dies with the die-th of them.
        left = [die]
        def event(*_):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        def wrapped(function):
            def both(*args, **kwargs):
                event()
                result = function(*args, **kwargs)
                event()
                return result
            return both
        os.replace, os.fsync = wrapped(os.replace), wrapped(os.fsync)
        class Count(Callback):
            on_step = lambda self, run: event()
        x = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.Linear(8, 1))
        run = fit(model, (x, x[:, :1].sin()), loss=F.mse_loss, optimizer=optim.Momentum(model.parameters(), 0.1),
                  epochs=4, batch_size=16, dev=(x, x[:, :1]), callbacks=[Count(), EarlyStopping()], checkpoint=path,
                  checkpoint_every=2, progress=False)
        torch.save([model.state_dict(), run.history], path + ".result")

    def attempt(path, die):
        child = os.fork()
        if child == 0:
            train(path, die)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        assert status == 0 or os.WTERMSIG(status) == signal.SIGKILL, status
        return status == 0

    train(path + "/warm.pt", 0)  # so that what torch imports late is there for every process forked
    assert attempt(path + "/whole.pt", 0)
    chance, kills = random.Random(seed), 0
    for trial in range(3):
        cut = f"{path}/cut{trial}.pt"
        while not attempt(cut, chance.randint(1, 25)):
            kills += 1
        a, b = torch.load(path + "/whole.pt.result"), torch.load(cut + ".result")
        assert a[1] == b[1], (a[1], b[1])
        assert all(torch.equal(a[0][name], b[0][name]) for name in a[0])
    print("kills:", kills)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked process")
def test_killed_with_sigkill_at_random_moments(tmp_path):
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path), "0", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split("kills:")[1]) >= 8


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_a_full_disk_leaves_the_old_checkpoint_whole(tmp_path, monkeypatch, call):
    path = tmp_path / "run.pt"
    save_checkpoint({"step": 1}, path)

    def fail(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if call == "write":
        real = os.fdopen

        def full(handle, how):
            file = real(handle, how)

            class Full:
                write = fail

                def __enter__(self):
                    return self

                def __exit__(self, *error):
                    file.close()

            return Full()

        monkeypatch.setattr(os, "fdopen", full)
    else:
        monkeypatch.setattr(os, call, fail)
    with pytest.raises(
        CheckpointError, match=r"must fit into .*, got No space left on device; the one from before is int"
    ):
        save_checkpoint({"step": 2}, path)
    monkeypatch.undo()
    assert load_checkpoint(path) == {"step": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.pt"]


def test_what_a_killed_process_left_beside_the_checkpoint_is_removed(tmp_path):
    left = [tmp_path / ".run.pt.00ff.unfinished", tmp_path / ".run.pt.1234.unfinished"]
    kept = [tmp_path / ".other.pt.00ff.unfinished", tmp_path / "run.pt.best"]
    for path in (*left, *kept):
        path.touch()
    _train(tmp_path / "run.pt", epochs=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["run.pt", *(path.name for path in kept)])


@pytest.mark.skipif(os.name != "posix", reason="modes of POSIX")
def test_a_checkpoint_has_the_mode_of_any_other_new_file(tmp_path):
    save_checkpoint({"step": 1}, tmp_path / "run.pt")
    (tmp_path / "other").touch()
    assert (tmp_path / "run.pt").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_numbers_of_numpy_are_kept_and_what_could_not_be_read_back_is_refused_on_writing(tmp_path):
    path = tmp_path / "run.pt"
    state = {"a": np.float64(0.1), "b": [np.int64(3), (np.float32(0.1),)], "c": defaultdict(list, d=[1])}
    save_checkpoint(state, path)
    assert load_checkpoint(path) == {"a": 0.1, "b": [3, (float(np.float32(0.1)),)], "c": {"d": [1]}}
    assert type(state["a"]) is np.float64  # the caller's own state is left as it was
    for value in (np.zeros(2), tmp_path, frozenset({1}), print):
        with pytest.raises(
            TypeError, match=r"a checkpoint takes tensors and plain values, got .* at state\['a'\]\[1\]\['b'\]; conver"
        ):
            save_checkpoint({"a": [1, {"b": value}]}, path)
    assert load_checkpoint(path)["a"] == 0.1


def test_a_rate_out_of_numpy_can_be_resumed(tmp_path):
    def train(epochs):
        torch.manual_seed(1)
        model = nn.Linear(1, 1)
        optimizer = optim.Adam(model.parameters(), np.logspace(-3, -1, 3)[1])
        x = torch.linspace(-1, 1, 8).unsqueeze(1)
        return fit(
            model, (x, x), loss=F.mse_loss, optimizer=optimizer, epochs=epochs, checkpoint=tmp_path / "run.pt"
        ).history

    first = train(2)
    assert train(3)[:2] == first


def test_a_plateau_scheduler_is_stepped_by_the_dev_loss_and_resumed(tmp_path):
    def train(path, epochs, dev):
        torch.manual_seed(1)
        model = nn.Linear(1, 1)
        optimizer = optim.GradientDescent(model.parameters(), 1e-6)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=1, threshold=0.5)
        x = torch.linspace(-1, 1, 8).unsqueeze(1)
        run = fit(
            model,
            (x, x),
            loss=F.mse_loss,
            optimizer=optimizer,
            scheduler=scheduler,
            epochs=epochs,
            dev=dev,
            checkpoint=path,
        )
        return [record["lr"] for record in run.history]

    for dev in (None, (torch.ones(2, 1), torch.ones(2, 1))):
        rates = train(tmp_path / f"{dev is None}.pt", 6, dev)
        assert rates == pytest.approx([1e-6] * 3 + [1e-7] * 2 + [1e-8])
        train(tmp_path / f"{dev is None} cut.pt", 2, dev)
        assert train(tmp_path / f"{dev is None} cut.pt", 6, dev) == rates


def test_files_that_are_no_checkpoints(tmp_path):
    path = tmp_path / "run.pt"
    with pytest.raises(CheckpointError, match="a checkpoint must exist to be read, got none at"):
        load_checkpoint(path)
    path.write_bytes(b"not one")
    with pytest.raises(CheckpointError, match="must be a checkpoint, got a file that cannot be read"):
        _train(path)
    torch.save([1], path)
    with pytest.raises(CheckpointError, match="must be a checkpoint, got list"):
        load_checkpoint(path)


def test_a_checkpoint_of_other_options_is_refused(tmp_path):
    _train(tmp_path / "run.pt", epochs=1)
    with pytest.raises(
        ValueError, match="same options, got batch_size 16 there and 32 here; use the same, another file"
    ):
        _train(tmp_path / "run.pt", epochs=2, batch_size=32)


def test_a_checkpoint_of_another_model_or_optimiser_is_refused_and_nothing_is_loaded(tmp_path):
    path, data = tmp_path / "run.pt", samples(20)
    train(nn.Linear(4, 1).double(), data, checkpoint=path)
    wide = nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 1)).double()
    with pytest.raises(
        ValueError, match=r"must hold this model, got weight \(1, 4\) there and absent here, .* and 3 more"
    ):
        train(wide, data, checkpoint=path, epochs=5)
    model = nn.Linear(4, 1).double()
    before = model.weight.detach().clone()
    with pytest.raises(ValueError, match="same options, got optimizer 'Adam' there and 'Momentum' here"):
        train(model, data, checkpoint=path, epochs=5, optimizer=optim.Momentum(model.parameters()))
    assert torch.equal(model.weight, before)
