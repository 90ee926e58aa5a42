"""fit: the loop against one written by hand, accumulation, clipping, AMP, callbacks, states left as found, errors."""

import copy
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

from tests.training._runs import StopAt, samples, train
from torchnotes import optim
from torchnotes.training import Callback, CheckpointError, EarlyStopping, evaluate, predict


def _model(dropout=0.0, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 1)).double()


def _fit(model, data=None, **kwargs):
    return train(model, samples(150) if data is None else data, **{"batch_size": 32, **kwargs})


def _weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_full_batch_equals_a_loop_by_hand():
    x, y = samples(150)
    model, twin = _model(), _model()
    run = _fit(model, optimizer=torch.optim.SGD(model.parameters(), 0.1), epochs=20, batch_size=150, shuffle=False)
    optimizer, costs = torch.optim.SGD(twin.parameters(), 0.1), []
    for _ in range(20):
        optimizer.zero_grad()
        cost = F.mse_loss(twin(x), y)
        cost.backward()
        optimizer.step()
        costs.append(cost.item())
    assert torch.equal(_weights(model), _weights(twin))
    assert [record["train_loss"] for record in run.history] == pytest.approx(costs, rel=1e-14)
    assert (run.epoch, run.step) == (20, 20)


def test_every_sample_is_seen_once_an_epoch_in_a_new_order():
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
    _fit(model, (x, x), optimizer=torch.optim.SGD(model.parameters(), 0.0), batch_size=4, epochs=2)
    assert [len(batch) for batch in seen] == [4, 4, 2] * 2
    first, second = sum(seen[:3], []), sum(seen[3:], [])  # noqa: RUF017
    assert sorted(first) == sorted(second) == x.flatten().tolist()
    assert first != second


def test_the_notes_rule_of_batch_sizes_is_the_default():
    model = _model()
    assert _fit(model, batch_size=None).step == 3  # 150 samples: all in one
    assert _fit(_model(), samples(2000), batch_size=None, epochs=1).step == 32  # 64 at a time


@pytest.mark.parametrize("pieces", [2, 3, 50])
def test_accumulation_makes_the_step_of_the_whole_batch(pieces):
    whole, parts = _model(), _model()
    _fit(whole)
    _fit(parts, accumulate=pieces)
    # the same sums in another order
    torch.testing.assert_close(_weights(parts), _weights(whole), rtol=1e-9, atol=1e-12)


def test_clipping_shortens_the_gradient_to_the_norm():
    norms = []

    class Look(Callback):
        def on_step(self, run):
            norms.append(torch.cat([p.grad.flatten() for p in run.model.parameters()]).norm().item())

    _fit(_model(), clip_norm=1e-3, callbacks=[Look()])
    assert max(norms) <= 1e-3 * (1 + 1e-9)
    assert min(norms) > 0.9e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_amp_trains_and_keeps_the_weights_in_their_dtype(dtype):
    x, y = (value.float() for value in samples(150))
    model = _model().float()
    seen = []
    model[0].register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    run = _fit(model, (x, y), amp=dtype, epochs=30)
    assert set(seen) == {dtype}
    assert model[0].weight.dtype == torch.float32
    assert run.history[-1]["train_loss"] < 0.8 * run.history[0]["train_loss"]


def test_scheduler_is_stepped_once_an_epoch_and_the_rate_recorded():
    model = _model()
    optimizer = optim.GradientDescent(model.parameters(), 0.2)
    run = _fit(model, optimizer=optimizer, scheduler=optim.lr_scheduler.InverseTimeDecay(optimizer, 1.0))
    assert [record["lr"] for record in run.history] == pytest.approx([0.2, 0.1, 0.2 / 3])


def test_dev_set_is_evaluated_in_evaluation_mode():
    x, y = samples(40, seed=1)
    model = _model(dropout=0.5)
    run = _fit(model, dev=(x, y), metrics={"error": lambda out, target: (out - target).abs().mean()})
    found = evaluate(model, x, y, loss=F.mse_loss, batch_size=7)
    assert run.history[-1]["dev_loss"] == pytest.approx(found["loss"], rel=1e-12)
    model.eval()
    assert run.history[-1]["dev_error"] == pytest.approx((model(x) - y).abs().mean().item(), rel=1e-12)


def test_a_dataset_trains_like_its_tensors():
    model, twin = _model(), _model()
    _fit(model)
    _fit(twin, TensorDataset(*samples(150)))
    torch.testing.assert_close(_weights(model), _weights(twin), rtol=1e-12, atol=0)


def test_the_seed_decides_and_random_states_are_left_as_found():
    results = []
    for seed in (1, 1, 2):
        model = _model(dropout=0.3)
        torch.manual_seed(99)
        random.seed(99)
        np.random.seed(99)  # noqa: NPY002
        before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
        _fit(model, seed=seed)
        after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
        assert torch.equal(before[0], after[0])
        assert before[1:] == after[1:]
        results.append(_weights(model))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_modes_are_left_as_found():
    model = _model(dropout=0.5)
    model.eval()
    model[2].train()
    _fit(model, dev=samples(10))
    assert [module.training for module in model] == [False, False, True, False]


def test_callbacks_see_each_step_and_epoch_and_can_stop():
    calls = []

    class Look(Callback):
        def on_step(self, run):
            calls.append(("step", run.step))

        def on_epoch(self, run):
            calls.append(("epoch", run.epoch, len(run.history)))
            run.stopped = run.epoch == 2

        def on_end(self, run):
            calls.append("end")

    run = _fit(_model(), batch_size=75, epochs=9, callbacks=[Look()])
    assert calls == [("step", 1), ("step", 2), ("epoch", 1, 1), ("step", 3), ("step", 4), ("epoch", 2, 2), "end"]
    assert run.stopped


def test_writer_gets_every_figure_by_epoch():
    written = []

    class Writer:
        def add_scalar(self, tag, value, step):
            written.append((tag, step))

    _fit(_model(), writer=Writer(), dev=samples(10), epochs=2)
    tags = ["training/train_loss", "training/lr", "training/dev_loss"]
    assert written == [(tag, step) for step in (1, 2) for tag in tags]


def test_progress_bar_is_shown_when_asked_for(capsys):
    _fit(_model(), progress=True)
    assert "3/3" in capsys.readouterr().err


def test_early_stopping_ends_with_the_best_weights():
    model, best = _model(), {}

    class Keep(Callback):
        def on_epoch(self, run):
            loss = run.history[-1]["dev_loss"]
            if loss < best.get("loss", float("inf")):
                best.update(loss=loss, weights=_weights(run.model).clone())

    x, y = samples(30)
    stopping = EarlyStopping(patience=5)
    run = _fit(model, (x, y), dev=samples(60, seed=5), epochs=500, callbacks=[Keep(), stopping])
    assert run.stopped
    assert run.epoch == stopping.best_epoch + 5
    assert torch.equal(_weights(model), best["weights"])


def test_predict_averages_dropout_passes():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(8), nn.Linear(8, 1))
    model(torch.randn(64, 8))
    x = torch.randn(20, 8)
    before = copy.deepcopy(model.state_dict())
    plain = predict(model, x, batch_size=7)
    model.eval()
    assert torch.allclose(plain, model(x), rtol=0, atol=1e-6)
    averaged = predict(model, x, dropout_passes=4000)
    # each pass is off by about 1; the mean of 4000 by 0.016, of which 5 deviations
    assert (averaged - plain).abs().max() < 0.1
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(("rows", "targets"), [(0, 0), (3, 1)])
def test_evaluating_nothing_or_unequal_numbers_is_refused(rows, targets):
    with pytest.raises(ValueError, match=rf"as many targets as inputs, got x \({rows}, 4\) and y \({targets}, 1\)"):
        evaluate(_model(), torch.zeros(rows, 4).double(), torch.zeros(targets, 1).double(), loss=F.mse_loss)


NAN = torch.full((2, 1), torch.nan)
ONE = torch.zeros(2, 1)


@pytest.mark.parametrize(
    ("kwargs", "error", "wording"),
    [
        (
            {"data": (ONE, NAN)},
            ValueError,
            r"targets of train must be finite, got NaN or inf in 2 of 2 rows, the first at 0",
        ),
        ({"data": (NAN, ONE)}, ValueError, "inputs of train must be finite"),
        ({"data": (ONE[:0], ONE[:0])}, ValueError, "train must hold at least one sample"),
        ({"data": (ONE, ONE[:1])}, ValueError, "train must hold as many targets as inputs"),
        (
            {"data": (torch.zeros(2, 4).double(), torch.zeros(2))},
            ValueError,
            "the target of train .* silently broadcast to",
        ),
        (
            {"dev": (torch.zeros(2, 4).double(), torch.zeros(2))},
            ValueError,
            "the target of dev .* silently broadcast to",
        ),
        ({"data": ONE}, TypeError, r"train must be a pair of tensors \(x, y\), a dataset with a length or a DataL"),
        ({"data": (ONE, torch.tensor([0, -1]))}, ValueError, "labels of train must count from 0, got -1"),
        ({"dev": (ONE, NAN)}, ValueError, "targets of dev must be finite"),
        ({"epochs": 0}, ValueError, "epochs must be an integer of at least 1, got 0"),
        ({"batch_size": 0.5}, ValueError, "batch_size must be an integer of at least 1"),
        ({"accumulate": 0}, ValueError, "accumulate must be an integer of at least 1"),
        ({"clip_norm": -1.0}, ValueError, r"clip_norm must lie in \(0, inf\)"),
        ({"amp": torch.float64}, ValueError, r"amp must be torch\.float16, torch\.bfloat16 or None"),
        ({"seed": -1}, ValueError, "seed must be an integer of at least 0"),
        ({"loss": "mse"}, TypeError, "loss must be a function of output and target"),
        ({"loss": nn.MSELoss(reduction="none")}, TypeError, "loss must return the mean over its samples"),
        ({"optimizer": None}, TypeError, r"optimizer must be a torch\.optim\.Optimizer"),
        ({"optimizer": torch.optim.SGD([torch.zeros(1)], 0.1)}, ValueError, "optimizer must hold parameters of model"),
        ({"scheduler": 3}, TypeError, "scheduler must be a learning-rate scheduler"),
        ({"callbacks": [print]}, TypeError, r"callbacks must be torchnotes\.training\.Callback objects"),
        ({"callbacks": [EarlyStopping()]}, KeyError, "EarlyStopping watches 'dev_loss'"),
        (
            {"optimizer": torch.optim.LBFGS(nn.Linear(1, 1).parameters())},
            TypeError,
            "got LBFGS, which evaluates the lo",
        ),
        ({"checkpoint": "/"}, CheckpointError, "the checkpoint must be a file, got the directory /; name a file in it"),
        ({"checkpoint": "/nowhere/at/all.pt"}, CheckpointError, "the directory of the checkpoint must exist"),
    ],
)
def test_errors_say_what_must_hold_and_what_came(kwargs, error, wording):
    with pytest.raises(error, match=wording):
        _fit(_model(), kwargs.pop("data", None), **kwargs)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8])
def test_a_label_beyond_the_models_classes_is_named(dtype):
    x = torch.zeros(5, 4, dtype=torch.float64)
    model = nn.Linear(4, 3).double()
    with pytest.raises(
        ValueError, match="labels must be below the number of classes, got 3 for a model with 3 outputs"
    ):
        _fit(model, (x, torch.tensor([0, 1, 2, 3, 0], dtype=dtype)), loss=F.cross_entropy, batch_size=1)


def test_a_directory_that_cannot_be_written_is_found_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: path != tmp_path)  # root may write anywhere
    with pytest.raises(CheckpointError, match=r"the directory of the checkpoint must be writable, got .*; change its"):
        _fit(_model(), checkpoint=tmp_path / "run.pt", callbacks=[StopAt(1)])


def test_a_diverging_loss_is_an_error_and_not_a_checkpoint(tmp_path):
    model = _model()
    path = tmp_path / "run.pt"
    with pytest.raises(FloatingPointError, match=r"the loss must stay finite, got (inf|nan) in epoch"):
        _fit(model, optimizer=torch.optim.SGD(model.parameters(), 1e200), epochs=5, checkpoint=path)
    if path.exists():
        assert all(value.isfinite().all() for value in torch.load(path)["model"].values())
